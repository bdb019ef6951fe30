//! Has any program do the work.
//!
//! | | |
//! |---|---|
//! | standard input | the payload: the text itself if it is a JSON string, else the JSON |
//! | standard output | the result, UTF-8, as one JSON string |
//! | exit code 0 | success |
//! | exit code 100 | failure, and no other try can help |
//! | any other, or a signal | failure; the end of standard error says why |
//! | `RESURGAM_TASK_ID` | the task |
//! | `RESURGAM_TASK_ATTEMPT` | 1 on the first try |
//! | `RESURGAM_TASK_TOKEN` | the fencing token, to hand on to whatever the program writes to |
//! | `RESURGAM_CAPABILITY` | what was asked for |
//!
//! The program need not read its input, which is there as a whole before it begins. It runs in a process group of its own, which is killed
//! as a whole when the lease is lost, when the worker ends, and when the program itself does. On
//! Linux the program is also killed when the worker is killed; what it started in turn is not,
//! unless it sees to that itself.

use std::io::{self, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use resurgam_model::Payload;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::watch;

use super::spawner::{Group, Spawner};
use super::{Error, Handler, HandlerError, Job};

/// The exit code with which a program says that another try cannot help.
pub const DO_NOT_RETRY: i32 = 100;

/// The largest output in bytes; the platform's own limit is on the JSON text made of it.
const MAX_OUTPUT: usize = 1024 * 1024;
/// So much of the end of standard error is kept.
const ERROR_TAIL: usize = 4096;
/// How long the pipes may stay open after the program and its group are gone.
const PIPES_CLOSE: StdDuration = StdDuration::from_secs(1);

/// A program as a handler.
pub struct Exec {
    program: String,
    arguments: Vec<String>,
    max_output: usize,
    spawner: Spawner,
}

/// Environment variables with tokens of the platform and with the way into its database.
const SECRETS: [&str; 4] =
    ["RESURGAM_TOKEN", "RESURGAM_INTERNAL_TOKEN", "DATABASE_URL", "PGPASSWORD"];

impl Exec {
    /// A program and its arguments.
    ///
    /// # Errors
    /// When there is none, or the thread that starts programs cannot be made.
    pub fn new(command: &[String]) -> Result<Self, Error> {
        let [program, arguments @ ..] = command else {
            return Err(Error::Settings("exec needs a program".to_owned()));
        };
        let spawner = Spawner::new().map_err(Error::Spawner)?;
        let arguments = arguments.to_vec();
        Ok(Self { program: program.clone(), arguments, max_output: MAX_OUTPUT, spawner })
    }

    /// The same with another bound on its output, in bytes.
    #[must_use]
    pub fn with_max_output(mut self, bytes: usize) -> Self {
        self.max_output = bytes;
        self
    }

    fn command(&self, job: &Job) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env("RESURGAM_TASK_ID", job.id().to_string())
            .env("RESURGAM_TASK_ATTEMPT", job.attempt().to_string())
            .env("RESURGAM_TASK_TOKEN", job.token().to_string())
            .env("RESURGAM_CAPABILITY", job.capability().as_str());
        // What the worker may do is not for the program, which may be anything, to do.
        for secret in SECRETS {
            command.env_remove(secret);
        }
        command
    }
}

#[async_trait]
impl Handler for Exec {
    async fn handle(&self, job: Job) -> Result<Payload, HandlerError> {
        let failed = |what: &str, error: &io::Error| {
            HandlerError::retry(format!("{}: {what}: {error}", self.program))
        };
        let mut command = self.command(&job);
        let text = job.payload().text();
        command
            .stdin(input(text.as_bytes()).map_err(|error| failed("cannot get its input", &error))?);
        let mut program = self
            .spawner
            .start(command)
            .await
            .map_err(|error| failed("cannot be started", &error))?;
        let (stdout, stderr) = program.pipes();
        let group = program.group();
        let (exited, ended) = watch::channel(false);

        let wait = async {
            let status = program.wait().await;
            exited.send_replace(true);
            status
        };
        let output = read(stdout, ended.clone(), Keep::First(self.max_output), group);
        let errors = read(stderr, ended, Keep::Last(ERROR_TAIL), group);
        let all = async { tokio::join!(wait, output, errors) };
        let (status, output, errors) = all.await;

        let status = status.map_err(|error| failed("cannot be waited for", &error))?;
        let output = match output {
            Ok(output) => output,
            Err(ReadError::TooMuch) => {
                let limit = self.max_output;
                let message = format!("{}: wrote more than {limit} bytes", self.program);
                return Err(HandlerError::permanent(message));
            }
            Err(ReadError::Io(error)) => return Err(failed("its output cannot be read", &error)),
        };
        if !status.success() {
            return Err(self.failure(status, &errors.unwrap_or_default()));
        }
        match std::str::from_utf8(&output) {
            Ok(text) => Ok(Payload::from_text(text)),
            Err(error) => Err(HandlerError::retry(format!(
                "{}: its output is not UTF-8 (from byte {})",
                self.program,
                error.valid_up_to()
            ))),
        }
    }
}

impl Exec {
    fn failure(&self, status: ExitStatus, errors: &[u8]) -> HandlerError {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        };
        let errors = String::from_utf8_lossy(errors);
        let said = errors.trim();
        let message = match said.is_empty() {
            true => format!("{}: {how}", self.program),
            false => format!("{}: {how}: {said}", self.program),
        };
        HandlerError { message, retry: status.code() != Some(DO_NOT_RETRY) }
    }
}

/// The input as a file in memory, whole before the program begins: one whose worker is killed
/// must not take half of a payload, or none, for the whole.
fn input(text: &[u8]) -> io::Result<Stdio> {
    let file = rustix::fs::memfd_create("payload", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(text)?;
    file.rewind()?;
    Ok(file.into())
}

enum ReadError {
    TooMuch,
    Io(io::Error),
}

/// What to keep of a stream.
#[derive(Clone, Copy)]
enum Keep {
    /// All; more than this is a failure, and ends the program.
    First(usize),
    /// The end.
    Last(usize),
}

async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    mut ended: watch::Receiver<bool>,
    keep: Keep,
    group: Group,
) -> Result<Vec<u8>, ReadError> {
    let Some(mut stream) = stream else { return Ok(Vec::new()) };
    let mut kept = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    let mut held_open = std::pin::pin!(async {
        let _ = ended.wait_for(|ended| *ended).await;
        tokio::time::sleep(PIPES_CLOSE).await;
    });
    loop {
        let count = tokio::select! {
            biased;
            count = stream.read(&mut buffer) => count.map_err(ReadError::Io)?,
            () = &mut held_open => {
                let error = "a process that it left behind holds it open";
                return Err(ReadError::Io(io::Error::other(error)));
            }
        };
        if count == 0 {
            return Ok(kept);
        }
        kept.extend_from_slice(buffer.get(..count).unwrap_or_default());
        match keep {
            Keep::First(limit) if kept.len() > limit => {
                group.kill();
                return Err(ReadError::TooMuch);
            }
            Keep::First(_) => {}
            Keep::Last(limit) => {
                let excess = kept.len().saturating_sub(limit);
                kept.drain(..excess);
            }
        }
    }
}
