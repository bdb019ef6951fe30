//! The document against the routes, and the file against the document.

use std::path::Path;

use super::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");

fn operations(document: &Value) -> impl Iterator<Item = (String, &Value)> {
    document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let item = item.as_object().unwrap();
        item.iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
    })
}

#[test]
fn openapi_file_is_up_to_date() {
    let text = text(&super::super::routes());
    let path = Path::new(FILE);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/openapi.json is not what the code says; renew it and look at the difference:\n\n    \
         UPDATE_DOCS=1 cargo test -p resurgam-platform openapi\n"
    );
}

#[test]
fn openapi_has_every_route_and_no_other() {
    let routes = super::super::routes();
    let document = document(&routes);
    let documented: Vec<String> = operations(&document).map(|(name, _)| name).collect();
    let mut served: Vec<String> = routes
        .iter()
        .map(|route| format!("{} {}", route.method.to_lowercase(), route.path.replace("{*", "{")))
        .collect();
    served.sort_by_key(|name| name.split_once(' ').map(|(m, p)| (p.to_owned(), m.to_owned())));
    assert_eq!(documented, served, "one route was entered twice, or is missing");
}

/// The list of routes is all that the router is made of.
#[test]
fn openapi_knows_all_that_the_router_knows() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/api")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(source) = std::fs::read_to_string(&path) else { continue };
        let calls = source.matches(".route(").count() + source.matches(".nest(").count();
        let expected = usize::from(path.ends_with("mod.rs"));
        assert_eq!(calls, expected, "{} adds a route past the list", path.display());
    }
}

#[test]
fn openapi_says_of_each_operation_what_it_does_takes_and_gives() {
    let routes = super::super::routes();
    let document = document(&routes);
    let mut names = BTreeSet::new();
    for (name, operation) in operations(&document) {
        assert!(names.insert(operation["operationId"].as_str().unwrap()), "{name}: id taken");
        let about = operation["summary"].as_str().unwrap();
        assert!(!about.is_empty() && !about.ends_with('.'), "{name}: {about:?}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{name}: no success");
        let parameters = operation["parameters"].as_array().unwrap();
        let in_path = parameters.iter().filter(|p| p["in"] == "path").count();
        assert_eq!(in_path, name.matches('{').count(), "{name}: not all of the path is described");
    }
    for route in &routes {
        for failure in &route.fails {
            assert!(code::ALL.iter().any(|(code, ..)| code == failure), "unknown code {failure}");
        }
    }
}

#[test]
fn openapi_references_lead_somewhere() {
    fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str));
                object.values().for_each(|value| walk(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let document = document(&super::super::routes());
    let mut found = Vec::new();
    walk(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
}
