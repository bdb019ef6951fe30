//! Workflows: what is written down, what follows, and what a second life of it finds.

use std::collections::BTreeMap;
use std::sync::Arc;

use resurgam_model::task::{Completion, Failure, Lease};
use resurgam_model::workflow::{
    ItemQuery, NewSignal, StepState, WorkflowDetail, WorkflowQuery, WorkflowState,
};
use resurgam_model::{InstanceId, Payload, WorkflowId};
use resurgam_store::workflows::{Advanced, Defined, NewWorkflow, Restored, Told};
use resurgam_store::{SharedStore, open};
use resurgam_workflow::Definition;
use serde_json::{Value, json};

use crate::fixture::{Fixture, HOUR, capability, lease_ref, register, wanted};
use crate::on_both;

on_both! {
    a_workflow_goes_from_start_to_end
    a_key_starts_one_workflow
    definitions_keep_their_meaning
    early_signals_wait_and_repeated_ones_do_not_count
    failure_undoes_in_reverse_and_a_retry_goes_on
    sub_workflows_report_fail_and_go_on
    cancelling_reaches_idle_tasks_and_sub_workflows
    ten_thousand_items_are_joined
    many_who_advance_at_once_do_no_harm
    a_checkpoint_brings_a_workflow_back_elsewhere
    finished_workflows_are_forgotten_with_all_of_them
    workflows_are_listed_in_pages
}

fn definition(toml: &str) -> Arc<Definition> {
    Arc::new(Definition::from_text(toml).unwrap_or_else(|error| panic!("{error}")))
}

async fn start(store: &SharedStore, toml: &str, input: Value) -> WorkflowId {
    let start = NewWorkflow {
        definition: definition(toml),
        input: Payload::from_json(input.to_string()).unwrap(),
        idempotency_key: None,
    };
    let id = store.start_workflow(&start).await.unwrap().id;
    settle(store).await;
    id
}

/// Advances whatever is due until nothing is.
async fn settle(store: &SharedStore) {
    loop {
        let due = store.due_workflows(100).await.unwrap();
        if due.is_empty() {
            return;
        }
        for id in due {
            store.advance_workflow(id, true).await.unwrap();
        }
    }
}

async fn get(store: &SharedStore, id: WorkflowId) -> WorkflowDetail {
    store.workflow(id).await.unwrap().unwrap()
}

/// Where the steps stand.
async fn states(store: &SharedStore, id: WorkflowId) -> BTreeMap<String, StepState> {
    get(store, id).await.steps.into_iter().map(|step| (step.step, step.state)).collect()
}

/// An agent for all tasks here.
struct Worker {
    instance: InstanceId,
}

impl Worker {
    async fn new(store: &SharedStore) -> Self {
        Self { instance: register(store, "worker").await }
    }

    async fn claim(&self, store: &SharedStore, max: u32) -> Vec<Lease> {
        let mut claim = wanted("worker", self.instance, max, HOUR);
        claim.capabilities = ["x", "y", "undo"].map(capability).to_vec();
        store.claim(&claim).await.unwrap()
    }

    /// Claims the only task that there is and gives its payload.
    async fn one(&self, store: &SharedStore) -> (Lease, Value) {
        let mut leases = self.claim(store, 2).await;
        assert_eq!(leases.len(), 1);
        let lease = leases.remove(0);
        let payload = serde_json::from_str(lease.payload.json()).unwrap();
        (lease, payload)
    }

    async fn complete(&self, store: &SharedStore, lease: &Lease, result: Value) {
        let result = Payload::from_json(result.to_string()).unwrap();
        store.complete(&[Completion { lease: lease_ref(lease), result }]).await.unwrap();
        settle(store).await;
    }

    async fn fail(&self, store: &SharedStore, lease: &Lease) {
        let failure = Failure { lease: lease_ref(lease), error: "broken".to_owned(), retry: false };
        store.fail(&[failure]).await.unwrap();
        settle(store).await;
    }

