"""A PostgreSQL server that leaves nothing behind."""

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

# What everybody gets alike. All else is PostgreSQL's default: fsync, synchronous_commit and
# full_page_writes are on. Without the two sizes everybody would wait for checkpoints.
SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "4GB", "max_connections": "200"}

# Loaded before it is needed: another user may not read it.
LIBC = ctypes.CDLL(None)


def programs():
    """The folder with initdb and postgres: the newest that is packaged, or what is on the path."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"),
                      key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0)
    found = packaged[-1] if packaged else shutil.which("initdb")
    if not found:
        raise SystemExit("PostgreSQL is not installed: no initdb was found")
    return Path(found).parent


class ScratchPostgres:
    """With the default durability, on the loopback address, in a temporary folder."""

    def __init__(self):
        self.programs = programs()
        self.databases = 0
        # PostgreSQL refuses to run as root.
        self.user = {}
        if os.geteuid() == 0:
            for name in ("postgres", "nobody"):
                try:
                    entry = pwd.getpwnam(name)
                except KeyError:
                    continue
                self.user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
                break
            else:
                raise SystemExit("there is no user postgres or nobody to run the server")

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="resurgam-bench-"))
        self.server = None
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        if self.user:
            os.chown(self.folder, self.user["user"], self.user["group"])
        subprocess.run([self.programs / "initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8",
                        "--locale=C", "-D", self.folder / "data"], check=True, stdout=subprocess.DEVNULL, cwd="/",
                       **self.user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.launch()
        self.version = self.sql("postgres", "SHOW server_version").strip()

    def launch(self):
        """Starts the server, also again after it was killed; from the main thread, with which it ends."""
        settings = {**SETTINGS, "listen_addresses": "127.0.0.1", "port": self.port,
                    "unix_socket_directories": ""}
        arguments = [argument for key, value in settings.items() for argument in ("-c", f"{key}={value}")]
        # Readable for whoever runs this, kept out of the figures.
        self.log = open(self.folder / "postgres.log", "ab")
        command = [self.programs / "postgres", "-D", self.folder / "data", *arguments]
        self.server = subprocess.Popen(command, cwd="/",
                                       stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL,
                                       start_new_session=True, preexec_fn=_end_with_parent, **self.user)
        self.pid = self.server.pid
        until = time.monotonic() + 30
        while subprocess.run([self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)],
                             check=False).returncode != 0:
            if self.server.poll() is not None or time.monotonic() > until:
                raise SystemExit("PostgreSQL did not start: " + (self.folder / "postgres.log").read_text())
            time.sleep(0.05)

    def __exit__(self, *_):
        if self.server:
            self.server.send_signal(signal.SIGINT)
            try:
                self.server.wait(30)
            except subprocess.TimeoutExpired:
                self.server.send_signal(signal.SIGQUIT)
                self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database):
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def sql(self, database, *statements):
        commands = [part for statement in statements for part in ("-c", statement)]
        return subprocess.run([self.programs / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", *commands,
                               self.url(database)], check=True, text=True, stdout=subprocess.PIPE).stdout

    def create_database(self):
        self.databases += 1
        name = f"bench_{self.databases}"
        self.sql("postgres", f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name):
        self.sql("postgres", f"DROP DATABASE {name} WITH (FORCE)")


def _end_with_parent():
    """Should this process be killed, the server ends too: PR_SET_PDEATHSIG, SIGINT."""
    LIBC.prctl(1, signal.SIGINT)
