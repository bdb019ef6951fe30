//! The worker over a queue in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use resurgam_client::worker::{
    Cancelled, Error, Handler, HandlerError, Job, Worker, handler, result,
};
use resurgam_model::{AgentId, Duration, Payload};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::memory::{Memory, capability};

fn new() -> Worker {
    Worker::new(AgentId::new("w").unwrap()).lease(Duration::from_millis(300))
}

/// A worker that runs; dropping it is like killing one.
struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    fn start(worker: Worker, queue: &Memory) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let shutdown = async move { drop(stopped.wait_for(|stop| *stop).await) };
        let task = tokio::spawn(worker.run(queue.clone(), shutdown));
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn numbers(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| number.to_string())
}

fn echo() -> impl Handler {
    handler(|job: Job| async move { Ok(job.payload().clone()) })
}

/// Work that takes until it is let go.
fn held() -> (watch::Sender<bool>, impl Handler) {
    let (go, gone) = watch::channel(false);
    let handler = handler(move |job: Job| {
        let mut gone = gone.clone();
        async move {
            let _ = gone.wait_for(|gone| *gone).await;
            Ok(job.payload().clone())
        }
    });
    (go, handler)
}

#[tokio::test]
async fn each_capability_has_its_handler() {
    let queue = Memory::new();
    queue.submit("length", ["\"four\"".to_owned(), "4".to_owned()]);
    queue.submit("echo", numbers(1));
    let length = handler(|job: Job| async move { result(&job.parse::<String>()?.len()) });
    let worker = new().on(capability("length"), length).on(capability("echo"), echo());
    let running = Running::start(worker, &queue);
    queue.until(|inner| inner.completed.len() == 2 && inner.failed.len() == 1).await;
    queue.with(|inner| {
        let mut results: Vec<_> = inner.completed.values().map(Payload::json).collect();
        results.sort_unstable();
        assert_eq!(results, ["0", "4"]);
        let failure = &inner.failed[0];
        assert!(!failure.retry && failure.error.contains("payload cannot be read"), "{failure:?}");
        assert_eq!(inner.registrations[0].capabilities, ["echo", "length"].map(capability));
    });
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_tasks_are_claimed_and_reported_in_batches() {
    const TASKS: usize = 20_000;
    let queue = Memory::new();
    queue.submit("x", numbers(TASKS));
    let running = Running::start(new().on(capability("x"), echo()).concurrency(8), &queue);
    queue.until(|inner| inner.completed.len() == TASKS).await;
    running.stop().await;
    queue.with(|inner| {
        assert!(inner.claims.len() < TASKS / 16, "{} claims", inner.claims.len());
        assert!(inner.most_running > 8, "nothing was taken ahead");
        assert!(inner.failed.is_empty());
    });
}

#[tokio::test]
async fn long_tasks_are_left_to_others() {
    let queue = Memory::new();
    queue.submit("x", numbers(100));
    let (go, handler) = held();
    let running = Running::start(new().on(capability("x"), handler).concurrency(3), &queue);
    queue.until(|inner| inner.running.len() == 3).await;
    // As long as it takes to extend the leases twice.
    let seen = Arc::new(AtomicUsize::new(0));
    let beats = Arc::clone(&seen);
    queue.until(move |_| beats.fetch_add(1, Ordering::Relaxed) > 15).await;
    queue.with(|inner| assert_eq!(inner.most_running, 3));
    go.send(true).unwrap();
    queue.until(|inner| inner.completed.len() == 100).await;
    running.stop().await;
}

#[tokio::test]
async fn results_wait_in_bounded_room_while_the_queue_is_mute() {
    let queue = Memory::new();
    queue.with(|inner| inner.mute = true);
    queue.submit("x", numbers(1000));
    let large = handler(|_: Job| async { Ok(Payload::from_text(&"x".repeat(1000))) });
    let worker = new().on(capability("x"), large).concurrency(4).buffer(10_000);
    let running = Running::start(worker, &queue);
    queue.until(|inner| !inner.batches.is_empty()).await;
    let seen = Arc::new(AtomicUsize::new(0));
    let beats = Arc::clone(&seen);
    queue.until(move |_| beats.fetch_add(1, Ordering::Relaxed) > 30).await;
    let begun = queue.with(|inner| {
        assert!(inner.completed.is_empty());
        inner.most_running
    });
    assert!(begun < 1000, "{begun} were begun with room for 10 results");
    queue.with(|inner| inner.mute = false);
    queue.until(|inner| inner.completed.len() == 1000).await;
    running.stop().await;
}

#[tokio::test]
async fn results_outlast_an_outage_after_which_the_agent_was_forgotten() {
    let queue = Memory::new();
    queue.submit("x", numbers(4));
    let (go, handler) = held();
    let running = Running::start(new().on(capability("x"), handler), &queue);
    queue.until(|inner| inner.running.len() == 4).await;
    queue.with(|inner| inner.away = true);
    go.send(true).unwrap();
    queue.with(|inner| (inner.away, inner.forgot) = (false, true));
    queue.until(|inner| inner.completed.len() == 4 && inner.registrations.len() >= 2).await;
    queue.submit("x", numbers(1));
    queue.until(|inner| inner.completed.len() == 5).await;
    queue.with(|inner| {
        let first = &inner.registrations[0];
        assert!(inner.registrations.iter().all(|again| again == first));
    });
    running.stop().await;
}

#[tokio::test]
async fn what_a_claim_took_whose_answer_was_lost_is_worked_on() {
    let queue = Memory::new();
    queue.with(|inner| inner.lost_answers = 2);
    queue.submit("x", numbers(6));
    let running = Running::start(new().on(capability("x"), echo()).concurrency(3), &queue);
    queue.until(|inner| inner.completed.len() == 6).await;
    queue.with(|inner| {
        assert_eq!(inner.lost_answers, 0);
        assert!(inner.running.is_empty());
    });
    running.stop().await;
}

/// Tells why its work was not wanted any more.
fn telling(tell: watch::Sender<Vec<Cancelled>>) -> impl Handler {
    let tell = Arc::new(tell);
    handler(move |job: Job| {
        let tell = Arc::clone(&tell);
        let cancellation = job.cancellation();
        // In a thread of its own: the future is dropped, the thread is not.
        std::thread::spawn(move || {
            let reason = loop {
                match cancellation.reason() {
                    Some(reason) => break reason,
                    None => std::thread::yield_now(),
                }
            };
            tell.send_modify(|all| all.push(reason));
        });
        let mut cancellation = job.cancellation();
        async move {
            match cancellation.requested().await {
                Cancelled::Shutdown => result(&"checkpoint"),
                Cancelled::LeaseLost => Err(HandlerError::retry("lost")),
            }
        }
    })
}

async fn told(told: &mut watch::Receiver<Vec<Cancelled>>, what: &[Cancelled]) {
    let wait = told.wait_for(|all| all == what);
    tokio::time::timeout(std::time::Duration::from_secs(30), wait).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_handler_learns_that_its_lease_was_lost_or_the_worker_ends() {
    let queue = Memory::new();
    queue.submit("x", numbers(1));
    let (tell, mut heard) = watch::channel(Vec::new());
    let worker = new().on(capability("x"), telling(tell)).concurrency(1);
    let running = Running::start(worker, &queue);
    queue.until(|inner| inner.running.len() == 1).await;
    queue.take_back();
    told(&mut heard, &[Cancelled::LeaseLost]).await;
    // It is given the task again, and ends it early when the worker is to end.
    queue.until(|inner| inner.running.values().any(|lease| lease.attempt == 2)).await;
    running.stop().await;
    told(&mut heard, &[Cancelled::LeaseLost, Cancelled::Shutdown]).await;
    queue.with(|inner| {
        assert!(inner.failed.is_empty(), "what is lost is not reported");
        assert_eq!(inner.completed.values().next().unwrap().json(), "\"checkpoint\"");
    });
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let run = async |worker: Worker| worker.run(Memory::new(), async {}).await;
    let with = || new().on(capability("x"), echo());
    for worker in [
        new(),
        with().concurrency(0),
        with().concurrency(1001),
        with().lease(Duration::from_millis(99)),
        with().buffer(0),
    ] {
        assert!(matches!(run(worker).await, Err(Error::Settings(_))));
    }
    run(with()).await.unwrap();
}
