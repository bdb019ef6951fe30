"""Real servers that can be killed, and waiting for what is to happen."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Callable, Iterator, List, Optional

import pytest

from resurgam import Client, Patience, Worker

ROOT = Path(__file__).resolve().parents[3]


def binary() -> Path:
    """The program: RESURGAM_BIN, or what cargo built last."""
    given = os.environ.get("RESURGAM_BIN")
    if given:
        return Path(given)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    built = [target / kind / "resurgam" for kind in ("release", "debug")]
    built = [path for path in built if path.exists()]
    assert built, "there is no program; run `cargo build -p resurgam`, or set RESURGAM_BIN"
    return max(built, key=lambda path: path.stat().st_mtime)


def until(what: str, condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Waits for a condition."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


class Server:
    """All roles over one SQLite file, always at the same address."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: Optional[subprocess.Popen[bytes]] = None

    def start(self) -> None:
        roles = [word for role in ("api", "registry", "supervisor") for word in ("--role", role)]
        log = open(self.folder / "server.log", "ab")
        self.process = subprocess.Popen(
            [
                str(binary()),
                "serve",
                *roles,
                "--sqlite",
                str(self.folder / "platform.db"),
                "--listen",
                f"127.0.0.1:{self.port}",
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        log.close()
        with self.client() as client:
            until("the server is ready", lambda: self._is_ready(client))

    def _is_ready(self, client: Client) -> bool:
        assert self.process is not None
        said = (self.folder / "server.log").read_text()
        assert self.process.poll() is None, f"the server ended: {said}"
        try:
            client.transport.call("GET", "/health/ready", timeout=2)
        except Exception:
            return False
        return True

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def client(self) -> Client:
        return Client(self.url, patience=Patience(total=30))


class Running:
    """A worker in a thread."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.error: Optional[BaseException] = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run(signals=False)
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self.worker.stop()
        self.thread.join(timeout=60)
        assert not self.thread.is_alive(), "the worker does not end"
        if self.error is not None:
            raise self.error


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def start() -> Iterator[Callable[[Worker], Running]]:
    """Starts workers, and stops them at the end."""
    running: List[Running] = []

    def start(worker: Worker) -> Running:
        running.append(Running(worker))
        return running[-1]

    yield start
    for one in running:
        one.worker.drain = 1.0
        one.stop()
