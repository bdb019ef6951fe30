//! What follows from what, case by case.

use resurgam_model::Duration;
use resurgam_workflow::state::{End, Ending, Slot, WorkflowState};
use resurgam_workflow::{Definition, Event};
use serde_json::json;

use crate::sim::Sim;

const PUBLISH: &str = r#"
name = "publish"
output = { url = "${steps.publish.output.url}", pages = "${length(steps.translate.output)}" }
[input]
topic = "string"
languages = { type = "list", default = ["de", "fr", "it"] }

[[steps]]
id = "draft"
capability = "write"
input = { about = "${input.topic}" }

[[steps]]
id = "translate"
capability = "translate"
needs = ["draft"]
for_each = "input.languages"
max_parallel = 2
input = { text = "${steps.draft.output.text}", to = "${item}", n = "${index}" }
compensate = { capability = "delete", input = { what = "${output}", of = "${item}" } }

[[steps]]
id = "review"
wait = { approval = "Publish it?" }
timeout = "48h"
needs = ["translate"]

[[steps]]
id = "publish"
capability = "publish"
input = "${steps.translate.output}"
needs = ["review"]
compensate = { capability = "unpublish" }
"#;

fn publish() -> Sim {
    let definition = Definition::from_text(PUBLISH).unwrap();
    let input = definition.check_input(json!({"topic": "tea"})).unwrap();
    let mut sim = Sim::new(definition, input);
    sim.advance(&[]);
    sim
}

