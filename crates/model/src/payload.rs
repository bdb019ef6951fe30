//! What a task carries and what it gives back.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// A JSON value kept as its text: it passes through the platform byte for byte, without being
/// taken apart on the way. Cloning is cheap.
#[derive(Clone)]
pub struct Payload(Arc<str>);

impl Payload {
    /// A payload that is one JSON string.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(serde_json::Value::from(text).to_string().into())
    }

    /// Takes JSON text as it is.
    ///
    /// # Errors
    /// When the text is not one JSON value.
    pub fn from_json(json: impl Into<Arc<str>>) -> Result<Self, serde_json::Error> {
        let json = json.into();
        serde_json::from_str::<&RawValue>(&json)?;
        Ok(Self(json))
    }

    /// The JSON text.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.0
    }

    /// What a handler works on: the text itself if the payload is a JSON string, else the JSON.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match serde_json::from_str::<String>(&self.0) {
            Ok(text) => Cow::Owned(text),
            Err(_) => Cow::Borrowed(&self.0),
        }
    }

    /// Size of the JSON text in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// False: the shortest JSON value has one byte. Here because `len` is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Payload {}

impl Default for Payload {
    fn default() -> Self {
        Self("null".into())
    }
}

/// Shows the size only: payloads may hold secrets, and debug output ends in logs.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl JsonSchema for Payload {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Payload".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "Any JSON." })
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(raw.get().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_json_through_unchanged() {
        let json = r#"{"b":1.0e2,  "a":[true,"x\u0000"]}"#;
        let payload: Payload = serde_json::from_str(json).unwrap();
        assert_eq!(payload.json(), json);
        assert_eq!(serde_json::to_string(&payload).unwrap(), json);
        assert_eq!(payload.text(), json);
    }

    #[test]
    fn a_string_is_handed_over_without_its_quotes() {
        assert_eq!(Payload::from_text("a \"b\"\n").text(), "a \"b\"\n");
        assert!(Payload::from_json("{").is_err());
    }
}
