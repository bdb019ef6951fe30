//! Random sequences of operations, beside a model that is too simple to be wrong.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use resurgam_model::agent::HeartbeatTerms;
use resurgam_model::task::{Change, LeaseRef, Outcome, TaskQuery, TaskState, Token};
use resurgam_model::{InstanceId, TaskId};
use resurgam_store::{LeasesOf, SharedStore};

use crate::fixture::{
    self, Fixture, HOUR, NOTHING, agent, capability, completion, failure, registration, task,
    wanted,
};

#[derive(Clone, Debug)]
enum Step {
    Submit { kind: usize, priority: i16, max_attempts: u32, waits: bool, key: Option<u8> },
    Claim { agent: usize, old_life: bool, kinds: Vec<usize>, max: u32, expired: bool },
    Extend { task: usize, late: bool, expired: bool },
    Complete { task: usize, late: bool },
    Fail { task: usize, late: bool, retry: bool },
    Cancel { task: usize },
    Requeue { task: usize },
    ReturnExpired,
    ReturnLeases { agent: usize, earlier: bool },
    Register { agent: usize, new_life: bool },
    Deregister { agent: usize },
    Expire,
}

const KINDS: [&str; 2] = ["x", "y"];
const AGENTS: [&str; 2] = ["a", "b"];

fn step() -> impl Strategy<Value = Step> {
    let task = 0..12_usize;
    let yes = any::<bool>;
    let rare = || prop::bool::weighted(0.2);
    prop_oneof![
        5 => (0..2_usize, -1..2_i16, 1..4_u32, rare(), prop::option::weighted(0.4, 0..3_u8))
            .prop_map(|(kind, priority, max_attempts, waits, key)| {
                Step::Submit { kind, priority, max_attempts, waits, key }
            }),
        6 => (0..2_usize, rare(), prop::collection::vec(0..2_usize, 0..4), 0..4_u32, yes())
            .prop_map(|(agent, old_life, kinds, max, expired)| {
                Step::Claim { agent, old_life, kinds, max, expired }
            }),
        2 => (task.clone(), rare(), yes())
            .prop_map(|(task, late, expired)| Step::Extend { task, late, expired }),
        4 => (task.clone(), rare()).prop_map(|(task, late)| Step::Complete { task, late }),
        4 => (task.clone(), rare(), yes())
            .prop_map(|(task, late, retry)| Step::Fail { task, late, retry }),
        1 => task.clone().prop_map(|task| Step::Cancel { task }),
        2 => task.prop_map(|task| Step::Requeue { task }),
        3 => Just(Step::ReturnExpired),
        1 => (0..2_usize, yes()).prop_map(|(agent, earlier)| Step::ReturnLeases { agent, earlier }),
        3 => (0..2_usize, yes()).prop_map(|(agent, new_life)| Step::Register { agent, new_life }),
        1 => (0..2_usize).prop_map(|agent| Step::Deregister { agent }),
        1 => Just(Step::Expire),
    ]
}

#[derive(Clone, Debug)]
struct ModelTask {
    id: TaskId,
    kind: usize,
    priority: i16,
    max_attempts: u32,
    waits: bool,
    key: Option<u8>,
    state: TaskState,
    attempts: u32,
    token: i64,
    failed_token: i64,
    /// By whom, in which life, and whether the lease is over.
    held: Option<(usize, InstanceId, bool)>,
    /// Whose lease was the last one, once the task is over.
    last_held: Option<usize>,
}

/// What a claim takes of the tasks that are ready, which are in the order of their queue.
fn in_turns<'m>(
    ready: Vec<&'m mut ModelTask>,
    kinds: &[usize],
    max: usize,
) -> Vec<&'m mut ModelTask> {
    let mut turns = kinds.to_vec();
    turns.dedup();
    if let [first, .., last] = turns[..]
        && first == last
    {
        turns.pop();
    }
    let mut queues: Vec<Vec<_>> = turns.iter().map(|_| Vec::new()).collect();
    for task in ready.into_iter().rev() {
        let turn = turns.iter().position(|kind| *kind == task.kind).unwrap();
        queues[turn].push(task);
    }
    let share = max.div_ceil(turns.len().max(1));
    let mut taken = Vec::new();
    for most in [share, max] {
        for queue in &mut queues {
            let count = most.min(max - taken.len()).min(queue.len());
            taken.extend(queue.drain(queue.len() - count..).rev());
        }
    }
    taken
}

#[derive(Default)]
struct Model {
    tasks: Vec<ModelTask>,
    /// Present life and whether it is available.
    agents: [Option<(InstanceId, bool)>; 2],
    letters: Vec<(TaskId, TaskState)>,
}

impl Model {
    fn take_back(&mut self, which: impl Fn((usize, InstanceId, bool)) -> bool) -> u64 {
        let mut taken = 0;
        for task in &mut self.tasks {
            if task.held.is_some_and(&which) {
                taken += 1;
                let held = task.held.take();
                task.state = TaskState::Ready;
                if task.attempts >= task.max_attempts {
                    task.state = TaskState::Dead;
                    task.last_held = held.map(|(who, ..)| who);
                    self.letters.push((task.id, TaskState::Dead));
                }
            }
        }
        taken
    }

