"""A `resurgam serve`, and what both measurements of it share."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
ROOT = BENCH.parent
ROLES = ["--role", "api", "--role", "registry", "--role", "supervisor"]


def parser(description):
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="shorter: does it work?")
    made.add_argument("--no-build", action="store_true", help="measure what was built before")
    made.add_argument("--resurgam", type=Path, metavar="PATH", default=ROOT / "target/release/resurgam",
                      help="the program to measure instead of target/release/resurgam")
    made.add_argument("--store", action="append", choices=["postgres", "sqlite"],
                      help="only this store; both by default")
    return made


def begin(arguments):
    """Builds, and sees to it that everything is cleaned up when this is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    if arguments.no_build:
        return
    subprocess.run(["cargo", "build", "--release", "-p", "bench-load"], cwd=BENCH, check=True)
    if arguments.resurgam == ROOT / "target/release/resurgam":
        subprocess.run(["cargo", "build", "--release", "--locked", "-p", "resurgam"], cwd=ROOT, check=True)


def load(program, *arguments):
    """Runs the generator and answers what it found."""
    found = subprocess.run([BENCH / "target/release" / program, *map(str, arguments)], check=True,
                           text=True, stdout=subprocess.PIPE)
    return json.loads(found.stdout)


def write(results, what):
    folder = BENCH / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{what}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nWritten: {path}", file=sys.stderr)


class Server:
    """All roles in one process. With `core`, on that core alone."""

    def __init__(self, program, database=None, core=None):
        self.program, self.database, self.core = program, database, core

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="resurgam-bench-")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{free.getsockname()[1]}"
        command = [str(self.program), "serve", *ROLES, "--listen", self.host]
        environment = {key: value for key, value in os.environ.items()
                       if key != "DATABASE_URL" and not key.startswith("RESURGAM_")}
        environment["RESURGAM_LOG"] = "warn"
        if self.database:
            environment["DATABASE_URL"] = self.database
        else:
            command += ["--sqlite", str(Path(self.folder.name) / "bench.db")]
        if self.core is not None:
            command = ["taskset", "--cpu-list", str(self.core), *command]
        begun = time.monotonic()
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, cwd=self.folder.name)
        self.pid = self.process.pid
        try:
            self._wait(begun)
        except BaseException:
            self.__exit__()
            raise
        self.ready_ms = (time.monotonic() - begun) * 1e3
        return self

    def _wait(self, begun):
        while time.monotonic() - begun < 30:
            if self.process.poll() is not None:
                raise SystemExit(f"resurgam serve ended with {self.process.returncode}; what it said is above")
            try:
                with urllib.request.urlopen(f"http://{self.host}/health/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.002)
        raise SystemExit("resurgam serve did not become ready within 30 s")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()
