"""The processes that are killed: a database, servers and workers."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# So that nothing outlives this program, even if it is killed itself.
TIED = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
CAPABILITIES = ["work", "limited", "tick", "step"]


def free_port():
    """Below the ports that the kernel hands out, so that nobody takes it while its server is dead."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Process:
    """One that is started again whenever it has ended."""

    def __init__(self, name, command, environment, folder):
        self.name, self.command, self.environment, self.folder = name, command, environment, folder
        self.child, self.stopped, self.ends = None, False, []

    def start(self):
        """From the main thread, with which it ends."""
        with open(self.folder / f"{self.name}.log", "ab") as log:
            self.child = subprocess.Popen([*TIED, *self.command], env=self.environment, stdin=subprocess.DEVNULL,
                                          stdout=log, stderr=log, cwd=self.folder)
        self.stopped = False

    def keep(self):
        """Starts it again if it has ended without having been killed, which is noted."""
        if self.child.poll() is not None:
            self.ends.append(self.child.returncode)
            self.start()

    def kill(self):
        self.child.kill()
        self.child.wait()

    def stop(self):
        self.child.send_signal(signal.SIGSTOP)
        self.stopped = True

    def resume(self):
        if self.stopped:
            self.child.send_signal(signal.SIGCONT)
            self.stopped = False

    def end(self):
        """In order, and whether it did so in time."""
        self.resume()
        self.child.terminate()
        try:
            self.child.wait(30)
            return True
        except subprocess.TimeoutExpired:
            self.kill()
            return False


class Fleet:
    def __init__(self, program, postgres, folder):
        self.postgres = postgres
        self.ledger = folder / "ledger"
        self.ledger.touch()
        environment = {key: value for key, value in os.environ.items()
                       if key != "DATABASE_URL" and not key.startswith("RESURGAM_")}
        environment |= {"RESURGAM_LOG": "warn", "CHAOS_LEDGER": str(self.ledger),
                        "PYTHONDONTWRITEBYTECODE": "1",
                        "PYTHONPATH": str(HERE.parents[1] / "clients/python/src")}
        store = ["--store"]
        serve = [program, "serve", "--role=api", "--role=registry", "--role=supervisor"]
        if postgres:
            environment["DATABASE_URL"] = postgres.url(postgres.create_database())
        else:
            store = [f"--sqlite={folder / 'platform.db'}"]
            serve += store

        def made(name, command):
            return Process(name, list(map(str, command)), environment, folder)

        self.servers, self.urls = [], []
        for number in range(2 if postgres else 1):
            port = free_port()
            self.urls.append(f"http://127.0.0.1:{port}")
            self.servers.append(made(f"server-{number}", [*serve, f"--listen=127.0.0.1:{port}"]))
        work = [f"--capability={name}" for name in CAPABILITIES]
        work += ["--lease=3s", "--exec", HERE / "effect"]
        self.workers = [made("direct-0", [program, "worker", *store, "--name=direct-0", *work])]
        if postgres:
            self.workers.append(made("direct-1", [program, "worker", *store, "--name=direct-1", *work]))
        for number in range(2):
            name, url = f"http-{number}", self.urls[number % len(self.urls)]
            self.workers.append(made(name, [program, "worker", f"--api={url}", f"--name={name}", *work]))
        python = made("python-0", [sys.executable, HERE / "agent.py", HERE / "effect", "python-0", *CAPABILITIES])
        python.environment = {**environment, "RESURGAM_API": self.urls[-1]}
        self.workers.append(python)
        self.all = self.servers + self.workers

    def start(self):
        for process in self.all:
            process.start()

    def kill_postgres(self, immediate):
        """By SIGQUIT, as `pg_ctl stop -m immediate` does, or by SIGKILL of all its processes."""
        server = self.postgres.server
        if immediate:
            server.send_signal(signal.SIGQUIT)
        else:
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            server.kill()
            for child in children:
                try:
                    os.kill(int(child), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        server.wait()

    def launch_postgres(self):
        # The shared memory of the server before is in use until the last of its processes is gone.
        for attempt in range(20):
            try:
                self.postgres.launch()
                return
            except SystemExit:
                if attempt == 19:
                    raise
                time.sleep(0.25)

    def end(self):
        return [process.name for process in reversed(self.all) if process.child and not process.end()]
