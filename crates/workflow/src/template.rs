//! JSON with expressions in its texts.
//!
//! A text that is nothing but `${…}` becomes the value of the expression, whatever its type. In
//! any other text the value is put in its place: a text as it is, all else as JSON. `$${` stands
//! for `${` itself.

use serde_json::{Map, Value};

use crate::expression::{Expression, Path, Scope, SyntaxError};

/// A template, checked for its form.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Node);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Literal(Value),
    Value(Expression),
    Text(Vec<Piece>),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Literal(String),
    Value(Expression),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// When an expression in it is none.
    pub fn parse(json: &Value) -> Result<Self, SyntaxError> {
        Node::parse(json).map(Self)
    }

    /// Calls `found` with each path in it.
    pub fn roots<'a>(&'a self, found: &mut dyn FnMut(&'a Path)) {
        self.0.roots(found);
    }

    /// The JSON that it makes of these data.
    #[must_use]
    pub fn render(&self, scope: &dyn Scope) -> Value {
        self.0.render(scope)
    }
}

impl Default for Template {
    fn default() -> Self {
        Self(Node::Literal(Value::Null))
    }
}

/// Reads the one expression of a setting that is an expression, with or without `${…}` around it.
///
/// # Errors
/// When it is none.
pub fn parse_expression(text: &str) -> Result<Expression, SyntaxError> {
    let inner = text.trim();
    match inner.strip_prefix("${") {
        Some(rest) => match rest.strip_suffix('}') {
            Some(inner) => Expression::parse(inner),
            None => Expression::parse(text),
        },
        None => Expression::parse(inner),
    }
}

impl Node {
    fn parse(json: &Value) -> Result<Self, SyntaxError> {
        Ok(match json {
            Value::String(text) if text.contains("${") => Self::parse_text(text)?,
            Value::Array(list) => {
                Self::List(list.iter().map(Self::parse).collect::<Result<_, _>>()?)
            }
            Value::Object(map) => Self::Map(
                map.iter()
                    .map(|(key, value)| Ok((key.clone(), Self::parse(value)?)))
                    .collect::<Result<_, _>>()?,
            ),
            other => Self::Literal(other.clone()),
        })
    }

    fn parse_text(text: &str) -> Result<Self, SyntaxError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            let inside = from.get(2..).unwrap_or_default();
            if let Some(before) = before.strip_suffix('$') {
                literal.push_str(before);
                literal.push_str("${");
                rest = inside;
                continue;
            }
            literal.push_str(before);
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            let end = end_of_expression(inside);
            let expression = inside.get(..end).unwrap_or_default();
            let Some(after) = inside.get(end..).and_then(|after| after.strip_prefix('}')) else {
                Expression::parse(inside)?;
                return Err(SyntaxError::unclosed(inside));
            };
            pieces.push(Piece::Value(Expression::parse(expression)?));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(match pieces.as_slice() {
            [Piece::Value(expression)] => Self::Value(expression.clone()),
            [Piece::Literal(text)] => Self::Literal(Value::from(text.as_str())),
            _ => Self::Text(pieces),
        })
    }

    fn roots<'a>(&'a self, found: &mut dyn FnMut(&'a Path)) {
        match self {
            Self::Literal(_) => {}
            Self::Value(expression) => expression.roots(found),
            Self::Text(pieces) => {
                for piece in pieces {
                    if let Piece::Value(expression) = piece {
                        expression.roots(found);
                    }
                }
            }
            Self::List(nodes) => nodes.iter().for_each(|node| node.roots(found)),
            Self::Map(nodes) => nodes.iter().for_each(|(_, node)| node.roots(found)),
        }
    }

    fn render(&self, scope: &dyn Scope) -> Value {
        match self {
            Self::Literal(value) => value.clone(),
            Self::Value(expression) => expression.evaluate(scope).into_owned(),
            Self::Text(pieces) => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Literal(literal) => text.push_str(literal),
                        Piece::Value(expression) => match &*expression.evaluate(scope) {
                            Value::String(value) => text.push_str(value),
                            other => text.push_str(&other.to_string()),
                        },
                    }
                }
                Value::String(text)
            }
            Self::List(nodes) => nodes.iter().map(|node| node.render(scope)).collect(),
            Self::Map(nodes) => Value::Object(
                nodes
                    .iter()
                    .map(|(key, node)| (key.clone(), node.render(scope)))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

/// Where the `}` is that ends the expression; a `}` in quotes does not.
fn end_of_expression(text: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            _ if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == '}' => return at,
            None => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::json;

    use super::*;
    use crate::expression::Root;

    struct Data(Value);

    impl Scope for Data {
        fn root(&self, root: &Root) -> Option<Cow<'_, Value>> {
            (*root == Root::Input).then_some(Cow::Borrowed(&self.0))
        }
    }

    #[test]
    fn a_value_keeps_its_type_and_a_text_takes_it_in() {
        let template = json!({
            "whole": "${input.n}", "text": "n is ${input.n}, s is ${input.s}!",
            "list": ["${ input.s }", 1], "escaped": "$${input.n}", "braces": "${'}' in input.s}",
            "plain": "$5 {x}", "missing": "[${input.no}]"
        });
        let template = Template::parse(&template).unwrap();
        assert_eq!(
            template.render(&Data(json!({"n": [1], "s": "}"}))),
            json!({
                "whole": [1], "text": "n is [1], s is }!", "list": ["}", 1],
                "escaped": "${input.n}", "braces": true, "plain": "$5 {x}", "missing": "[null]"
            })
        );
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for (bad, what) in
            [("${", "missing"), ("a ${input.n", "closing }"), ("${nput}", "nothing called")]
        {
            let error = Template::parse(&json!([bad])).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
