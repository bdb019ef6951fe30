"""The client against a real server."""

from __future__ import annotations

import doctest
import uuid
from datetime import datetime, timedelta, timezone

import pytest

import resurgam.types
from resurgam import (
    Client,
    Json,
    NewTask,
    Patience,
    Problem,
    RetryPolicy,
    TaskFailed,
    TransportError,
    WaitTimeout,
)
from resurgam.transport import Backoff

from .conftest import Server


def test_tasks_are_handed_in_once_and_listed(client: Client) -> None:
    first = client.submit("draft", {"title": "Ebbe & Flut ä"}, idempotency_key="k", priority=7)
    again = client.submit("draft", {"title": "other"}, idempotency_key="k")
    assert first.created and not again.created and again.id == first.id
    task = client.task(first.id)
    assert (task.state, task.priority, task.payload) == ("ready", 7, {"title": "Ebbe & Flut ä"})
    assert not task.is_over and task.idempotency_key == "k"
    assert abs(task.created_at - datetime.now(timezone.utc)) < timedelta(hours=1)

    batch = client.submit_batch([NewTask("other", n) for n in range(5)])
    assert len({task.id for task in batch}) == 5 and all(task.created for task in batch)
    assert [task.payload for task in client.tasks(capability="other", limit=2)] == [0, 1]
    assert [task.payload for task in client.all_tasks(capability="other")] == [0, 1, 2, 3, 4]
    assert client.pending()["capabilities"]["other"]["ready"] == 5


def test_every_option_reaches_the_task(client: Client) -> None:
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    submitted = client.submit(
        "draft",
        [1, None, 1.5],
        priority=-3,
        run_at=soon,
        timeout="1m",
        key="customer-1",
        tags=["night", "big"],
        keep=timedelta(days=1),
        retry=RetryPolicy(max_attempts=2, kind="fixed", backoff=0.25, max_backoff="1s", jitter=0),
        reply_to="boss",
    )
    task = client.task(submitted.id)
    assert task.state == "scheduled" and task.payload == [1, None, 1.5]
    assert (task.priority, task.key, sorted(task.tags)) == (-3, "customer-1", ["big", "night"])
    assert abs(task.run_at - soon) < timedelta(milliseconds=1)
    assert task.raw["timeout"] == "1m" and task.raw["reply_to"] == "boss"
    assert task.raw["retry"] == {
        "max_attempts": 2,
        "kind": "fixed",
        "backoff": "250ms",
        "max_backoff": "1s",
        "jitter": 0,
    }
    delayed = client.task(client.submit("draft", delay=3600).id)
    assert delayed.run_at - delayed.created_at >= timedelta(minutes=59)


def test_what_is_wrong_is_said(client: Client) -> None:
    with pytest.raises(Problem) as wrong:
        client.submit("no spaces allowed")
    problem = wrong.value
    assert (problem.status, problem.code, problem.transient) == (422, "invalid-field", False)
    assert "no spaces allowed" in problem.detail and "letter or digit" in str(problem)
    assert problem.request_id
    with pytest.raises(Problem, match="max_attempts must be at least 1"):
        client.submit("x", retry=RetryPolicy(max_attempts=0))
    with pytest.raises(Problem, match="there is no task") as missing:
        client.task("0198c0de-0000-7000-8000-000000000000")
    assert missing.value.status == 404
    with pytest.raises(Problem, match="not registered"):
        client.claim("stranger", "0198c0de-0000-7000-8000-000000000000", ["x"])
    for value in (float("nan"), {1, 2}, "\ud800"):
        bad: Json = value
        with pytest.raises(ValueError, match="not JSON"):
            client.submit("x", bad)


def test_waiting_ends_when_the_time_is_up(client: Client) -> None:
    task = client.submit("nobody-does-this")
    with pytest.raises(WaitTimeout, match="is ready after"):
        client.wait(task.id, timeout=0.05)


def test_what_is_dead_has_no_result(client: Client) -> None:
    task = client.submit("x")
    instance = "0198c0de-0000-7000-8000-000000000001"
    client.register("a", instance, ["x"])
    (lease,) = client.claim("a", instance, ["x"])
    assert client.fail([{**lease.ref(), "error": "not today", "retry": False}]) == ["accepted"]
    with pytest.raises(TaskFailed, match="is dead: not today") as failed:
        client.result(task.id, timeout=10)
    assert failed.value.task.id == task.id


def test_tasks_are_cancelled_and_requeued(client: Client) -> None:
    one, other = client.submit("x").id, client.submit("x").id
    unknown = "0198c0de-0000-7000-8000-000000000000"
    assert client.cancel(one, unknown, reason="not needed") == {one: "changed", unknown: "unknown"}
    with pytest.raises(TaskFailed, match="cancelled"):
        client.result(one, timeout=10)
    assert client.requeue(one, other) == {one: "changed", other: "unchanged"}
    assert client.task(one).state == "ready"


