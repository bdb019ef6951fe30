//! From text to expression: recursive descent, bounded in depth.

use serde_json::Value;

use super::{Comparison, Expression, Function, Part, Path, Root, Segment, SyntaxError};
use crate::StepId;

/// Deeper nesting is refused, so that no expression can exhaust the stack.
const MAX_DEPTH: u32 = 64;

pub(super) fn parse(text: &str) -> Result<Expression, SyntaxError> {
    let mut parser = Parser { text, rest: text, depth: 0 };
    let expression = parser.or()?;
    parser.skip_space();
    if parser.rest.is_empty() {
        return Ok(expression);
    }
    Err(parser.error(format!("{:?} is not expected", first_word(parser.rest))))
}

fn first_word(text: &str) -> String {
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let end = text.find(|c| !word(c)).unwrap_or(text.len());
    let end = if end == 0 { 1 } else { end };
    text.chars().take(end.min(20)).collect()
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    depth: u32,
}

impl<'a> Parser<'a> {
    fn error(&self, what: impl Into<String>) -> SyntaxError {
        let read = self.text.len().saturating_sub(self.rest.len());
        let at = self.text.get(..read).map_or(0, |read| read.chars().count());
        let text = self.text.chars().take(120).collect();
        SyntaxError { text, what: what.into(), at: at + 1 }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes a mark such as `(` or `==` if it comes next.
    fn mark(&mut self, mark: &str) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(mark) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, mark: &str) -> Result<(), SyntaxError> {
        if self.mark(mark) { Ok(()) } else { Err(self.error(format!("expected {mark:?}"))) }
    }