    /// The task, its lease as the step names it, and whether it is the present one.
    fn word(&mut self, task: usize, late: bool) -> (LeaseRef, Option<&mut ModelTask>) {
        match self.tasks.get_mut(task) {
            None => (fixture::no_lease(), None),
            Some(task) => {
                let token = Token(task.token - i64::from(late));
                (LeaseRef { task: task.id, token }, Some(task))
            }
        }
    }
}

/// Does the step in both and compares the answers.
#[allow(clippy::too_many_lines, reason = "one arm for each operation")]
async fn take(step: &Step, model: &mut Model, store: &SharedStore) {
    match step.clone() {
        Step::Submit { kind, priority, max_attempts, waits, key } => {
            let mut new = task(KINDS[kind]);
            new.priority = priority;
            new.retry.max_attempts = max_attempts;
            new.retry.backoff = if waits { HOUR } else { NOTHING };
            new.idempotency_key = key.map(|key| key.to_string());
            new.reply_to = Some(agent("boss"));
            let submitted = store.submit(&[new]).await.unwrap()[0];
            match model.tasks.iter().find(|t| key.is_some() && t.key == key) {
                Some(known) => assert_eq!((submitted.id, submitted.created), (known.id, false)),
                None => {
                    assert!(submitted.created);
                    model.tasks.push(ModelTask {
                        id: submitted.id,
                        kind,
                        priority,
                        max_attempts,
                        waits,
                        key,
                        state: TaskState::Ready,
                        attempts: 0,
                        token: 0,
                        failed_token: 0,
                        held: None,
                        last_held: None,
                    });
                }
            }
        }
        Step::Claim { agent: who, old_life, kinds, max, expired } => {
            let life = model.agents[who].filter(|_| !old_life);
            let instance = life.map_or_else(InstanceId::new, |(instance, _)| instance);
            let mut claim =
                wanted(AGENTS[who], instance, max, if expired { NOTHING } else { HOUR });
            claim.capabilities = kinds.iter().map(|kind| capability(KINDS[*kind])).collect();
            let leases = store.claim(&claim).await;
            if !life.is_some_and(|(_, available)| available) {
                assert!(leases.is_err());
                return;
            }
            let mut ready: Vec<_> = model
                .tasks
                .iter_mut()
                .filter(|t| t.state == TaskState::Ready && kinds.contains(&t.kind))
                .collect();
            ready.sort_by_key(|t| -t.priority);
            let mut expected = Vec::new();
            for task in in_turns(ready, &kinds, max.try_into().unwrap()) {
                task.state = TaskState::Running;
                task.attempts += 1;
                task.token += 1;
                task.held = Some((who, instance, expired));
                expected.push((task.id, Token(task.token), task.attempts));
            }
            let leases: Vec<_> =
                leases.unwrap().iter().map(|l| (l.task, l.token, l.attempt)).collect();
            assert_eq!(leases, expected);
        }
        Step::Extend { task, late, expired } => {
            let (lease, task) = model.word(task, late);
            let expected = match task {
                None => Outcome::Unknown,
                Some(task) if task.state == TaskState::Running && !late => {
                    task.held = task.held.map(|(who, life, _)| (who, life, expired));
                    Outcome::Accepted
                }
                Some(_) => Outcome::Stale,
            };
            let length = if expired { NOTHING } else { HOUR };
            assert_eq!(store.extend(&[lease], length).await.unwrap(), [expected]);
        }
        Step::Complete { task, late } => {
            let (lease, task) = model.word(task, late);
            let mut letter = None;
            let expected = match task {
                None => Outcome::Unknown,
                Some(task) if task.state == TaskState::Running && !late => {
                    task.last_held = task.held.take().map(|(who, ..)| who);
                    task.state = TaskState::Completed;
                    letter = Some((task.id, TaskState::Completed));
                    Outcome::Accepted
                }
                Some(task) if task.state == TaskState::Completed && !late => Outcome::Accepted,
                Some(_) => Outcome::Stale,
            };
            model.letters.extend(letter);
            assert_eq!(store.complete(&[completion(lease)]).await.unwrap(), [expected]);
        }
        Step::Fail { task, late, retry } => {
            let (lease, task) = model.word(task, late);
            let mut letter = None;
            let expected = match task {
                None => Outcome::Unknown,
                Some(task) if task.state == TaskState::Running && !late => {
                    let held = task.held.take();
                    task.failed_token = task.token;
                    if retry && task.attempts < task.max_attempts {
                        task.state =
                            if task.waits { TaskState::Scheduled } else { TaskState::Ready };
                    } else {
                        task.state = TaskState::Dead;
                        task.last_held = held.map(|(who, ..)| who);
                        letter = Some((task.id, TaskState::Dead));
                    }
                    Outcome::Accepted
                }
                Some(task) if !late && task.token > 0 && task.failed_token == task.token => {
                    Outcome::Accepted
                }
                Some(_) => Outcome::Stale,
            };
            model.letters.extend(letter);
            assert_eq!(store.fail(&[failure(lease, retry)]).await.unwrap(), [expected]);
        }
        Step::Cancel { task } => {
            let (lease, task) = model.word(task, false);
            let mut letter = None;
            let expected = match task {
                None => Change::Unknown,
                Some(task) if task.state.is_final() => Change::Unchanged,
                Some(task) => {
                    task.last_held = task.held.take().map(|(who, ..)| who);
                    task.state = TaskState::Cancelled;
                    letter = Some((task.id, TaskState::Cancelled));
                    Change::Changed
                }
            };
            model.letters.extend(letter);
            assert_eq!(store.cancel(&[lease.task], "on a whim").await.unwrap(), [expected]);
        }
        Step::Requeue { task } => {
            let (lease, task) = model.word(task, false);
            let expected = match task {
                None => Change::Unknown,
                Some(task) if matches!(task.state, TaskState::Dead | TaskState::Cancelled) => {
                    task.state = TaskState::Ready;
                    (task.attempts, task.failed_token, task.last_held) = (0, 0, None);
                    Change::Changed
                }
                Some(_) => Change::Unchanged,
            };
            assert_eq!(store.requeue(&[lease.task]).await.unwrap(), [expected]);
        }
        Step::ReturnExpired => {
            let expected = model.take_back(|(_, _, expired)| expired);
            assert_eq!(store.return_expired(100).await.unwrap(), expected);
        }
        Step::ReturnLeases { agent: who, earlier } => {
            let life = model.agents[who].map_or_else(InstanceId::new, |(life, _)| life);
            let expected = model.take_back(|(a, held, _)| a == who && (held == life) != earlier);
            let whose = if earlier { LeasesOf::EarlierLives(life) } else { LeasesOf::Life(life) };
            let returned = store.return_leases(&agent(AGENTS[who]), whose).await.unwrap();
            assert_eq!(returned, expected);
        }
        Step::Register { agent: who, new_life } => {
            let known = model.agents[who].filter(|_| !new_life);
            let life = known.map_or_else(InstanceId::new, |(life, _)| life);
            model.agents[who] = Some((life, true));
            let expected = model.take_back(|(a, held, _)| a == who && held != life);
            let terms = HeartbeatTerms { every: NOTHING, expire_after: NOTHING };
            let registration = registration(AGENTS[who], life);
            let registered = store.register_under(&registration, &terms).await.unwrap();
            assert_eq!(registered.leases_returned, expected);
        }
        Step::Deregister { agent: who } => {
            if let Some((life, _)) = model.agents[who].take() {
                model.take_back(|(a, held, _)| a == who && held == life);
                store.deregister(&agent(AGENTS[who]), life).await.unwrap();
            }
        }
        Step::Expire => {
            let mut gone = Vec::new();
            for (who, name) in AGENTS.iter().enumerate() {
                if let Some((life, available @ true)) = &mut model.agents[who] {
                    *available = false;
                    let life = *life;
                    model.take_back(|(a, held, _)| a == who && held == life);
                    gone.push(agent(name));
                }
            }
            assert_eq!(store.expire(HOUR, HOUR, 100).await.unwrap().gone, gone);
        }
    }
}