def test_messages_are_sent_read_and_acknowledged(client: Client) -> None:
    id = client.send("writer-1", "note", {"text": "thank you"}, sender="boss", topic="talk")
    client.send("writer-1", "note", {"text": "thank you"}, id=id)
    (message,) = client.receive("writer-1", wait=5)
    assert (message.id, message.sender, message.topic) == (id, "boss", "talk")
    assert message.body == {"text": "thank you"} and message.kind == "note"
    client.acknowledge("writer-1", [message])
    client.acknowledge("writer-1", [])
    assert client.receive("writer-1") == []


def test_messages_are_answered_and_rejected(client: Client) -> None:
    asked = client.send("oracle", "question", sender="me", reply_to="me", ttl=60.0)
    (question,) = client.receive("oracle", wait=5)
    assert (question.id, question.reply_to, question.rejections) == (asked, "me", 0)
    assert question.expires_at is not None and question.expires_at > question.created_at
    client.send("me", "answer", 42, in_reply_to=question.id)
    (answer,) = client.receive("me", wait=5)
    assert (answer.in_reply_to, answer.body, answer.expires_at) == (asked, 42, None)
    assert client.reject("oracle", [question], "unclear") == 0
    (again,) = client.receive("oracle")
    assert (again.id, again.rejections) == (asked, 1)
    assert client.reject("oracle", [again], "never", at_once=True) == 1
    assert client.reject("oracle", [], "nothing") == 0
    assert client.receive("oracle") == []


def test_messages_reach_all_or_any_one(client: Client) -> None:
    for name, can in (("team/all:1", "paint"), ("team/all:2", "print")):
        client.register(name, str(uuid.uuid4()), [can])
    assert client.announce("news", 7, capability="paint", sender="boss", ttl=60.0) == 1
    (news,) = client.receive("team/all:1", wait=5)
    assert (news.kind, news.body, news.sender) == ("news", 7, "boss")
    assert client.announce("news") >= 2
    assert client.send_to_any("print", "help", {"n": 1}, reply_to="boss") == "team/all:2"
    assert client.receive("team/all:2", wait=5)[-1].reply_to == "boss"
    with pytest.raises(Problem, match="no agent"):
        client.send_to_any("sing", "help")


def test_agents_are_listed_and_drained(client: Client) -> None:
    for number in range(3):
        instance = f"0198c0de-0000-7000-8000-00000000000{number}"
        welcome = client.register(
            f"team/agent:{number}", instance, ["x"], capacity=2, labels={"zone": "a"}, version="1"
        )
        assert 0 < welcome.heartbeat_every < welcome.expire_after
    assert [agent.id[-1] for agent in client.agents(capability="x")] == ["0", "1", "2"]
    assert list(client.agents(labels={"zone": "b"})) == []
    assert client.drain("team/agent:1", "maintenance").state == "draining"
    assert client.resume("team/agent:1").state != "draining"
    assert client.agent("team/agent:2").labels == {"zone": "a"}
    assert client.heartbeat("team/agent:2", "0198c0de-0000-7000-8000-000000000002")
    client.deregister("team/agent:2", "0198c0de-0000-7000-8000-000000000002")
    assert not client.heartbeat("team/agent:2", "0198c0de-0000-7000-8000-000000000002")


def test_a_request_outlives_the_server(server: Server) -> None:
    with Client(server.url, patience=Patience(total=0)) as hasty, server.client() as patient:
        assert hasty.health()["status"] == "ok"
        server.kill()
        with pytest.raises(TransportError, match="no answer"):
            hasty.submit("x")
        server.start()
        assert hasty.submit("x").created
        # The connection that was kept open is not taken for an outage.
        server.kill()
        server.start()
        assert patient.submit("x").created


def test_the_document_tells_of_the_routes(client: Client) -> None:
    document = client.openapi()
    assert document["openapi"].startswith("3.1") and "/tasks/claim" in document["paths"]


@pytest.mark.parametrize(
    "address", ["ftp://x", "localhost:7070", "http://u:p@x/", "http://x/?a=b", "http://"]
)
def test_addresses_that_cannot_be_called_are_refused(address: str) -> None:
    with pytest.raises(ValueError):
        Client(address)


def test_tokens_cannot_smuggle_headers() -> None:
    with pytest.raises(ValueError, match="token"):
        Client("http://127.0.0.1:1", token="a\r\nx-evil: 1")


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(resurgam.types).attempted >= 4
    assert doctest.testmod(resurgam.types).failed == 0


def test_waits_grow_at_random_up_to_their_bound() -> None:
    waits = Backoff(Patience(total=None, first=0.05, longest=0.4))
    bounds = [0.05, 0.1, 0.2, 0.4, 0.4]
    for bound in bounds:
        delay = waits.next()
        assert delay is not None and 0 <= delay <= bound
    assert Backoff(Patience(total=0)).next() is None
