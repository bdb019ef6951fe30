//! What every process tells of itself, under the names that Prometheus' own clients use.

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::{Computed, Family, Fixed, Gauge, Registry};

/// Adds memory, processor time, open files and the time of the start.
pub fn process(registry: &mut Registry) {
    registry.add(
        "process_cpu_seconds_total",
        "Processor time used, by the program and for it in the kernel",
        &[],
        Computed::counter(cpu_seconds),
    );
    registry.add(
        "process_resident_memory_bytes",
        "Memory that is in RAM",
        &[],
        Computed::gauge(|| memory("VmRSS:")),
    );
    registry.add(
        "process_virtual_memory_bytes",
        "Memory that is addressed",
        &[],
        Computed::gauge(|| memory("VmSize:")),
    );
    registry.add(
        "process_open_fds",
        "Open files and connections",
        &[],
        Computed::gauge(open_files),
    );
    registry.add(
        "process_max_fds",
        "Files and connections that may be open",
        &[],
        Computed::gauge(most_files),
    );
    registry.add("process_threads", "Threads", &[], Computed::gauge(|| status("Threads:")));
    registry.add(
        "process_start_time_seconds",
        "When the process was started, in seconds since 1970",
        &[],
        Computed::gauge(start_time),
    );
}

/// Adds which program this is; the number is always 1.
pub fn build_info(registry: &mut Registry, version: &'static str, role: &'static str) {
    let info = Family::<Fixed<2>, Gauge>::default();
    info.get_or_create(&[("version", version), ("process", role)]).set(1);
    registry.add(
        "resurgam_build_info",
        "Which program this is: always 1",
        &["version", "process"],
        info,
    );
}

#[allow(clippy::cast_precision_loss, reason = "it is given as a floating point number")]
#[allow(clippy::unnecessary_wraps, reason = "one shape for all")]
fn cpu_seconds() -> Option<f64> {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Some(used.tv_sec as f64 + used.tv_nsec as f64 / 1e9)
}

/// A line of what the kernel says about this process.
fn status(name: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn memory(name: &str) -> Option<f64> {
    status(name).map(|kibibytes| kibibytes * 1024.0)
}

#[allow(clippy::cast_precision_loss, reason = "it is given as a floating point number")]
fn open_files() -> Option<f64> {
    // One of them is the folder that is being read.
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

#[allow(clippy::cast_precision_loss, reason = "it is given as a floating point number")]
fn most_files() -> Option<f64> {
    getrlimit(Resource::Nofile).current.map(|most| most as f64)
}

#[allow(clippy::cast_precision_loss, reason = "it is given as a floating point number")]
fn start_time() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program stands in parentheses and may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let ticks: f64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    let kernel = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 =
        kernel.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + ticks / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_tells_of_itself_makes_sense() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let now = now.as_secs_f64();
        let started = start_time().unwrap();
        assert!(started > now - 3_600.0 * 24.0 && started <= now + 2.0, "{started} {now}");
        assert!(memory("VmRSS:").unwrap() > 100_000.0);
        assert!(memory("VmSize:").unwrap() >= memory("VmRSS:").unwrap());
        assert!(open_files().unwrap() >= 3.0);
        assert!(most_files().unwrap() >= open_files().unwrap());
        assert!(cpu_seconds().unwrap() > 0.0);
        assert!(status("Threads:").unwrap() >= 1.0);
    }
}
