//! Whether what a workflow is started with is what it takes.

use serde_json::{Map, Value};

use super::{Problems, nearest};
use crate::definition::Definition;

pub(crate) fn input(definition: &Definition, input: Value) -> Result<Value, Problems> {
    let Some(parameters) = &definition.input else { return Ok(input) };
    let mut given = match input {
        Value::Object(map) => map,
        Value::Null => Map::new(),
        _ => {
            let names: Vec<_> = parameters.keys().map(String::as_str).collect();
            let what = format!("it must be an object with {}", names.join(", "));
            return Err(Problems::one("input", what));
        }
    };
    let mut problems = Problems::default();
    for name in given.keys() {
        if !parameters.contains_key(name) {
            let hint = nearest(name, parameters.keys().map(String::as_str));
            problems
                .add(format!("input {name}"), format!("the workflow takes no such input{hint}"));
        }
    }
    for (name, parameter) in parameters {
        match given.get(name) {
            Some(value) if parameter.kind.takes(value) => {}
            // An optional one may be left out by saying null.
            Some(Value::Null) if parameter.required == Some(false) => {}
            Some(_) => {
                let what = format!("it must be {}", parameter.kind.with_article());
                problems.add(format!("input {name}"), what);
            }
            None => match &parameter.default {
                Some(default) => {
                    given.insert(name.clone(), default.clone());
                }
                None if parameter.required.unwrap_or(true) => {
                    problems.add(format!("input {name}"), "it is missing");
                }
                None => {}
            },
        }
    }
    if problems.none() { Ok(Value::Object(given)) } else { Err(problems) }
}
