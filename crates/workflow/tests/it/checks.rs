//! What is refused, and how it is told.

use resurgam_workflow::Definition;
use serde_json::json;

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let toml = r#"
name = "bad name"
version = 0
output = "${steps.nowhere.output}"
[input]
topic = "text"
count = { type = "integer", default = "x" }

[[steps]]
id = "a"
capability = "x"
needs = ["b", "drft"]
[[steps]]
id = "b"
capability = "x"
needs = ["a"]
[[steps]]
id = "c"
needs = ["b"]
capability = "x"
[[steps]]
id = "draft"
capability = "x"
prioriy = 3
[[steps]]
id = "draft2"
[[steps]]
id = "draft2"
capability = "x"
wait = { signal = "s" }
[[steps]]
id = "e"
wait = { signal = "s", timer = "1m" }
[[steps]]
id = "f"
capability = "x"
input = ["${item}", "${input.cuont}", "${steps.b.output}", "${output}", "${oops"]
when = "false"
max_parallel = 2
[[steps]]
id = "1g"
capability = "x"
[[steps]]
id = "h"
workflow = "other@x"
priority = 3
[[steps]]
id = "i"
capability = "x"
when = "steps.f.output ="
"#;
    insta::assert_snapshot!(Definition::from_text(toml).unwrap_err(), @r#"
    the workflow's name "bad name" is not allowed: use 1 to 128 of the characters a-z, A-Z, 0-9, '.', '_', '-', ':' and '/', the first of them a letter or digit
    version must be at least 1
    input count: the default value is not an integer
    input topic: unknown variant `text`, expected one of `any`, `string`, `number`, `integer`, `boolean`, `list`, `object`
    step draft: unknown field `prioriy`, expected one of `id`, `capability`, `workflow`, `wait`, `needs`, `when`, `for_each`, `max_parallel`, `input`, `retry`, `timeout`, `priority`, `key`, `compensate`, `on_failure`
    step draft2: it does nothing; give it one of capability, workflow and wait
    step draft2: there are two steps of this name; give one of them another
    step draft2: it has more than one of capability, workflow and wait; keep one
    step e: wait takes exactly one of signal, approval, timer and until
    step f: max_parallel means nothing without for_each; drop it or add for_each
    step f: input: `oops`: there is nothing called "oops"; begin with input, steps, item, index or output, and put texts in quotes at character 1
    step 1g: "1g" cannot name a step: use 1 to 64 of the characters a-z, A-Z, 0-9, '_' and '-', the first of them a letter
    step h: priority is for steps with a capability, not for a sub-workflow
    step h: "x" is no version; write name@2
    step i: when: `steps.f.output =`: to compare, write == at character 16
    step a: it needs drft, but there is no such step
    the steps wait for each other in a circle: a needs b needs a; break it
    step c: it can never be reached: what it needs waits for itself
    output: there is no step nowhere
    step f: it can never run: its `when` is always false
    "#);
}

#[test]
fn references_are_checked_once_the_rest_is_well() {
    let toml = r#"
name = "refs"
output = "${item}"
[input]
count = "integer"
[[steps]]
id = "a"
capability = "x"
input = ["${item}", "${input.cuont}", "${steps.b.output}", "${output}", "${steps.aa.state}"]
[[steps]]
id = "b"
capability = "x"
when = "1 > 2"
for_each = "steps.b.output"
compensate = { capability = "y", input = ["${steps.b.output}", "${output}", "${item}"] }
"#;
    insta::assert_snapshot!(Definition::from_text(toml).unwrap_err(), @r#"
    output: item is known only in the input of a step with for_each
    step a: input: item is known only in the input of a step with for_each
    step a: input: input.cuont is not among the inputs of the workflow; did you mean count?
    step a: input: step b need not be over by then; add it to the needs
    step a: input: output is known only in compensate.input; for the output of another step write steps.NAME.output
    step a: input: there is no step aa; did you mean a?
    step b: it can never run: its `when` is always false
    step b: for_each: step b need not be over by then; add it to the needs
    "#);
}

#[test]
fn what_is_no_definition_at_all_is_told() {
    for (text, what) in [
        ("name = ", "it is not TOML"),
        ("{", "it is not JSON"),
        ("name = 'x'", "there are no steps"),
        ("name = 'x'\nstpes = []", "unknown field `stpes`"),
        ("steps = []", "missing field `name`"),
    ] {
        let error = Definition::from_text(text).unwrap_err().to_string();
        assert!(error.contains(what), "{text}: {error}");
    }
}

#[test]
fn inputs_are_checked_and_completed() {
    let definition = Definition::from_json(json!({
        "name": "x",
        "input": {
            "topic": "string",
            "n": {"type": "integer", "default": 3},
            "note": {"required": false}
        },
        "steps": [{"id": "a", "capability": "x"}]
    }))
    .unwrap();
    assert_eq!(
        definition.check_input(json!({"topic": "t"})).unwrap(),
        json!({"topic": "t", "n": 3})
    );
    let error = definition.check_input(json!({"tpic": 1, "n": 1.5})).unwrap_err().to_string();
    insta::assert_snapshot!(error, @r#"
    input tpic: the workflow takes no such input; did you mean topic?
    input n: it must be an integer
    input topic: it is missing
    "#);
    assert!(definition.check_input(json!([1])).unwrap_err().to_string().contains("an object"));
}
