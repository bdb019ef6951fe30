//! The one thread that writes, and how many requests share one commit.
//!
//! A commit costs a flush of the disk, a request a few microseconds. So the thread takes what
//! has queued up while the last commit was under way, runs each request inside a savepoint of
//! one transaction, commits once and only then answers.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::fault::{Fault, copy, failed};
use crate::{Error, Meters, Result};

/// Most requests in one transaction.
const BATCH: usize = 512;

/// A transaction takes no further requests after so long, so that other processes get their turn.
const BATCH_TIME: Duration = Duration::from_millis(50);

/// Tells the caller, once it is known how the commit ended.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

/// A request. Given a reason why it cannot be run, it passes that on. The flag says whether
/// what it did is to be kept.
type Job = Box<dyn FnOnce(Result<&Connection>) -> (Answer, bool) + Send>;

/// The way to the thread. The thread ends when this is dropped.
pub(super) struct Writer {
    jobs: Sender<Job>,
    meters: Arc<Meters>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(connection: Connection, meters: Arc<Meters>) -> Result<Self> {
        let (jobs, queue) = channel();
        let counted = Arc::clone(&meters);
        std::thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || work(&connection, &queue, &counted))
            .map_err(|error| Error::Settings(format!("cannot start the writer thread: {error}")))?;
        Ok(Self { jobs, meters })
    }

    /// Runs a request and waits until it is durable. A caller that stops waiting does not stop
    /// the request.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        request: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let began = Instant::now();
        let (tell, told) = oneshot::channel();
        let meters = Arc::clone(&self.meters);
        let job: Job = Box::new(move |connection| {
            meters.writer_queue.dec();
            let result = match connection {
                Ok(connection) => request(connection).map_err(|fault| fault.during(action)),
                Err(error) => Err(error),
            };
            let keep = result.is_ok();
            let answer: Answer = Box::new(move |committed| {
                // Nobody listens any more when the caller has gone away: that is its affair.
                let _ = tell.send(result.and_then(|value| committed.map(|()| value)));
            });
            (answer, keep)
        });
        self.meters.writer_queue.inc();
        self.jobs.send(job).map_err(|_| Error::Closed)?;
        let result = told.await.map_err(|_| Error::Closed).flatten();
        self.meters.outcome(action, began, &result);
        result
    }
}

fn work(connection: &Connection, queue: &Receiver<Job>, meters: &Meters) {
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match queue.recv() {
                Ok(job) => waiting.push_back(job),
                Err(_) => return,
            }
        }
        commit_together(connection, queue, &mut waiting, meters);
    }
}

