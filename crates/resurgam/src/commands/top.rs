//! `resurgam top`

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;
use resurgam_client::Client;
use resurgam_client::wire::Pending;
use resurgam_model::{ComponentName, Duration, Timestamp};
use resurgam_recovery::status::Status;
use serde::Serialize;
use tokio::time::Instant;

use super::api::ApiArgs;
use super::backup::{age, bytes};
use super::status;
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// What each component uses, as it changes: processor, memory, threads; and how much work there is.
///
/// A component is its process and all that this has started, so that an instance of PostgreSQL counts with
/// its server. Memory that several of them share is counted once.
///
/// Examples:
///   resurgam top
///   resurgam top --count 1
///   resurgam top --count 1 --json | jq '.components[] | select(.cpu_percent > 50)'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct TopArgs {
    /// How often to look.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// End after so many looks; else with Ctrl-C.
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// A file with the token for the API, which is asked for the tasks; else RESURGAM_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The plan of the deployment.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Print JSON, one document for each look.
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval: Duration = text.parse().map_err(|error| format!("{error}"))?;
    if interval < Duration::from_millis(100) || interval > Duration::from_secs(3600) {
        return Err("must be from 100ms to 1h".to_owned());
    }
    Ok(interval)
}

/// One look.
#[derive(Debug, Serialize)]
struct Look {
    at: Timestamp,
    /// None while the API does not answer.
    tasks: Option<Tasks>,
    components: Vec<Usage>,
}

#[derive(Debug, Serialize)]
struct Tasks {
    scheduled: u64,
    ready: u64,
    running: u64,
}

#[derive(Debug, Serialize)]
struct Usage {
    name: ComponentName,
    state: String,
    pid: Option<u32>,
    started_at: Option<Timestamp>,
    processes: usize,
    threads: u64,
    /// Of one core, since the look before.
    cpu_percent: f64,
    memory_bytes: u64,
}

pub(crate) async fn run(args: &TopArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.plan.as_deref())?;
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    let mut before = (Instant::now(), processes());
    // Shares of time need two looks; the first pair is close together.
    let mut pause = args.interval.0.min(std::time::Duration::from_millis(500));
    let mut left = args.count;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut stop => return Ok(code::OK),
        }
        pause = args.interval.0;
        let status = status::ask(&loaded).await?;
        let now = (Instant::now(), processes());
        let elapsed = (now.0 - before.0).as_secs_f64();
        let pending = client(&status, args)?.pending().await.ok();
        let look = Look {
            at: Timestamp::now(),
            tasks: pending.map(|Pending { scheduled, ready, running, .. }| Tasks {
                scheduled,
                ready,
                running,
            }),
            components: usage(&status, &before.1, &now.1, elapsed),
        };
        before = now;
        if args.json {
            output::data(&serde_json::to_string(&look)?);
        } else {
            print(&look, args.count != Some(1));
        }
        left = left.map(|left| left - 1);
        if left == Some(0) {
            return Ok(code::OK);
        }
    }
}

fn client(status: &Status, args: &TopArgs) -> Result<Client, Failure> {
    ApiArgs::plain(status.api.clone(), args.token_file.clone()).client()
}

fn print(look: &Look, again: bool) {
    if again && std::io::stdout().is_terminal() {
        // The screen is cleared, and the cursor goes home.
        output::data("\x1b[2J\x1b[H");
    }
    let tasks = look.tasks.as_ref().map_or("the API does not answer".to_owned(), |tasks| {
        format!(
            "tasks: {} ready, {} running, {} scheduled",
            tasks.ready, tasks.running, tasks.scheduled
        )
    });
    output::data(&format!("{}; {tasks}", look.at.strftime("%F %TZ")));
    let header = ["component", "state", "pid", "up for", "processes", "threads", "cpu", "memory"];
    let mut table = output::table(&header);
    for usage in &look.components {
        table.add_row([
            usage.name.to_string(),
            usage.state.clone(),
            usage.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            usage.started_at.map_or("-".to_owned(), |at| age(look.at, at)),
            usage.processes.to_string(),
            usage.threads.to_string(),
            format!("{:.1} %", usage.cpu_percent),
            bytes(usage.memory_bytes),
        ]);
    }
    output::data(&table.to_string());
}

/// What is known of a process.
#[derive(Clone, Copy, Debug, Default)]
struct Process {
    parent: u32,
    /// With its number it cannot be mistaken for another one.
    started: u64,
    cpu_seconds: f64,
    threads: u64,
    private_bytes: u64,
    shared_bytes: u64,
}

/// All processes of this machine.
fn processes() -> BTreeMap<u32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, process(pid)?))
        })
        .collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or(0) * 1024
    };
    #[allow(clippy::cast_precision_loss, reason = "shares of time for people")]
    let cpu = (number(11)? + number(12)?) as f64 / rustix::param::clock_ticks_per_second() as f64;
    Some(Process {
        parent: u32::try_from(number(1)?).ok()?,
        started: number(19)?,
        cpu_seconds: cpu,
        threads: number(17)?,
        private_bytes: kilobytes("RssAnon:"),
        shared_bytes: kilobytes("RssFile:") + kilobytes("RssShmem:"),
    })
}

/// A process and all that it has started.
fn family(root: u32, all: &BTreeMap<u32, Process>) -> Vec<u32> {
    let mut found: Vec<_> = all.contains_key(&root).then_some(root).into_iter().collect();
    let mut next = 0;
    while let Some(above) = found.get(next).copied() {
        found.extend(all.iter().filter(|(_, p)| p.parent == above).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

fn usage(
    status: &Status,
    before: &BTreeMap<u32, Process>,
    now: &BTreeMap<u32, Process>,
    elapsed: f64,
) -> Vec<Usage> {
    let components = status.components.iter().map(|health| {
        let component = &health.component;
        let family = component.pid.map(|pid| family(pid, now)).unwrap_or_default();
        let all: Vec<_> = family.iter().filter_map(|pid| Some((pid, now.get(pid)?))).collect();
        let cpu: f64 = all
            .iter()
            .map(|(pid, process)| {
                let earlier = before.get(*pid).filter(|p| p.started == process.started);
                process.cpu_seconds - earlier.map_or(0.0, |earlier| earlier.cpu_seconds)
            })
            .sum();
        let private: u64 = all.iter().map(|(_, process)| process.private_bytes).sum();
        let shared = all.iter().map(|(_, process)| process.shared_bytes).max().unwrap_or(0);
        Usage {
            name: component.name.clone(),
            state: status::word_of(&component.state),
            pid: component.pid,
            started_at: component.started_at,
            processes: all.len(),
            threads: all.iter().map(|(_, process)| process.threads).sum(),
            cpu_percent: (cpu / elapsed.max(0.001) * 1000.0).round() / 10.0,
            memory_bytes: private + shared,
        }
    });
    components.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_a_process_and_all_that_it_has_started() {
        let child = |parent| Process { parent, ..Process::default() };
        let all = BTreeMap::from([
            (10, child(1)),
            (11, child(10)),
            (12, child(11)),
            (13, child(1)),
            (14, child(10)),
        ]);
        let mut found = family(10, &all);
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12, 14]);
        assert!(family(99, &all).is_empty());
    }

    #[test]
    fn this_process_is_there_with_its_memory() {
        let own = process(std::process::id()).unwrap();
        assert!(own.threads >= 1 && own.private_bytes > 0, "{own:?}");
    }
}
