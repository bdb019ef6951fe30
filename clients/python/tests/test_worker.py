"""The worker against a real server, which is killed, forgets and takes leases back."""

from __future__ import annotations


import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Callable, Counter as CounterType, List

import pytest

from resurgam import Client, Fail, Json, NewTask, Problem, RetryPolicy, Work, Worker

from .conftest import Running, Server, until

Start = Callable[[Worker], Running]


def test_work_is_done_and_failures_are_told(client: Client, start: Start) -> None:
    worker = Worker("w", client, concurrency=4, labels={"zone": "a"}, version="1.0")

    @worker.handler("double")
    def double(work: Work) -> Json:
        return work.payload * 2

    @worker.handler("flaky")
    def flaky(work: Work) -> Json:
        if work.attempt < 3:
            raise RuntimeError("not yet")
        return work.attempt

    @worker.handler("hopeless")
    def hopeless(work: Work) -> Json:
        raise Fail("cannot be done", retry=False)

    @worker.handler("unspeakable")
    def unspeakable(work: Work) -> Json:
        return {1, 2}

    start(worker)
    tasks = client.submit_batch([NewTask("double", n) for n in range(50)])
    assert [client.result(task.id, 30) for task in tasks] == [n * 2 for n in range(50)]

    retry = RetryPolicy(backoff="10ms")
    assert client.result(client.submit("flaky", retry=retry).id, 30) == 3
    dead = client.wait(client.submit("hopeless").id, 30)
    assert (dead.state, dead.error, dead.attempts) == ("dead", "cannot be done", 1)
    dead = client.wait(client.submit("unspeakable").id, 30)
    assert dead.state == "dead" and dead.error is not None and "not JSON" in dead.error
    once = RetryPolicy(max_attempts=1)
    error = client.wait(client.submit("flaky", retry=once).id, 30).error
    assert error == "RuntimeError: not yet"


def test_two_handlers_for_one_capability_are_a_mistake(client: Client) -> None:
    worker = Worker("w", client)
    with pytest.raises(ValueError, match="no handler"):
        worker.run(signals=False)
    worker.handler("x")(lambda work: None)
    with pytest.raises(ValueError, match="already"):
        worker.handler("x")(lambda work: None)
    refused = Worker("no spaces", client)
    refused.handler("x")(lambda work: None)
    with pytest.raises(Problem, match="no spaces"):
        refused.run(signals=False)


def test_nothing_is_lost_when_the_server_is_killed(server: Server, start: Start) -> None:
    """Handlers go on through the outage, and what they gave then is told later."""
    client = server.client()
    done: CounterType[int] = Counter()
    lock = threading.Lock()
    away = threading.Event()
    in_outage = threading.Semaphore(0)
    worker = Worker("w", server.client(), concurrency=8, lease="5s")

    @worker.handler("count")
    def count(work: Work) -> Json:
        number: int = work.payload
        if number < 8:
            # These end while the server is away.
            in_outage.release()
            assert away.wait(60)
        with lock:
            done[number] += 1
        return number

    start(worker)
    tasks = client.submit_batch([NewTask("count", n) for n in range(200)])
    for _ in range(8):
        assert in_outage.acquire(timeout=60)
    server.kill()
    away.set()
    until("the first are done", lambda: sum(done[n] for n in range(8)) >= 8)
    server.start()
    results = [client.result(task.id, 60) for task in tasks]
    assert results == list(range(200))
    # The leases outlived the outage, so that nothing was done again.
    assert all(done[number] >= 1 for number in range(200))
    assert [number for number in range(8) if done[number] != 1] == []
    assert all(client.task(task.id).state == "completed" for task in tasks)


