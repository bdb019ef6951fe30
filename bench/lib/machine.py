"""What processes use of the machine, and what the machine is."""

import os
import platform
import signal
import subprocess
import threading
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).resolve().parents[2]


def _processes():
    """Of every process: its parent, and its CPU seconds with those of children that have ended."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(entry)] = (int(fields[1]), sum(map(int, fields[11:15])) / TICKS)
    return found


def tree_seconds(root, processes=None):
    """CPU seconds of a process and all below it so far."""
    processes = processes or _processes()
    children = {}
    for pid, (parent, _) in processes.items():
        children.setdefault(parent, []).append(pid)
    seconds, todo = 0.0, [root]
    while todo:
        pid = todo.pop()
        if pid in processes:
            seconds += processes[pid][1]
            todo += children.get(pid, [])
    return seconds


def busy_seconds():
    """CPU seconds that anything has used."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def resident_mib(pid):
    """Resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError("no VmRSS")


class Use:
    """Who uses the cores from now on: a process, PostgreSQL, and everybody else."""

    def __init__(self, own, postgres=None):
        self.own, self.postgres = own, postgres
        self.before = self._now()

    def _now(self):
        processes = _processes()
        return (time.monotonic(), tree_seconds(self.own, processes),
                tree_seconds(self.postgres, processes) if self.postgres else 0.0, busy_seconds())

    def since(self):
        at, own, postgres, busy = (now - before for now, before in zip(self._now(), self.before))
        at = max(at, 1e-9)
        return {"own_cores": own / at, "postgres_cores": postgres / at,
                "other_cores": max(0.0, busy - own - postgres) / at}


class Deadline:
    """Ends a process group when it takes too long."""

    def __init__(self, process, seconds):
        self.timer = threading.Timer(seconds, end_group, [process])
        self.timer.daemon = True
        self.timer.start()

    def cancel(self):
        self.timer.cancel()


def end_group(process):
    """Ends a process that was started as the leader of a session, and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def about():
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory, 1),
            "kernel": platform.release(), "python": platform.python_version()}


def commit():
    """The commit that is measured; with + when something is not committed."""
    def git(*arguments):
        return subprocess.run(["git", "-C", ROOT, *arguments], check=False, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.strip()
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
