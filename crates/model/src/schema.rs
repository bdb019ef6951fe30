//! What the JSON schemas of the types that go over the wire have in common.
//!
//! The types derive [`schemars::JsonSchema`]; the OpenAPI document is made of that.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// The pattern of names: agents, capabilities, components.
pub const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._:/-]*$";

/// The name that schemas give to the format of a [`crate::Duration`].
pub const DURATION: &str = "duration-text";

/// The pattern of a [`crate::Duration`]. What it allows is always read; fractions and units
/// written out are read as well.
pub const DURATION_PATTERN: &str =
    "^([0-9]{1,5}h ?)?([0-9]{1,6}m ?)?([0-9]{1,8}s ?)?([0-9]{1,9}ms)?$";

/// The pattern of short texts: no control characters.
pub const TEXT_PATTERN: &str = r"^[^\x00-\x1f\x7f-\x9f]*$";

/// The most characters of a short text.
pub const MAX_TEXT: usize = 256;

/// The schema of a short text, which may be empty: `#[schemars(with = "Text")]` on a `String`.
#[derive(JsonSchema)]
#[schemars(inline)]
pub struct Text(
    #[schemars(length(max = MAX_TEXT), regex(pattern = TEXT_PATTERN))]
    #[allow(dead_code, reason = "describes texts and is never made")]
    String,
);

/// The schema of a short text that is not empty: `#[schemars(with = "Key")]` on a `String`.
#[derive(JsonSchema)]
#[schemars(inline)]
pub struct Key(
    #[schemars(length(min = 1, max = MAX_TEXT), regex(pattern = TEXT_PATTERN))]
    #[allow(dead_code, reason = "describes texts and is never made")]
    String,
);

/// The schema of a [`crate::Timestamp`]: `#[schemars(with = "Moment")]` on its field, or
/// `with = "Option<Moment>"`.
pub struct Moment;

impl JsonSchema for Moment {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// For fields whose default is another one each time: `#[schemars(transform = …)]`.
pub fn without_default(schema: &mut Schema) {
    schema.remove("default");
}

#[cfg(test)]
mod tests {
    use crate::{Capability, Duration};

    use super::*;

    #[test]
    fn schemas_say_what_is_allowed() {
        let schema = schemars::schema_for!(Capability);
        assert_eq!(schema.get("pattern").unwrap(), NAME_PATTERN);
        assert_eq!(schema.get("maxLength").unwrap(), 128);
        assert_eq!(schema.get("type").unwrap(), "string");
        let schema = schemars::schema_for!(Duration);
        assert_eq!(schema.get("pattern").unwrap(), DURATION_PATTERN);
        let schema = schemars::schema_for!(Moment);
        assert_eq!(schema.get("format").unwrap(), "date-time");
    }

    #[test]
    fn what_the_pattern_of_durations_allows_is_read() {
        for text in ["0s", "250ms", "99999h", "1h 30m", "1h30m", "1h 1m 1s 1ms", "2m ", "00s"] {
            assert!(text.parse::<Duration>().is_ok(), "{text}");
        }
    }
}