    /// Completes everything until there is nothing to claim; answers the payloads in order.
    async fn all(&self, store: &SharedStore) -> Vec<Value> {
        let mut seen = Vec::new();
        loop {
            let leases = self.claim(store, 200).await;
            if leases.is_empty() {
                return seen;
            }
            let done: Vec<_> = leases
                .iter()
                .map(|lease| Completion { lease: lease_ref(lease), result: lease.payload.clone() })
                .collect();
            seen.extend(
                leases.iter().map(|l| serde_json::from_str::<Value>(l.payload.json()).unwrap()),
            );
            store.complete(&done).await.unwrap();
            settle(store).await;
        }
    }
}

const STEPS: &str = r#"
    name = "steps"
    output = ["${steps.last.output}", "${input.n}"]
    [[steps]]
    id = "first"
    capability = "x"
    input = { n = "${input.n}" }
    priority = 3
    [[steps]]
    id = "each"
    capability = "x"
    needs = ["first"]
    for_each = "steps.first.output"
    max_parallel = 2
    input = "${item}"
    [[steps]]
    id = "wait"
    wait = { approval = "Go on?" }
    needs = ["each"]
    [[steps]]
    id = "last"
    capability = "x"
    needs = ["wait"]
    input = "${steps.each.output}"
"#;

