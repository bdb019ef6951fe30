//! From expression and data to a value.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::{Comparison, Expression, Function, Path, Root, Segment};

/// The data that an expression sees.
pub trait Scope {
    /// What is at the root; nothing if there is none.
    fn root(&self, root: &Root) -> Option<Cow<'_, Value>>;
}

/// What counts as true: everything but `false` and `null`.
#[must_use]
pub fn is_true(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
}

impl Expression {
    /// The value in these surroundings. There always is one.
    #[must_use]
    pub fn evaluate<'a>(&'a self, scope: &'a dyn Scope) -> Cow<'a, Value> {
        let truth = |truth: bool| Cow::Owned(Value::Bool(truth));
        match self {
            Self::Literal(value) => Cow::Borrowed(value),
            Self::Path(path) => path.find(scope).unwrap_or(Cow::Owned(Value::Null)),
            Self::List(parts) => Cow::Owned(Value::Array(
                parts.iter().map(|part| part.evaluate(scope).into_owned()).collect(),
            )),
            Self::Not(part) => truth(!is_true(&part.evaluate(scope))),
            Self::And(a, b) => truth(is_true(&a.evaluate(scope)) && is_true(&b.evaluate(scope))),
            Self::Or(a, b) => truth(is_true(&a.evaluate(scope)) || is_true(&b.evaluate(scope))),
            Self::Compare(how, a, b) => truth(how.holds(&a.evaluate(scope), &b.evaluate(scope))),
            Self::Call(Function::Exists, values) => truth(values.iter().all(|value| match value {
                Self::Path(path) => path.find(scope).is_some(),
                _ => true,
            })),
            Self::Call(Function::Length, values) => {
                let length = values.first().map_or(0, |value| match &*value.evaluate(scope) {
                    Value::Array(list) => list.len(),
                    Value::Object(map) => map.len(),
                    Value::String(text) => text.chars().count(),
                    _ => 0,
                });
                Cow::Owned(Value::from(length))
            }
            Self::Call(Function::Coalesce, values) => values
                .iter()
                .map(|value| value.evaluate(scope))
                .find(|value| !value.is_null())
                .unwrap_or(Cow::Owned(Value::Null)),
        }
    }
}

impl Path {
    fn find<'a>(&'a self, scope: &'a dyn Scope) -> Option<Cow<'a, Value>> {
        let root = scope.root(&self.root)?;
        match root {
            Cow::Borrowed(value) => walk(value, &self.segments).map(Cow::Borrowed),
            Cow::Owned(value) if self.segments.is_empty() => Some(Cow::Owned(value)),
            Cow::Owned(value) => walk(&value, &self.segments).cloned().map(Cow::Owned),
        }
    }
}

fn walk<'v>(value: &'v Value, segments: &[Segment]) -> Option<&'v Value> {
    segments.iter().try_fold(value, |value, segment| match (segment, value) {
        (Segment::Key(key), Value::Object(map)) => map.get(key),
        (Segment::Index(index), Value::Array(list)) => {
            let index = if *index < 0 {
                list.len().checked_sub(usize::try_from(index.unsigned_abs()).ok()?)?
            } else {
                usize::try_from(*index).ok()?
            };
            list.get(index)
        }
        _ => None,
    })
}

impl Comparison {
    fn holds(self, a: &Value, b: &Value) -> bool {
        let order = || order(a, b);
        match self {
            Self::Equal => equal(a, b),
            Self::Unequal => !equal(a, b),
            Self::Less => order() == Some(Ordering::Less),
            Self::LessOrEqual => matches!(order(), Some(Ordering::Less | Ordering::Equal)),
            Self::Greater => order() == Some(Ordering::Greater),
            Self::GreaterOrEqual => matches!(order(), Some(Ordering::Greater | Ordering::Equal)),
            Self::In => match (a, b) {
                (a, Value::Array(list)) => list.iter().any(|element| equal(a, element)),
                (Value::String(a), Value::String(b)) => b.contains(a.as_str()),
                (Value::String(a), Value::Object(b)) => b.contains_key(a),
                _ => false,
            },
        }
    }
}

/// 1 and 1.0 are the same number; all else is compared as it is.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => order(a, b) == Some(Ordering::Equal),
        _ => a == b,
    }
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => match (a.as_i128(), b.as_i128()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::expression::Part;

    struct Data(Value);

    impl Scope for Data {
        fn root(&self, root: &Root) -> Option<Cow<'_, Value>> {
            match root {
                Root::Input => Some(Cow::Borrowed(&self.0)),
                Root::Step(_, Part::State) => Some(Cow::Owned(json!("failed"))),
                _ => None,
            }
        }
    }

    fn value(text: &str) -> Value {
        let data = Data(json!({
            "n": 3, "f": 3.0, "s": "text", "l": [1, 2, {"x": "y"}], "odd key": true, "z": null
        }));
        Expression::parse(text).unwrap().evaluate(&data).into_owned()
    }

    #[test]
    fn values_conditions_and_functions() {
        for (text, expected) in [
            ("input.n", json!(3)),
            ("input.l[2].x", json!("y")),
            ("input.l[-1]['x']", json!("y")),
            ("input.l[-4]", json!(null)),
            ("input['odd key']", json!(true)),
            ("input.nothing.at.all", json!(null)),
            ("input.n == input.f", json!(true)),
            ("input.n != 4 and input.s == 'text'", json!(true)),
            ("input.n < 'x' or input.n >= 'x'", json!(false)),
            ("9007199254740993 > 9007199254740992", json!(true)),
            ("not input.z", json!(true)),
            ("not (input.n > 2 and input.n < 3)", json!(true)),
            ("exists(input.z) and not exists(input.y)", json!(true)),
            ("length(input.l) == 3 and length(input.s) == 4", json!(true)),
            ("'y' in ['x', 'y']", json!(true)),
            ("'ex' in input.s", json!(true)),
            ("'n' in input", json!(true)),
            ("1.0 in input.l", json!(true)),
            ("coalesce(input.y, input.z, 'else')", json!("else")),
            ("steps.draft.state == \"failed\"", json!(true)),
            ("steps.draft.output", json!(null)),
            ("[1, input.n]", json!([1, 3])),
            ("'a\\'b\\n'", json!("a'b\n")),
            ("-2.5e1 < -24", json!(true)),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn errors_say_what_and_where() {
        for (text, what) in [
            ("", "a value is missing at character 1"),
            ("input.n = 3", "write == at character 9"),
            ("nput.n", "there is nothing called \"nput\""),
            ("steps.draft", "write steps.draft.output, steps.draft.state or steps.draft.error"),
            ("steps.draft.result", "write steps.draft.output"),
            ("input.n 3", "\"3\" is not expected at character 9"),
            ("(input.n", "expected \")\""),
            ("'open", "the text has no end at character 1"),
            ("exists(3)", "exists() takes one path"),
            ("input.", "a name is missing"),
            ("1x", "is not a number"),
        ] {
            let error = Expression::parse(text).unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn depth_is_bounded_and_length_is_not() {
        let deep = format!("{}1{}", "(".repeat(10_000), ")".repeat(10_000));
        assert!(Expression::parse(&deep).is_err());
        let nots = format!("{}true", "not ".repeat(10_000));
        assert!(Expression::parse(&nots).is_err());
        let long = vec!["input.n == 3"; 10_000].join(" and ");
        assert_eq!(value(&long), json!(true));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z0-9 .()\\[\\]'\"=<>!,ä-]{0,40}") {
            if let Ok(expression) = Expression::parse(&text) {
                let _ = expression.evaluate(&Data(json!([1])));
            }
        }
    }
}