async fn compare(model: &Model, store: &SharedStore) {
    let found = store.tasks(&TaskQuery { limit: 1000, ..TaskQuery::default() }).await.unwrap();
    let found: Vec<_> = found
        .into_iter()
        .map(|t| (t.id, t.state, t.attempts, t.token, t.held_by, t.finished_at.is_some()))
        .collect();
    let expected: Vec<_> = model
        .tasks
        .iter()
        .map(|t| {
            let held = t.held.map(|(who, ..)| who).or(t.last_held).map(|who| agent(AGENTS[who]));
            (t.id, t.state, t.attempts, Token(t.token), held, t.state.is_final())
        })
        .collect();
    assert_eq!(found, expected);
}

async fn run(steps: Vec<Step>, store: Fixture) {
    let mut model = Model::default();
    for step in &steps {
        take(step, &mut model, &store).await;
        compare(&model, &store).await;
    }
    let boss = agent("boss");
    let letters = store.receive(&boss, None, 1000).await.unwrap();
    let mut told: Vec<_> = letters
        .iter()
        .map(|letter| {
            let body: serde_json::Value = serde_json::from_str(letter.body.json()).unwrap();
            assert_eq!(letter.kind, format!("task.{}", body["state"].as_str().unwrap()));
            (body["task"].as_str().unwrap().to_owned(), letter.kind.clone())
        })
        .collect();
    let mut expected: Vec<_> = model
        .letters
        .iter()
        .map(|(task, state)| (task.to_string(), format!("task.{}", state.as_str())))
        .collect();
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
}

fn check(cases: u32, fixture: impl AsyncFn() -> Fixture) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..50), |steps| {
            runtime.block_on(async { run(steps, fixture().await).await });
            Ok(())
        })
        .unwrap();
}

#[test]
fn sqlite_does_what_the_model_does() {
    check(96, fixture::sqlite);
}

#[test]
fn postgresql_does_what_the_model_does() {
    check(24, fixture::postgres);
}
