//! The pool of workers, sized by what there is to do.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{LONG, Place, Up, all_complete, until};
use crate::http;

const PLAN: &str = "[deployment]
state_dir = 'state'
[workers]
min = 1
max = 3
concurrency = 1
capabilities = ['nap']
exec = ['sleep', '0.3']
drain_within = '5s'
shrink_after = '3s'
";

fn workers(status: &Value) -> BTreeSet<String> {
    let components = status["components"].as_array().unwrap();
    let workers = components.iter().filter(|component| component["kind"] == "worker");
    workers.map(|component| component["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn load_makes_the_pool_grow_to_its_bound_and_shrink_again_without_a_lost_task() {
    let place = Place::new(PLAN);
    let up = Up::ready(&place);
    let status = up.status(&place).unwrap();
    let api = status["api"].as_str().unwrap().to_owned();
    assert_eq!(workers(&status).len(), 1, "{status:#}");

    let tasks: Vec<_> = (0..80).map(|n| json!({ "capability": "nap", "payload": n })).collect();
    let answer = http::post(&format!("{api}/tasks/batch"), &json!({ "tasks": tasks })).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let ids = answer.body["tasks"].as_array().unwrap().iter();
    let ids: Vec<_> = ids.map(|task| task["id"].as_str().unwrap().to_owned()).collect();

    let grown = until("the pool is as large as it may be", LONG, &place, || {
        up.status(&place).filter(|status| workers(status).len() == 3)
    });
    let pool = &grown["pool"];
    assert_eq!((&pool["min"], &pool["max"]), (&json!(1), &json!(3)), "{pool:#}");
    assert!(pool["required"].as_u64().unwrap() >= 3, "{pool:#}");
    // Each of them is at work.
    until("three agents are registered", LONG, &place, || {
        let agents = http::get(&format!("{api}/agents?capability=nap")).ok()?;
        (agents.body["agents"].as_array()?.len() == 3).then_some(())
    });
    all_complete(&api, &ids, &place);
    let shrunk = until("the pool is as small as it may be", LONG, &place, || {
        up.status(&place).filter(|status| workers(status).len() == 1 && status["ready"] == true)
    });
    assert_eq!(shrunk["pool"]["wish"], 1, "{shrunk:#}");
    until("those that left are out of the registry", LONG, &place, || {
        let agents = http::get(&format!("{api}/agents?capability=nap")).ok()?;
        (agents.body["agents"].as_array()?.len() == 1).then_some(())
    });

    // Nobody was killed in the middle of a task, and nobody's leaving is an incident.
    for id in &ids {
        let task = http::get(&format!("{api}/tasks/{id}")).unwrap().body;
        assert_eq!(
            (&task["state"], &task["attempts"]),
            (&json!("completed"), &json!(1)),
            "{task:#}"
        );
    }
    assert_eq!(up.get(&place, "/v1/incidents"), Some(json!([])));
    up.process.stop(&place);
}