async fn a_workflow_goes_from_start_to_end(fixture: Fixture) {
    let store = &fixture.store;
    let worker = Worker::new(store).await;
    let id = start(store, STEPS, json!({"n": 7})).await;
    let (lease, payload) = worker.one(store).await;
    assert_eq!(payload, json!({"n": 7}));
    let task = store.task(lease.task).await.unwrap().unwrap();
    assert_eq!(task.priority, 3);
    assert_eq!(task.workflow.unwrap().workflow, id);
    worker.complete(store, &lease, json!(["a", "b", "c"])).await;
    let leases = worker.claim(store, 10).await;
    assert_eq!(leases.len(), 2, "max_parallel");
    worker.complete(store, &leases[1], json!("B")).await;
    let (third, payload) = worker.one(store).await;
    assert_eq!(payload, json!("c"));
    worker.complete(store, &third, json!("C")).await;
    assert_eq!(get(store, id).await.workflow.state, WorkflowState::Running);
    worker.complete(store, &leases[0], json!("A")).await;
    assert_eq!(get(store, id).await.workflow.state, WorkflowState::Waiting);
    let items = store.workflow_step(id, "each", &ItemQuery::default()).await.unwrap();
    assert_eq!(items.len(), 4);
    assert_eq!(items[0].output.as_ref().unwrap().json(), r#"["A","B","C"]"#);
    assert_eq!((items[3].item, items[3].state), (Some(2), StepState::Completed));
    let after = ItemQuery { after: Some(1), limit: 5 };
    assert_eq!(store.workflow_step(id, "each", &after).await.unwrap().len(), 1);

    let yes = Payload::from_json(r#"{"approved":true}"#).unwrap();
    let signal = NewSignal { name: "wait".to_owned(), payload: yes, id: None };
    assert_eq!(store.signal_workflow(id, &signal).await.unwrap(), Told::Accepted);
    settle(store).await;
    let (last, payload) = worker.one(store).await;
    assert_eq!(payload, json!(["A", "B", "C"]));
    worker.complete(store, &last, json!("end")).await;
    let done = get(store, id).await;
    assert_eq!(done.workflow.state, WorkflowState::Completed);
    assert_eq!(done.output.unwrap().json(), r#"["end",7]"#);
    assert!(done.workflow.finished_at.is_some() && done.workflow.expires_at.is_some());
    assert_eq!(store.signal_workflow(id, &signal).await.unwrap(), Told::Refused);
    assert_eq!(store.cancel_workflow(id, "late").await.unwrap(), Told::Refused);
    assert_eq!(store.retry_workflow(id).await.unwrap(), Told::Refused);
    let unknown = WorkflowId::new();
    assert_eq!(store.cancel_workflow(unknown, "x").await.unwrap(), Told::Unknown);
    assert_eq!(store.advance_workflow(unknown, true).await.unwrap(), Advanced::Unknown);
}

async fn a_key_starts_one_workflow(fixture: Fixture) {
    let start = NewWorkflow {
        definition: definition(STEPS),
        input: Payload::from_json(r#"{"n":1}"#).unwrap(),
        idempotency_key: Some("once".to_owned()),
    };
    let first = fixture.start_workflow(&start).await.unwrap();
    let second = fixture.start_workflow(&start).await.unwrap();
    assert!(first.created && !second.created);
    assert_eq!(first.id, second.id);
}

async fn definitions_keep_their_meaning(fixture: Fixture) {
    let text = |version: u32, capability: &str| {
        definition(&format!(
            "name = 'd'\nversion = {version}\nsteps = [{{ id = 'a', capability = '{capability}' }}]"
        ))
    };
    assert_eq!(fixture.define(&text(1, "x")).await.unwrap(), Defined::Created);
    assert_eq!(fixture.define(&text(1, "x")).await.unwrap(), Defined::Same);
    assert_eq!(fixture.define(&text(1, "y")).await.unwrap(), Defined::Taken);
    assert_eq!(fixture.define(&text(2, "y")).await.unwrap(), Defined::Created);
    let latest = fixture.definition("d", None).await.unwrap().unwrap();
    assert_eq!(latest.version, 2);
    assert!(latest.definition.unwrap().json().contains(r#""capability":"y""#));
    assert_eq!(fixture.definition("d", Some(1)).await.unwrap().unwrap().version, 1);
    assert!(fixture.definition("d", Some(3)).await.unwrap().is_none());
    assert_eq!(fixture.definitions(None, 10).await.unwrap().len(), 2);
    assert_eq!(fixture.definitions(Some(("d", 1)), 10).await.unwrap().len(), 1);
}

async fn early_signals_wait_and_repeated_ones_do_not_count(fixture: Fixture) {
    let store = &fixture.store;
    let toml = r#"
        name = "signals"
        steps = [
            { id = "work", capability = "x" },
            { id = "one", wait = { signal = "go" }, needs = ["work"] },
            { id = "two", wait = { signal = "go" }, needs = ["one"] },
        ]"#;
    let worker = Worker::new(store).await;
    let id = start(store, toml, json!(null)).await;
    let signal = |id: Option<&str>| NewSignal {
        name: "go".to_owned(),
        payload: Payload::from_text("p"),
        id: id.map(str::to_owned),
    };
    for _ in 0..2 {
        assert_eq!(store.signal_workflow(id, &signal(Some("1"))).await.unwrap(), Told::Accepted);
    }
    worker.all(store).await;
    let at = states(store, id).await;
    assert_eq!((at["one"], at["two"]), (StepState::Completed, StepState::Waiting));
    store.signal_workflow(id, &signal(Some("1"))).await.unwrap();
    settle(store).await;
    assert_eq!(states(store, id).await["two"], StepState::Waiting);
    store.signal_workflow(id, &signal(None)).await.unwrap();
    settle(store).await;
    assert_eq!(get(store, id).await.workflow.state, WorkflowState::Completed);
}

async fn failure_undoes_in_reverse_and_a_retry_goes_on(fixture: Fixture) {
    let store = &fixture.store;
    let toml = r#"
        name = "undo"
        [[steps]]
        id = "kept"
        capability = "x"
        input = "kept"
        [[steps]]
        id = "each"
        capability = "x"
        needs = ["kept"]
        for_each = ["a", "b", "c"]
        input = "${item}"
        compensate = { capability = "undo", input = ["${item}", "${output}"] }
        [[steps]]
        id = "breaks"
        capability = "y"
        needs = ["each"]
    "#;
    let worker = Worker::new(store).await;
    let id = start(store, toml, json!(null)).await;
    let (kept, _) = worker.one(store).await;
    worker.complete(store, &kept, json!(1)).await;
    let leases = worker.claim(store, 5).await;
    for at in [1, 2, 0] {
        worker.complete(store, &leases[at], json!(at)).await;
    }
    let (breaks, _) = worker.one(store).await;
    worker.fail(store, &breaks).await;
    assert_eq!(get(store, id).await.workflow.state, WorkflowState::Compensating);
    let mut undone = Vec::new();
    for _ in 0..3 {
        let (lease, payload) = worker.one(store).await;
        undone.push(payload);
        worker.complete(store, &lease, json!(null)).await;
    }
    assert_eq!(undone, [json!(["a", 0]), json!(["c", 2]), json!(["b", 1])]);
    let failed = get(store, id).await;
    assert_eq!(failed.workflow.state, WorkflowState::Failed);
    assert_eq!(failed.workflow.error.as_deref(), Some("step breaks failed: broken"));
    assert_eq!(failed.steps[1].items.unwrap().undone, 3);

    assert_eq!(store.retry_workflow(id).await.unwrap(), Told::Accepted);
    settle(store).await;
    let seen = worker.all(store).await;
    assert_eq!(
        seen,
        [json!("a"), json!("b"), json!("c"), json!(null)],
        "what was kept is not done again"
    );
    let done = get(store, id).await;
    assert_eq!((done.workflow.state, done.workflow.run), (WorkflowState::Completed, 2));
}

async fn sub_workflows_report_fail_and_go_on(fixture: Fixture) {
    let store = &fixture.store;
    let child = r#"
        name = "child"
        output = "${steps.two.output}"
        input = { n = "integer" }
        steps = [
            { id = "one", capability = "x", input = "${input.n}" },
            { id = "two", capability = "y", needs = ["one"], input = "two" },
        ]"#;
    store.define(&definition(child)).await.unwrap();
    let parent = r#"
        name = "parent"
        output = "${steps.subs.output}"
        steps = [
            { id = "subs", workflow = "child", for_each = [1, 2], input = { n = "${item}" }, on_failure = "fail" },
            { id = "lost", workflow = "nowhere", on_failure = "continue" },
            { id = "bad", workflow = "child", on_failure = "continue" },
        ]"#;
    let worker = Worker::new(store).await;
    let id = start(store, parent, json!(null)).await;
    let detail = get(store, id).await;
    let error =
        |step: &str| detail.steps.iter().find(|s| s.step == step).unwrap().error.clone().unwrap();
    assert_eq!(error("lost"), "there is no workflow nowhere");
    assert_eq!(error("bad"), "workflow child: input n: it is missing");
    let ones = worker.claim(store, 5).await;
    assert_eq!(ones.len(), 2);
    for one in &ones {
        worker.complete(store, one, json!(null)).await;
    }
    let twos = worker.claim(store, 5).await;
    // Which of the two sub-workflows comes first is nobody's promise.
    let task = store.task(twos[0].task).await.unwrap().unwrap();
    let first = get(store, task.workflow.unwrap().workflow).await.workflow.parent.unwrap().step;
    worker.complete(store, &twos[0], json!("first")).await;
    worker.fail(store, &twos[1]).await;
    assert_eq!(get(store, id).await.workflow.state, WorkflowState::Failed);

    store.retry_workflow(id).await.unwrap();
    settle(store).await;
    // Only the step that failed is done again, in the same sub-workflow.
    assert_eq!(worker.all(store).await, [json!("two")]);
    let done = get(store, id).await;
    assert_eq!(done.workflow.state, WorkflowState::Completed);
    let expected = if first == "subs[0]" { r#"["first","two"]"# } else { r#"["two","first"]"# };
    assert_eq!(done.output.unwrap().json(), expected);
    let all = store.workflows(&WorkflowQuery::default()).await.unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!(all[1].parent.as_ref().unwrap().step, "subs[0]");
}

async fn cancelling_reaches_idle_tasks_and_sub_workflows(fixture: Fixture) {
    let store = &fixture.store;
    let child = "name = 'c'\nsteps = [{ id = 'a', capability = 'y' }]";
    store.define(&definition(child)).await.unwrap();
    let toml = r#"
        name = "p"
        steps = [
            { id = "sub", workflow = "c" },
            { id = "idle", capability = "z" },
            { id = "busy", capability = "x", compensate = { capability = "undo" } },
        ]"#;
    let worker = Worker::new(store).await;
    let id = start(store, toml, json!(null)).await;
    let mut claim = wanted("worker", worker.instance, 5, HOUR);
    claim.capabilities = vec![capability("x")];
    let busy = store.claim(&claim).await.unwrap();
    assert_eq!(store.cancel_workflow(id, "enough").await.unwrap(), Told::Accepted);
    settle(store).await;
    assert_eq!(get(store, id).await.workflow.state, WorkflowState::Compensating);
    // A try that fails now was the last one; this one ends well, and is undone.
    worker.complete(store, &busy[0], json!("b")).await;
    assert_eq!(worker.all(store).await, [json!("b")]);
    let done = get(store, id).await;
    assert_eq!(done.workflow.state, WorkflowState::Cancelled);
    assert_eq!(done.workflow.error.as_deref(), Some("enough"));
    let all = store.workflows(&WorkflowQuery::default()).await.unwrap();
    assert_eq!(all[1].state, WorkflowState::Cancelled);
    assert_eq!(states(store, id).await["busy"], StepState::Compensated);
}

async fn ten_thousand_items_are_joined(fixture: Fixture) {
    let store = &fixture.store;
    let toml = r#"
        name = "wide"
        output = "${length(steps.all.output)}"
        steps = [{ id = "all", capability = "x", for_each = "input", input = "${item}" }]"#;
    let worker = Worker::new(store).await;
    let id = start(store, toml, json!((0..10_000).collect::<Vec<_>>())).await;
    let mut seen = worker.all(store).await;
    seen.sort_by_key(Value::as_i64);
    assert_eq!(seen, (0..10_000).map(Value::from).collect::<Vec<_>>());
    let done = get(store, id).await;
    assert_eq!(done.workflow.state, WorkflowState::Completed);
    assert_eq!(done.output.unwrap().json(), "10000");
}

async fn many_who_advance_at_once_do_no_harm(fixture: Fixture) {
    let store = &fixture.store;
    let toml = r#"
        name = "many"
        output = "${steps.b.output}"
        steps = [
            { id = "a", capability = "x", for_each = "input", input = "${item}", max_parallel = 7 },
            { id = "b", capability = "x", needs = ["a"], input = "${steps.a.output}" },
        ]"#;
    let worker = Arc::new(Worker::new(store).await);
    let other = open(&fixture.settings).unwrap();
    let id = start(store, toml, json!((0..60).collect::<Vec<_>>())).await;
    let mut busy = tokio::task::JoinSet::new();
    for n in 0..6 {
        let store = if n % 2 == 0 { Arc::clone(store) } else { Arc::clone(&other) };
        let worker = Arc::clone(&worker);
        busy.spawn(async move {
            while get(&store, id).await.workflow.state != WorkflowState::Completed {
                for lease in worker.claim(&store, 2).await {
                    let result = lease.payload.clone();
                    let done = Completion { lease: lease_ref(&lease), result };
                    store.complete(&[done]).await.unwrap();
                }
                store.advance_workflow(id, n % 3 == 0).await.unwrap();
            }
        });
    }
    while let Some(ended) = busy.join_next().await {
        ended.unwrap();
    }
    let expected: Vec<_> = (0..60).collect();
    let output = get(store, id).await.output.unwrap();
    assert_eq!(serde_json::from_str::<Vec<i64>>(output.json()).unwrap(), expected);
    let counts = store.task_counts(resurgam_store::Counted::All).await.unwrap();
    assert_eq!(counts[0].1.completed, 61, "no task was there twice");
}

async fn a_checkpoint_brings_a_workflow_back_elsewhere(fixture: Fixture) {
    let store = &fixture.store;
    let child = "name = 'c'\noutput = 5\nsteps = [{ id = 'a', capability = 'y', input = 'child' }]";
    store.define(&definition(child)).await.unwrap();
    let toml = r#"
        name = "back"
        output = ["${steps.each.output}", "${steps.sub.output}", "${steps.wait.output}"]
        steps = [
            { id = "each", capability = "x", for_each = [1, 2, 3], input = "${item}", max_parallel = 2 },
            { id = "sub", workflow = "c" },
            { id = "wait", wait = { signal = "go" }, needs = ["each"] },
        ]"#;
    let worker = Worker::new(store).await;
    let id = start(store, toml, json!(null)).await;
    let leases = worker.claim(store, 5).await;
    let first = leases.iter().find(|lease| lease.payload.json() == "1").unwrap();
    let done = Completion { lease: lease_ref(first), result: Payload::from_text("one") };
    // Completed, but nobody has taken note of it: it must not be lost either.
    store.complete(&[done]).await.unwrap();
    let signal = NewSignal {
        name: "go".to_owned(),
        payload: Payload::from_text("early"),
        id: Some("s".to_owned()),
    };
    store.signal_workflow(id, &signal).await.unwrap();
    let children = store.workflows(&WorkflowQuery::default()).await.unwrap();
    let mut files = Vec::new();
    for workflow in &children {
        let checkpoint = store.checkpoint(workflow.id).await.unwrap().unwrap();
        files.push(serde_json::to_string(&checkpoint).unwrap());
    }
    assert_eq!(files.len(), 2);

    let elsewhere = match store.kind() {
        "sqlite" => crate::fixture::postgres().await,
        _ => crate::fixture::sqlite().await,
    };
    let there = &elsewhere.store;
    for file in &files {
        let checkpoint = serde_json::from_str(file).unwrap();
        assert_eq!(there.restore(&checkpoint).await.unwrap(), Restored::Restored);
        let again = there.restore(&checkpoint).await.unwrap();
        assert!(matches!(again, Restored::Kept { .. }), "{again:?}");
    }
    for workflow in &children {
        there.reconnect(workflow.id).await.unwrap();
    }
    settle(there).await;
    let worker = Worker::new(there).await;
    let mut seen = worker.all(there).await;
    seen.sort_by_key(Value::to_string);
    assert_eq!(seen, [json!("child"), json!(2), json!(3)], "what was done is not done again");
    let done = get(there, id).await;
    assert_eq!(done.workflow.state, WorkflowState::Completed);
    assert_eq!(done.output.unwrap().json(), r#"[["one",2,3],5,"early"]"#);
    assert!(there.definition("c", None).await.unwrap().is_some());
}

async fn finished_workflows_are_forgotten_with_all_of_them(fixture: Fixture) {
    let store = &fixture.store;
    store
        .define(&definition("name = 'c'\nsteps = [{ id = 'a', capability = 'x' }]"))
        .await
        .unwrap();
    let toml = "name = 'p'\nkeep = '0s'\nsteps = [{ id = 'sub', workflow = 'c' }]";
    let worker = Worker::new(store).await;
    let kept = start(store, "name = 'k'\nsteps = [{ id = 'a', capability = 'x' }]", json!(1)).await;
    let id = start(store, toml, json!(null)).await;
    assert_eq!(store.expire_workflows(10).await.unwrap(), 0);
    worker.all(store).await;
    assert_eq!(store.workflows(&WorkflowQuery::default()).await.unwrap().len(), 3);
    assert_eq!(store.expire_workflows(10).await.unwrap(), 1);
    let left = store.workflows(&WorkflowQuery::default()).await.unwrap();
    assert_eq!(left.iter().map(|w| w.id).collect::<Vec<_>>(), [kept]);
    assert!(store.workflow(id).await.unwrap().is_none());
    let known = store.known_workflows(&[id, kept]).await.unwrap();
    assert_eq!(known.into_iter().collect::<Vec<_>>(), [kept]);
}

async fn workflows_are_listed_in_pages(fixture: Fixture) {
    let store = &fixture.store;
    let mut ids = Vec::new();
    for n in 0..5 {
        let name = if n % 2 == 0 { "even" } else { "odd" };
        let toml = format!("name = '{name}'\nsteps = [{{ id = 'a', wait = {{ signal = 's' }} }}]");
        ids.push(start(store, &toml, json!(n)).await);
    }
    store.cancel_workflow(ids[1], "x").await.unwrap();
    settle(store).await;
    let list = async |query: WorkflowQuery| -> Vec<WorkflowId> {
        store.workflows(&query).await.unwrap().into_iter().map(|workflow| workflow.id).collect()
    };
    assert_eq!(list(WorkflowQuery::default()).await, ids);
    let odd = WorkflowQuery { name: Some("odd".to_owned()), ..WorkflowQuery::default() };
    assert_eq!(list(odd.clone()).await, [ids[1], ids[3]]);
    let waiting = WorkflowQuery { state: Some(WorkflowState::Waiting), ..odd };
    assert_eq!(list(waiting).await, [ids[3]]);
    let page = WorkflowQuery { after: Some(ids[1]), limit: 2, ..WorkflowQuery::default() };
    assert_eq!(list(page).await, [ids[2], ids[3]]);
    let since = store.workflow(ids[0]).await.unwrap().unwrap().workflow.created_at;
    let changed = store.changed_workflows(since, None, 100).await.unwrap();
    assert_eq!(changed.len(), 5);
    let rest = store
        .changed_workflows(since, Some((changed[1].changed_at, changed[1].id)), 100)
        .await
        .unwrap();
    assert_eq!(rest, changed[2..]);
}