    /// The name that comes next, without taking it.
    fn peek_name(&mut self) -> &'a str {
        self.skip_space();
        let begins = self.rest.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !begins {
            return "";
        }
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        self.rest.get(..end).unwrap_or_default()
    }

    fn name(&mut self) -> Option<&'a str> {
        let name = self.peek_name();
        self.rest = self.rest.get(name.len()..).unwrap_or_default();
        if name.is_empty() { None } else { Some(name) }
    }

    fn word(&mut self, word: &str) -> bool {
        let there = self.peek_name() == word;
        if there {
            self.rest = self.rest.get(word.len()..).unwrap_or_default();
        }
        there
    }

    fn deeper<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, SyntaxError>,
    ) -> Result<T, SyntaxError> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH}")));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn or(&mut self) -> Result<Expression, SyntaxError> {
        self.deeper(|this| {
            let mut all = vec![this.and()?];
            while this.word("or") {
                all.push(this.and()?);
            }
            Ok(balanced(all, &|a, b| Expression::Or(a.into(), b.into())))
        })
    }

    fn and(&mut self) -> Result<Expression, SyntaxError> {
        let mut all = vec![self.not()?];
        while self.word("and") {
            all.push(self.not()?);
        }
        Ok(balanced(all, &|a, b| Expression::And(a.into(), b.into())))
    }

    fn not(&mut self) -> Result<Expression, SyntaxError> {
        if self.word("not") {
            return self.deeper(|this| Ok(Expression::Not(this.not()?.into())));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expression, SyntaxError> {
        let left = self.operand()?;
        let marks = [
            ("==", Comparison::Equal),
            ("!=", Comparison::Unequal),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        for (mark, comparison) in marks {
            if self.mark(mark) {
                let right = self.operand()?;
                return Ok(Expression::Compare(comparison, left.into(), right.into()));
            }
        }
        if self.word("in") {
            let right = self.operand()?;
            return Ok(Expression::Compare(Comparison::In, left.into(), right.into()));
        }
        if self.rest.starts_with('=') {
            return Err(self.error("to compare, write =="));
        }
        Ok(left)
    }

    fn operand(&mut self) -> Result<Expression, SyntaxError> {
        self.skip_space();
        match self.rest.chars().next() {
            None => Err(self.error("a value is missing")),
            Some('(') => {
                self.expect("(")?;
                let inner = self.or()?;
                self.expect(")")?;
                Ok(inner)
            }
            Some('[') => {
                self.expect("[")?;
                Ok(Expression::List(self.values("]")?))
            }
            Some('\'' | '"') => Ok(Expression::Literal(Value::from(self.string()?))),
            Some(c) if c.is_ascii_digit() || c == '-' => self.number(),
            Some(_) => self.named(),
        }
    }

    /// Values with commas between them, up to the end mark.
    fn values(&mut self, end: &str) -> Result<Vec<Expression>, SyntaxError> {
        let mut values = Vec::new();
        while !self.mark(end) {
            if !values.is_empty() {
                self.expect(",")?;
            }
            values.push(self.or()?);
        }
        Ok(values)
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let start = self.error("the text has no end");
        let mut chars = self.rest.chars();
        let quote = chars.next();
        let mut text = String::new();
        while let Some(c) = chars.next() {
            if Some(c) == quote {
                self.rest = chars.as_str();
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(c @ ('\\' | '\'' | '"')) => text.push(c),
                _ => {
                    self.rest = chars.as_str();
                    return Err(self.error("after \\ only n, t, \\, ' and \" are known"));
                }
            }
        }
        Err(start)
    }

    fn number(&mut self) -> Result<Expression, SyntaxError> {
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-');
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        let digits = self.rest.get(..end).unwrap_or_default();
        match serde_json::from_str::<serde_json::Number>(digits) {
            Ok(number) => {
                self.rest = self.rest.get(end..).unwrap_or_default();
                Ok(Expression::Literal(Value::Number(number)))
            }
            Err(_) => Err(self.error(format!("{digits:?} is not a number"))),
        }
    }

    fn named(&mut self) -> Result<Expression, SyntaxError> {
        let before = self.rest;
        let Some(name) = self.name() else {
            return Err(self.error(format!("{:?} is not expected", first_word(self.rest))));
        };
        let root = match name {
            "true" => return Ok(Expression::Literal(Value::Bool(true))),
            "false" => return Ok(Expression::Literal(Value::Bool(false))),
            "null" => return Ok(Expression::Literal(Value::Null)),
            "exists" | "length" | "coalesce" if self.mark("(") => return self.call(name),
            "input" => Root::Input,
            "item" => Root::Item,
            "index" => Root::Index,
            "output" => Root::Output,
            "steps" => self.step()?,
            _ => {
                self.rest = before;
                return Err(self.error(format!(
                    "there is nothing called {name:?}; begin with input, steps, item, index or \
                     output, and put texts in quotes"
                )));
            }
        };
        Ok(Expression::Path(Path { root, segments: self.segments()? }))
    }

    fn call(&mut self, name: &str) -> Result<Expression, SyntaxError> {
        let values = self.values(")")?;
        let function = match (name, values.as_slice()) {
            ("exists", [Expression::Path(_)]) => Function::Exists,
            ("exists", _) => return Err(self.error("exists() takes one path")),
            ("length", [_]) => Function::Length,
            ("length", _) => return Err(self.error("length() takes one value")),
            (_, []) => return Err(self.error("coalesce() takes at least one value")),
            _ => Function::Coalesce,
        };
        Ok(Expression::Call(function, values))
    }

    /// After `steps`: the step's name and what of it is meant.
    fn step(&mut self) -> Result<Root, SyntaxError> {
        self.expect(".")?;
        let id = self.name().ok_or_else(|| self.error("the name of a step is missing"))?;
        let id = StepId::new(id).map_err(|error| self.error(error.to_string()))?;
        let want = format!("write steps.{id}.output, steps.{id}.state or steps.{id}.error");
        if !self.mark(".") {
            return Err(self.error(want));
        }
        let part = match self.peek_name() {
            "output" => Part::Output,
            "state" => Part::State,
            "error" => Part::Error,
            _ => return Err(self.error(want)),
        };
        self.name();
        Ok(Root::Step(id, part))
    }

    fn segments(&mut self) -> Result<Vec<Segment>, SyntaxError> {
        let mut segments = Vec::new();
        loop {
            // Directly behind what was read: a space ends the path.
            if let Some(rest) = self.rest.strip_prefix('.') {
                self.rest = rest;
                let key = self.name().ok_or_else(|| {
                    self.error("a name is missing after '.'; write ['…'] for unusual names")
                })?;
                segments.push(Segment::Key(key.to_owned()));
            } else if let Some(rest) = self.rest.strip_prefix('[') {
                self.rest = rest;
                self.skip_space();
                let segment = if self.rest.starts_with(['\'', '"']) {
                    Segment::Key(self.string()?)
                } else {
                    match self.number()? {
                        Expression::Literal(Value::Number(number)) => number
                            .as_i64()
                            .map(Segment::Index)
                            .ok_or_else(|| self.error("an index is a whole number"))?,
                        _ => return Err(self.error("an index is a whole number")),
                    }
                };
                segments.push(segment);
                self.expect("]")?;
            } else {
                return Ok(segments);
            }
        }
    }
}

/// Joins many operands as a tree of little depth, however many there are.
fn balanced(
    mut all: Vec<Expression>,
    join: &dyn Fn(Expression, Expression) -> Expression,
) -> Expression {
    while all.len() > 1 {
        let mut halved = Vec::with_capacity(all.len().div_ceil(2));
        let mut operands = all.into_iter();
        while let Some(first) = operands.next() {
            halved.push(match operands.next() {
                Some(second) => join(first, second),
                None => first,
            });
        }
        all = halved;
    }
    all.pop().unwrap_or(Expression::Literal(Value::Null))
}