def test_a_killed_worker_has_its_work_done_by_the_next(server: Server, start: Start) -> None:
    client = server.client()
    script = (
        "import os, sys, time\n"
        "from resurgam import Client, Worker\n"
        "worker = Worker('w', Client(sys.argv[1]), concurrency=3, lease='60s')\n"
        "@worker.handler('slow')\n"
        "def slow(work):\n"
        "    os.write(1, b'begun\\n')\n"
        "    time.sleep(3600)\n"
        "worker.run()\n"
    )
    tasks = client.submit_batch([NewTask("slow", n) for n in range(3)])
    doomed = subprocess.Popen(
        [sys.executable, "-c", script, server.url], stdout=subprocess.PIPE, text=True
    )
    assert doomed.stdout is not None
    assert [doomed.stdout.readline() for _ in tasks] == ["begun\n"] * 3
    doomed.kill()
    doomed.wait()
    doomed.stdout.close()

    # A new life under the same name returns the leases of the old one at once.
    heir = Worker("w", client, concurrency=3)
    heir.handler("slow")(lambda work: work.attempt)
    start(heir)
    assert [client.result(task.id, 30) for task in tasks] == [2, 2, 2]


def test_a_forgotten_worker_registers_again(server: Server, start: Start) -> None:
    client = server.client()
    worker = Worker("w", client)
    worker.handler("x")(lambda work: work.payload)
    start(worker)
    assert client.result(client.submit("x", 1).id, 30) == 1
    client.deregister("w", worker.instance)
    until("it is back", lambda: any(agent.id == "w" for agent in client.agents()))
    assert client.result(client.submit("x", 2).id, 30) == 2


def test_the_result_of_a_lost_lease_counts_for_nothing(server: Server, start: Start) -> None:
    client = server.client()
    noticed: List[bool] = []
    begun, over = threading.Event(), threading.Event()
    slow = Worker("slow", client, lease="300ms")

    @slow.handler("x")
    def first(work: Work) -> Json:
        begun.set()
        noticed.append(work.cancelled.wait(60))
        over.set()
        return "too late"

    start(slow)
    task = client.submit("x", retry=RetryPolicy(backoff="1ms"))
    assert begun.wait(30)
    # The platform takes its leases back, as it does with those who seem to be gone.
    client.drain("slow")
    client.deregister("slow", slow.instance)
    fast = Worker("fast", client)
    fast.handler("x")(lambda work: "in time")
    start(fast)
    assert over.wait(30) and noticed == [True]
    assert client.result(task.id, 30) == "in time"


def test_sigterm_finishes_what_was_begun(server: Server, tmp_path: Path) -> None:
    client = server.client()
    go = tmp_path / "go"
    script = (
        "import os, sys, time\n"
        "from resurgam import Client, Worker\n"
        "worker = Worker('w', Client(sys.argv[1]))\n"
        "@worker.handler('slow')\n"
        "def slow(work):\n"
        "    print('begun', flush=True)\n"
        "    while not os.path.exists(sys.argv[2]):\n"
        "        work.sleep(0.02)\n"
        "    return 'finished'\n"
        "worker.run()\n"
        "print('left', flush=True)\n"
    )
    begun, waiting = client.submit("slow"), client.submit("slow")
    process = subprocess.Popen(
        [sys.executable, "-c", script, server.url, str(go)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    until("it takes nothing new", lambda: process.poll() is None)
    go.touch()
    assert process.stdout.readline() == "left\n"
    assert process.wait(timeout=30) == 0
    process.stdout.close()
    assert client.task(begun.id).result == "finished"
    assert client.task(waiting.id).state == "ready"
    assert all(agent.id != "w" for agent in client.agents())


def test_an_idle_worker_leaves_at_once(server: Server) -> None:
    client = server.client()
    worker = Worker("w", client)
    worker.handler("x")(lambda work: None)
    running = Running(worker)
    until("it is known", lambda: any(agent.id == "w" for agent in client.agents()))
    running.stop()
    assert list(client.agents()) == []


def test_a_worker_waits_for_a_platform_that_is_not_there_yet(tmp_path: Path, start: Start) -> None:
    server = Server(tmp_path)
    worker = Worker("w", server.client())
    worker.handler("x")(lambda work: work.payload)
    start(worker)
    time.sleep(0.1)
    try:
        server.start()
        client = server.client()
        assert client.result(client.submit("x", "hello").id, 30) == "hello"
        worker.stop()
        until("it has left", lambda: list(client.agents()) == [])
    finally:
        server.kill()