/// One transaction. Requests that could not be run because the transaction broke before their
/// turn stay in `waiting`.
fn commit_together(
    connection: &Connection,
    queue: &Receiver<Job>,
    waiting: &mut VecDeque<Job>,
    meters: &Meters,
) {
    if let Err(error) = execute(connection, "BEGIN IMMEDIATE") {
        // All that have queued up meanwhile would only wait out the same lock one by one.
        waiting.extend(queue.try_iter().take(BATCH));
        for job in waiting.drain(..) {
            let (answer, _) = job(Err(copy(&error, "begin a transaction")));
            answer(Ok(()));
        }
        return;
    }
    let began = Instant::now();
    let mut answers: Vec<Answer> = Vec::new();
    let mut broken = None;
    while answers.len() < BATCH && began.elapsed() < BATCH_TIME {
        let Some(job) = waiting.pop_front().or_else(|| queue.try_recv().ok()) else { break };
        match run_in_savepoint(connection, job) {
            Ok(Some(answer)) => answers.push(answer),
            Ok(None) => {}
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    let ended = match broken {
        None => execute(connection, "COMMIT"),
        Some(error) => Err(error),
    };
    meters.writer_batch.observe_size(answers.len());
    if let Err(error) = &ended {
        tracing::warn!(%error, requests = answers.len(), "a SQLite transaction failed");
        if !connection.is_autocommit() {
            // Fails only if the transaction has ended by itself, which is what is wanted.
            let _ = execute(connection, "ROLLBACK");
        }
    }
    for answer in answers {
        answer(match &ended {
            Ok(()) => Ok(()),
            Err(error) => Err(copy(error, "commit")),
        });
    }
}

/// Runs one request. `Ok(None)`: it left nothing to commit and has its answer. `Err`: the whole
/// transaction is over; SQLite ends it by itself after some errors, such as a full disk.
fn run_in_savepoint(connection: &Connection, job: Job) -> Result<Option<Answer>, rusqlite::Error> {
    execute(connection, "SAVEPOINT request")?;
    let ran = catch_unwind(AssertUnwindSafe(|| job(Ok(connection))));
    let (answer, keep) = match ran {
        Ok((answer, keep)) => (Some(answer), keep),
        // The caller's channel was dropped in unwinding, so it knows. The others go on.
        Err(_) => {
            tracing::error!("a request to SQLite panicked; it was rolled back");
            (None, false)
        }
    };
    if keep {
        execute(connection, "RELEASE request")?;
        return Ok(answer);
    }
    if let Some(answer) = answer {
        answer(Ok(()));
    }
    if connection.is_autocommit() {
        return Err(failed("the transaction was rolled back"));
    }
    execute(connection, "ROLLBACK TO request")?;
    execute(connection, "RELEASE request")?;
    Ok(None)
}

fn execute(connection: &Connection, sql: &str) -> Result<(), rusqlite::Error> {
    connection.prepare_cached(sql)?.execute([]).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (x INTEGER)").unwrap();
        connection
    }

    async fn insert(writer: &Writer, x: i64) -> Result<()> {
        writer
            .run("insert", move |c| {
                c.execute("INSERT INTO t VALUES (?1)", [x])?;
                Ok(())
            })
            .await
    }

    async fn count(writer: &Writer) -> i64 {
        let count = |c: &Connection| Ok(c.query_row("SELECT count(*) FROM t", [], |r| r.get(0))?);
        writer.run("count", count).await.unwrap()
    }

    #[tokio::test]
    async fn a_request_that_fails_or_panics_takes_nothing_else_with_it() {
        let writer = Writer::start(memory(), Arc::default()).unwrap();
        let panics = writer.run("panic", |c| {
            c.execute("INSERT INTO t VALUES (7)", [])?;
            if c.changes() == 1 {
                panic!("on purpose");
            }
            Ok(())
        });
        let fails = writer.run("fail", |c| {
            c.execute("INSERT INTO t VALUES (8)", [])?;
            c.execute("INSERT INTO missing VALUES (8)", [])?;
            Ok(())
        });
        let (one, panics, fails, two) =
            tokio::join!(insert(&writer, 1), panics, fails, insert(&writer, 2));
        one.unwrap();
        two.unwrap();
        assert!(matches!(panics, Err(Error::Closed)), "{panics:?}");
        assert!(matches!(fails, Err(Error::Sqlite { action: "fail", .. })), "{fails:?}");
        assert_eq!(count(&writer).await, 2);
    }

    #[tokio::test]
    async fn what_breaks_the_transaction_is_told_to_all_in_it_and_the_rest_goes_on() {
        let writer = Writer::start(memory(), Arc::default()).unwrap();
        // Holds the thread until the others have queued up, so that they share a transaction.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let hold = writer.run("hold", move |_| {
            wait.recv().unwrap();
            Ok(())
        });
        let breaks = writer.run("break", |c| {
            c.execute_batch("ROLLBACK")?;
            c.execute("INSERT INTO missing VALUES (8)", [])?;
            Ok(())
        });
        let release = async { go.send(()).unwrap() };
        let (held, before, broke, after, ()) =
            tokio::join!(hold, insert(&writer, 1), breaks, insert(&writer, 2), release);
        assert!(held.is_err() && before.is_err() && broke.is_err());
        after.unwrap();
        assert_eq!(count(&writer).await, 1);
    }

    #[tokio::test]
    async fn a_full_disk_is_told_as_such_and_the_rest_goes_on() {
        let connection = memory();
        // To SQLite a file that may not grow is a disk that is full.
        connection.query_row("PRAGMA max_page_count = 4", [], |_| Ok(())).unwrap();
        let writer = Writer::start(connection, Arc::default()).unwrap();
        insert(&writer, 1).await.unwrap();
        let big = writer.run("fill", |c| {
            c.execute("INSERT INTO t VALUES (zeroblob(1000000))", [])?;
            Ok(())
        });
        let error = big.await.unwrap_err();
        assert!(matches!(error, Error::DiskFull(_)), "{error:?}");
        insert(&writer, 2).await.unwrap();
        assert_eq!(count(&writer).await, 2);
    }

    #[tokio::test]
    async fn dropping_the_writer_ends_the_thread() {
        struct Tell(Option<oneshot::Sender<()>>);
        impl Drop for Tell {
            fn drop(&mut self) {
                let _ = self.0.take().unwrap().send(());
            }
        }
        let (tell, told) = oneshot::channel();
        let mut tell = Tell(Some(tell));
        let mut connection = memory();
        connection
            .busy_handler(Some(move |_: i32| {
                let _ = &mut tell;
                false
            }))
            .unwrap();
        let writer = Writer::start(connection, Arc::default()).unwrap();
        insert(&writer, 1).await.unwrap();
        drop(writer);
        told.await.unwrap();
    }
}