#[test]
fn from_start_to_end_with_fan_out_join_and_approval() {
    let mut sim = publish();
    assert_eq!(sim.open_keys(), ["draft"]);
    assert_eq!(sim.payload("draft"), json!({"about": "tea"}));
    sim.complete("draft", json!({"text": "T"}));
    assert_eq!(sim.open_keys(), ["translate[0]", "translate[1]"]);
    assert_eq!(sim.payload("translate[1]"), json!({"text": "T", "to": "fr", "n": 1}));
    sim.complete("translate[1]", json!("FR"));
    assert_eq!(sim.open_keys(), ["translate[0]", "translate[2]"]);
    sim.complete("translate[2]", json!("IT"));
    assert_eq!(sim.full.state, WorkflowState::Running);
    let waits = sim.complete("translate[0]", json!("DE"));
    assert_eq!(sim.full.state, WorkflowState::Waiting);
    assert_eq!(waits.wake_at, Some(sim.now + std::time::Duration::from_secs(2 * 86400)));
    sim.signal("review", json!({"approved": true}));
    sim.advance(&[]);
    assert_eq!(sim.payload("publish"), json!(["DE", "FR", "IT"]));
    let ends = sim.complete("publish", json!({"url": "https://x"}));
    assert!(ends.ended);
    assert_eq!(sim.full.state, WorkflowState::Completed);
    let Slot::Loaded(output) = &sim.full.output else { panic!() };
    assert_eq!(output.json(), r#"{"pages":3,"url":"https://x"}"#);
}

#[test]
fn a_refusal_undoes_what_was_done_in_reverse_and_a_retry_does_it_again() {
    let mut sim = publish();
    sim.complete("draft", json!({"text": "T"}));
    sim.complete("translate[1]", json!("FR"));
    sim.complete("translate[0]", json!("DE"));
    sim.complete("translate[2]", json!("IT"));
    sim.signal("review", json!({"approved": false, "by": "ann", "comment": "too short"}));
    sim.advance(&[]);
    assert_eq!(sim.full.state, WorkflowState::Compensating);
    assert_eq!(
        sim.full.error.as_deref(),
        Some("step review failed: it was not approved by ann: too short")
    );
    for (key, language) in [("translate[2]", "it"), ("translate[0]", "de"), ("translate[1]", "fr")]
    {
        let undo = format!("{key}!undo");
        assert_eq!(sim.open_keys().join(" "), undo);
        let what = language.to_uppercase();
        assert_eq!(sim.payload(&undo), json!({"what": what, "of": language}));
        sim.complete(&undo, json!(null));
    }
    assert_eq!(sim.full.state, WorkflowState::Failed);
    assert_eq!(
        sim.states(),
        "draft completed, publish cancelled, review failed, translate compensated, \
         translate[0] compensated, translate[1] compensated, translate[2] compensated"
    );
    sim.advance(&[Event::Retry]);
    assert_eq!(sim.open_keys(), ["translate[0]#2", "translate[1]#2"]);
}

#[test]
fn what_runs_when_a_step_fails_comes_to_its_end_and_is_undone() {
    let toml = r#"
        name = "parallel"
        steps = [
            { id = "a", capability = "x", compensate = { capability = "undo-a" } },
            { id = "b", capability = "x" },
            { id = "c", capability = "x", compensate = { capability = "undo-c" } },
            { id = "d", capability = "x", needs = ["a", "b", "c"] },
        ]"#;
    let mut sim = Sim::of(toml, json!(null));
    assert!(sim.fail("b").wind_down);
    sim.complete("c", json!(1));
    assert_eq!(sim.open_keys(), ["a"], "nothing is undone before all is known");
    sim.complete("a", json!(2));
    assert_eq!(sim.open_keys(), ["a!undo"]);
    sim.fail("a!undo");
    sim.complete("c!undo", json!(null));
    assert_eq!(sim.full.state, WorkflowState::Failed);
    let error = sim.full.error.clone().unwrap();
    assert_eq!(error, "step b failed: on purpose; not undone: a");
    // A retry first brings the way back to its end, and only then goes forward.
    sim.advance(&[Event::Retry]);
    assert_eq!(sim.open_keys(), ["a!undo#2"]);
    sim.complete("a!undo#2", json!(null));
    assert_eq!(sim.full.state, WorkflowState::Failed);
    assert_eq!(sim.full.error.as_deref(), Some("step b failed: on purpose"));
    sim.advance(&[Event::Retry]);
    assert_eq!(sim.open_keys(), ["a#3", "b#3", "c#3"]);
}

#[test]
fn a_retry_does_only_what_is_not_done() {
    let toml = r#"
        name = "n"
        [[steps]]
        id = "many"
        capability = "x"
        for_each = [1, 2, 3, 4]
        max_parallel = 3
    "#;
    let mut sim = Sim::of(toml, json!(null));
    sim.complete("many[0]", json!("zero"));
    sim.fail("many[1]");
    assert_eq!(sim.full.state, WorkflowState::Compensating);
    sim.complete("many[2]", json!("two"));
    let last = sim.end("many[3]", End::Cancelled);
    sim.advance(&[last]);
    assert_eq!(sim.full.state, WorkflowState::Failed);
    sim.advance(&[Event::Retry]);
    assert_eq!(sim.open_keys(), ["many[1]#2", "many[3]#2"]);
    sim.complete("many[3]#2", json!("three"));
    sim.complete("many[1]#2", json!("one"));
    assert_eq!(sim.full.state, WorkflowState::Completed);
    let Slot::Loaded(output) = &sim.full.steps["many"].output else { panic!() };
    assert_eq!(output.json(), r#"["zero","one","two","three"]"#);
}

#[test]
fn branches_are_skipped_as_a_whole_and_meet_again() {
    let toml = r#"
        name = "branch"
        output = "${coalesce(steps.long2.output, steps.short.output)}"
        steps = [
            { id = "long", capability = "x", when = "input.n > 3" },
            { id = "long2", capability = "x", needs = ["long"] },
            { id = "short", capability = "x", when = "not (input.n > 3)" },
            { id = "end", capability = "x", needs = ["long2", "short"] },
        ]"#;
    let mut sim = Sim::of(toml, json!({"n": 3}));
    assert_eq!(sim.open_keys(), ["short"]);
    sim.complete("short", json!("s"));
    sim.complete("end", json!(null));
    assert_eq!(sim.states(), "end completed, long skipped, long2 skipped, short completed");
    let Slot::Loaded(output) = &sim.full.output else { panic!() };
    assert_eq!(output.json(), r#""s""#);
}

#[test]
fn a_failure_that_is_tolerated_lets_the_rest_go_on() {
    let toml = r#"
        name = "tolerant"
        steps = [
            { id = "try", capability = "x", on_failure = "continue", for_each = [1, 2] },
            { id = "then", capability = "x", needs = ["try"], input = ["${steps.try.output}", "${steps.try.state}"] },
        ]"#;
    let mut sim = Sim::of(toml, json!(null));
    sim.fail("try[0]");
    assert_eq!(sim.open_keys(), ["try[1]"]);
    sim.complete("try[1]", json!("ok"));
    assert_eq!(sim.payload("then"), json!([[null, "ok"], "failed"]));
    sim.complete("then", json!(null));
    assert_eq!(sim.full.state, WorkflowState::Completed);
}

#[test]
fn time_outs_of_waits_and_of_the_whole() {
    let toml = r#"
        name = "timed"
        timeout = "1h"
        steps = [
            { id = "go", wait = { signal = "go" }, timeout = "10m", on_failure = "continue" },
            { id = "pause", wait = { timer = "5m" }, needs = ["go"] },
            { id = "at", wait = { until = "${input}" }, needs = ["pause"] },
            { id = "work", capability = "x", needs = ["at"] },
        ]"#;
    let minutes = |n: u64| std::time::Duration::from_secs(60 * n);
    let mut sim = Sim::of(toml, json!("1970-01-01T00:20:00Z"));
    let start = sim.now;
    sim.now = start + minutes(10);
    assert_eq!(sim.advance(&[]).wake_at, Some(start + minutes(15)));
    assert_eq!(sim.full.steps["go"].error.as_deref(), Some("go did not come in time"));
    sim.now = start + minutes(15);
    assert_eq!(sim.advance(&[]).wake_at, Some(start + minutes(20)));
    sim.now = start + minutes(20);
    assert_eq!(sim.advance(&[]).wake_at, Some(start + minutes(60)));
    assert_eq!(sim.open_keys(), ["work"]);
    sim.now = start + minutes(60);
    let over = sim.advance(&[]);
    assert!(over.wind_down);
    assert_eq!(over.wake_at, None);
    assert_eq!(sim.full.error.as_deref(), Some("it was not over within 1h"));
    let end = sim.end("work", End::Cancelled);
    sim.advance(&[end]);
    assert_eq!(sim.full.state, WorkflowState::Failed);
}

#[test]
fn signals_that_come_early_lie_there_and_each_is_taken_once() {
    let toml = r#"
        name = "signals"
        steps = [
            { id = "first", capability = "x" },
            { id = "one", wait = { signal = "go" }, needs = ["first"] },
            { id = "two", wait = { signal = "go" }, needs = ["one"] },
        ]"#;
    let mut sim = Sim::of(toml, json!(null));
    sim.signal("go", json!(1));
    sim.advance(&[]);
    let taken = sim.complete("first", json!(null)).taken;
    assert_eq!(taken.len(), 1);
    assert_eq!(sim.full.state, WorkflowState::Waiting);
    sim.signal("go", json!(2));
    sim.advance(&[]);
    assert_eq!(sim.full.state, WorkflowState::Completed);
    let Slot::Loaded(two) = &sim.full.steps["two"].output else { panic!() };
    assert_eq!(two.json(), "2");
}

#[test]
fn sub_workflows_fail_and_go_on() {
    let toml = r#"
        name = "parent"
        steps = [{ id = "sub", workflow = "child@2", input = { a = 1 }, timeout = "1m" }]"#;
    let mut sim = Sim::of(toml, json!(null));
    let child = sim.transitions[0].children[0].clone();
    assert_eq!((child.name.as_str(), child.version), ("child", Some(2)));
    assert_eq!(child.timeout, Some(Duration::from_secs(60)));
    let id = sim.full.steps["sub"].child;
    sim.fail("sub");
    assert_eq!(sim.full.state, WorkflowState::Failed);
    let again = sim.advance(&[Event::Retry]);
    assert_eq!(again.children.len(), 1);
    assert_eq!(sim.full.steps["sub"].child, id, "the same one goes on");
    sim.complete("sub#2", json!(7));
    assert_eq!(sim.full.state, WorkflowState::Completed);
}

#[test]
fn cancelling_ends_waits_at_once_and_waits_for_what_runs() {
    let toml = r#"
        name = "cancelled"
        steps = [
            { id = "wait", wait = { signal = "s" } },
            { id = "work", capability = "x" },
        ]"#;
    let mut sim = Sim::of(toml, json!(null));
    sim.advance(&[Event::Cancel { reason: "changed my mind".to_owned() }]);
    assert_eq!(sim.full.ending, Some(Ending::Cancelled));
    assert_eq!(sim.states(), "wait cancelled, work running");
    sim.complete("work", json!(null));
    assert_eq!(sim.full.state, WorkflowState::Cancelled);
    assert_eq!(sim.full.error.as_deref(), Some("changed my mind"));
}

#[test]
fn ten_thousand_items_cost_little_each() {
    let toml = r#"
        name = "wide"
        steps = [{ id = "all", capability = "x", for_each = "input", max_parallel = 2 }]"#;
    let input: Vec<u32> = (0..10_000).collect();
    let mut sim = Sim::of(toml, json!(input));
    assert_eq!(sim.full.items.len(), 10_000);
    // Each completion touches the item, the next one and the step, whatever their number.
    let transition = sim.complete("all[0]", json!(null));
    assert_eq!(transition.changed.len(), 3);
    assert_eq!(transition.tasks.len(), 1);
}
