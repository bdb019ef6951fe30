"""The client: hand in work, look at it, wait for it, send and read messages."""

from __future__ import annotations

import os
import ssl
import time
import uuid
from datetime import datetime
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from .errors import TaskFailed, WaitTimeout
from .transport import Connection, Patience, Transport, segment
from .types import (
    Agent,
    Json,
    Lease,
    Length,
    Message,
    NewTask,
    RetryPolicy,
    Submitted,
    Task,
    Welcome,
    length_text,
    objects,
)
from .workflows import Workflows

#: Where the API is if nothing else is said.
DEFAULT_URL = "http://127.0.0.1:7070"


class Client:
    """Speaks to the platform. Can be used by many threads at once.

    Every request is repeated while there is no answer, or one that says "not now", until
    ``patience`` is at its end. That is harmless: what may be repeated carries a key.

    >>> client = Client("http://127.0.0.1:7070")                       # doctest: +SKIP
    >>> task = client.submit("draft", {"title": "Tides"})              # doctest: +SKIP
    >>> client.result(task.id, timeout=60)                             # doctest: +SKIP
    {'text': 'Twice a day…'}

    - ``url``: else the environment variable ``RESURGAM_API``, else ``http://127.0.0.1:7070``.
    - ``token``: else the content of ``token_file``, else ``RESURGAM_TOKEN``; a server without
      tokens needs none.
    - ``cacert``: a file with the certificates of those who may vouch for the server, instead of
      the system's; ``cert`` and ``key`` are shown to a server that asks for them.
    - ``timeout``: seconds that one try may take.
    """

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        token: Optional[str] = None,
        token_file: Optional[str] = None,
        cacert: Optional[str] = None,
        cert: Optional[str] = None,
        key: Optional[str] = None,
        timeout: float = 10.0,
        patience: Patience = Patience(),
    ) -> None:
        base = url or os.environ.get("RESURGAM_API") or DEFAULT_URL
        if token is None and token_file is not None:
            with open(token_file, encoding="utf-8") as file:
                token = file.read().strip()
        if token is None:
            token = os.environ.get("RESURGAM_TOKEN") or None
        context = None
        if base.lower().startswith("https:"):
            context = ssl.create_default_context(cafile=cacert)
            if cert is not None:
                context.load_cert_chain(cert, key)
        self.transport = Transport(base, token, context)
        self.timeout = timeout
        self.patience = patience
        #: What can be done with workflows.
        self.workflows = Workflows(self)

    @property
    def url(self) -> str:
        """Where the API is."""
        return self.transport.base

    def close(self) -> None:
        """Closes the connections. The client can be used again; it then opens new ones."""
        self.transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self,
        method: str,
        path: str,
        body: Json = None,
        query: Optional[Mapping[str, Json]] = None,
        wait: float = 0.0,
    ) -> Json:
        """Any request that may be repeated: for what this class has no method for."""
        return self.transport.persistently(
            method,
            path,
            body=body,
            query=query,
            timeout=self.timeout + wait,
            patience=self.patience,
        )

    # Tasks

    def submit(
        self,
        capability: str,
        payload: Json = None,
        *,
        idempotency_key: Optional[str] = None,
        priority: Optional[int] = None,
        delay: Optional[Length] = None,
        run_at: Optional[datetime] = None,
        timeout: Optional[Length] = None,
        key: Optional[str] = None,
        tags: Sequence[str] = (),
        keep: Optional[Length] = None,
        retry: Optional[RetryPolicy] = None,
        reply_to: Optional[str] = None,
        fallback: Optional[Tuple[str, Length]] = None,
    ) -> Submitted:
        """Hands in one task. When this returns, it is durable.

        - ``idempotency_key``: the same key again gives the first task back. Without one a key
          is made up, so that a lost answer does not lead to two tasks.
        - ``priority``: higher goes first, -32768 to 32767; 0 by default.
        - ``delay`` or ``run_at``: not to be claimed earlier.
        - ``timeout``: how long one try may take.
        - ``key``: for whom or what it is done; limits can hold for each key.
        - ``tags``: words to find it by.
        - ``keep``: how long it is kept once it is over.
        - ``retry``: how often and how far apart it is tried.
        - ``fallback``: another capability, and after how long without anybody who begins it the task
          is for that one.
        - ``reply_to``: the agent whose mailbox gets a message when it is over.

        >>> client.submit("draft", {"title": "Tides"}, priority=5, delay="10s",
        ...               retry=RetryPolicy(max_attempts=3))           # doctest: +SKIP
        Submitted(id='01a21010-7eb9-742a-9294-313c04c247da', created=True)
        """
        task = NewTask(
            capability,
            payload,
            idempotency_key=idempotency_key,
            priority=priority,
            delay=delay,
            run_at=run_at,
            timeout=timeout,
            key=key,
            tags=tags,
            keep=keep,
            retry=retry,
            reply_to=reply_to,
            fallback=fallback,
        )
        return Submitted.from_json(self.request("POST", "/tasks", _keyed(task)))

    def submit_batch(self, tasks: Iterable[NewTask]) -> List[Submitted]:
        """Hands in up to 1000 tasks: all of them or, on an error, none.

        >>> client.submit_batch([NewTask("draft", 1), NewTask("draft", 2)])  # doctest: +SKIP
        """
        answer = self.request("POST", "/tasks/batch", {"tasks": [_keyed(task) for task in tasks]})
        return [Submitted.from_json(value) for value in objects(answer, "tasks")]

    def task(self, task: str) -> Task:
        """One task as it stands."""
        return Task.from_json(self.request("GET", f"/tasks/{segment(task)}"))

    def tasks(
        self,
        *,
        state: Optional[str] = None,
        capability: Optional[str] = None,
        after: Optional[str] = None,
        limit: Optional[int] = None,
    ) -> List[Task]:
        """Tasks in the order in which they were handed in: one page of up to ``limit``.

        ``after`` is the id of the last task of the page before.
        """
        query = {"state": state, "capability": capability, "after": after, "limit": limit}
        answer = self.request("GET", "/tasks", query=query)
        return [Task.from_json(value) for value in objects(answer, "tasks")]

    def all_tasks(
        self, *, state: Optional[str] = None, capability: Optional[str] = None
    ) -> Iterator[Task]:
        """All tasks, page by page.

        >>> for task in client.all_tasks(state="dead"):                # doctest: +SKIP
        ...     print(task.id, task.error)
        """
        after: Optional[str] = None
        while True:
            page = self.tasks(state=state, capability=capability, after=after, limit=500)
            yield from page
            if not page:
                return
            after = page[-1].id

    def pending(self) -> Mapping[str, Json]:
        """Counts, as a whole and by capability."""
        counts: Mapping[str, Json] = self.request("GET", "/tasks/pending")
        return counts

    def cancel(self, *tasks: str, reason: Optional[str] = None) -> Dict[str, str]:
        """Cancels tasks that are not over, and gives what became of each order.

        ``changed``, ``unchanged`` (the task is over) or ``unknown``, by the id of the task. A
        worker that holds one of them learns of it when it next extends its lease.
        """
        body: Dict[str, Json] = {"tasks": list(tasks)}
        if reason is not None:
            body["reason"] = reason
        return _changes(self.request("POST", "/tasks/cancel", body))

    def requeue(self, *tasks: str) -> Dict[str, str]:
        """Has tasks that are dead, cancelled or completed done again, with fresh tries.

        >>> client.requeue(*[task.id for task in client.tasks(state="dead")])  # doctest: +SKIP
        """
        return _changes(self.request("POST", "/tasks/requeue", {"tasks": list(tasks)}))

    def wait(self, task: str, timeout: Optional[float] = None) -> Task:
        """Waits until the task is over and gives it as it then stands.

        ``timeout`` is in seconds; :class:`resurgam.WaitTimeout` is raised when it is up.
        """
        until = None if timeout is None else time.monotonic() + timeout
        pause = 0.01
        while True:
            found = self.task(task)
            if found.is_over:
                return found
            if until is not None:
                left = until - time.monotonic()
                if left <= 0:
                    raise WaitTimeout(f"task {task} is {found.state} after {timeout} s")
                pause = min(pause, left)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def result(self, task: str, timeout: Optional[float] = None) -> Json:
        """Waits for the result of a task.

        Raises :class:`resurgam.TaskFailed` when the task is dead or cancelled, and
        :class:`resurgam.WaitTimeout` when the time is up.
        """
        found = self.wait(task, timeout)
        if found.state != "completed":
            raise TaskFailed(found)
        return found.result

    # Leases: what a worker does. `Worker` does all of this by itself.

    def claim(
        self,
        agent: str,
        instance: str,
        capabilities: Sequence[str],
        *,
        max: int = 1,
        lease: Length = "10s",
        wait: float = 0.0,
        id: Optional[str] = None,
        again: bool = False,
        connection: Optional[Connection] = None,
    ) -> List[Lease]:
        """Takes leases on tasks, waiting up to ``wait`` seconds for one. Made once.

        ``id`` names this claim. When its answer was lost, the same claim with ``again`` gives
        what it took.
        """
        body: Dict[str, Json] = {
            "agent": agent,
            "instance": instance,
            "capabilities": list(capabilities),
            "max": max,
            "lease": length_text(lease),
            "wait": length_text(wait),
        }
        if id is not None:
            body["id"] = id
        if again:
            body["again"] = True
        answer = self.transport.call(
            "POST",
            "/tasks/claim",
            body=body,
            timeout=self.timeout + wait,
            connection=connection,
        )
        return [Lease.from_json(value) for value in objects(answer, "leases")]

    def extend(self, leases: Sequence[Mapping[str, Json]], lease: Length) -> List[str]:
        """Lets leases last so long from now. Made once; gives one outcome for each."""
        body = {"leases": list(leases), "lease": length_text(lease)}
        answer = self.transport.call("POST", "/tasks/extend", body=body, timeout=self.timeout)
        outcomes: List[str] = answer["outcomes"]
        return outcomes

    def complete(self, completions: Sequence[Mapping[str, Json]]) -> List[str]:
        """Ends tasks with their results. Made once; gives one outcome for each."""
        body = {"completions": list(completions)}
        answer = self.transport.call("POST", "/tasks/complete", body=body, timeout=self.timeout)
        outcomes: List[str] = answer["outcomes"]
        return outcomes

    def fail(self, failures: Sequence[Mapping[str, Json]]) -> List[str]:
        """Ends tries that failed. Made once; gives one outcome for each."""
        body = {"failures": list(failures)}
        answer = self.transport.call("POST", "/tasks/fail", body=body, timeout=self.timeout)
        outcomes: List[str] = answer["outcomes"]
        return outcomes

    # Agents

    def register(
        self,
        agent: str,
        instance: str,
        capabilities: Sequence[str] = (),
        *,
        capacity: int = 1,
        labels: Optional[Mapping[str, str]] = None,
        version: Optional[str] = None,
    ) -> Welcome:
        """Registers an agent; ``instance`` is a UUID made afresh at each start. Made once."""
        body: Dict[str, Json] = {
            "id": agent,
            "instance": instance,
            "capabilities": list(capabilities),
            "capacity": capacity,
            "labels": dict(labels or {}),
        }
        if version is not None:
            body["version"] = version
        answer = self.transport.call("POST", "/agents", body=body, timeout=self.timeout)
        return Welcome.from_json(answer)

    def heartbeat(self, agent: str, instance: str) -> bool:
        """A sign of life. ``False`` means: register again. Made once."""
        return heartbeat(self.transport, agent, instance, self.timeout)

    def deregister(self, agent: str, instance: str) -> None:
        """Leaves in order: leases go back to the queue. Made once."""
        path, query = f"/agents/{segment(agent)}", {"instance": instance}
        self.transport.call("DELETE", path, query=query, timeout=self.timeout)

    def agent(self, agent: str) -> Agent:
        """One agent."""
        return Agent.from_json(self.request("GET", f"/agents/{segment(agent)}"))

    def agents(
        self,
        *,
        capability: Optional[str] = None,
        state: Optional[str] = None,
        labels: Optional[Mapping[str, str]] = None,
    ) -> Iterator[Agent]:
        """Agents, gone ones too, page by page.

        >>> [agent.id for agent in client.agents(capability="draft")]   # doctest: +SKIP
        ['writer-1']
        """
        query: Dict[str, Json] = {"capability": capability, "state": state, "limit": 500}
        query.update({f"label.{name}": value for name, value in (labels or {}).items()})
        while True:
            answer = self.request("GET", "/agents", query=query)
            for value in objects(answer, "agents"):
                yield Agent.from_json(value)
            if answer.get("next") is None:
                return
            query["after"] = answer["next"]

    def drain(self, agent: str, reason: Optional[str] = None) -> Agent:
        """Orders an agent to take nothing new."""
        body = {"id": agent} if reason is None else {"id": agent, "reason": reason}
        return Agent.from_json(self.request("POST", "/agents/drain", body))

    def resume(self, agent: str) -> Agent:
        """Orders an agent to take tasks again."""
        return Agent.from_json(self.request("POST", "/agents/resume", {"id": agent}))

    # Messages

    def send(
        self,
        to: str,
        kind: str,
        body: Json = None,
        *,
        sender: Optional[str] = None,
        topic: Optional[str] = None,
        id: Optional[str] = None,
        reply_to: Optional[str] = None,
        in_reply_to: Optional[str] = None,
        ttl: Optional[float] = None,
    ) -> str:
        """Sends a message and gives its id. The same id again changes nothing.

        ``ttl`` is how many seconds it is of use; then it becomes a dead letter.

        >>> client.send("writer-1", "note", {"text": "thank you"})     # doctest: +SKIP
        """
        message: Dict[str, Json] = {
            "id": id or str(uuid.uuid4()),
            "to": to,
            "kind": kind,
            "body": body,
        }
        if sender is not None:
            message["from"] = sender
        if topic is not None:
            message["topic"] = topic
        if reply_to is not None:
            message["reply_to"] = reply_to
        if in_reply_to is not None:
            message["in_reply_to"] = in_reply_to
        if ttl is not None:
            message["ttl"] = length_text(ttl)
        self.request("POST", "/messages", {"messages": [message]})
        given: str = message["id"]
        return given

    def announce(
        self,
        kind: str,
        body: Json = None,
        *,
        capability: Optional[str] = None,
        sender: Optional[str] = None,
        topic: Optional[str] = None,
        id: Optional[str] = None,
        reply_to: Optional[str] = None,
        ttl: Optional[float] = None,
    ) -> int:
        """Sends a message to all agents that are not gone, and gives how many these are.

        With ``capability``, only to those of them that have it. The same id again changes nothing
        for those that have it.

        >>> client.announce("plan.changed", {"version": 7})            # doctest: +SKIP
        """
        announcement = self._announcement(
            kind, body, capability, sender, topic, id, reply_to, ttl
        )
        answer = self.request("POST", "/messages/all", announcement)
        agents: int = answer["agents"]
        return agents

    def send_to_any(
        self,
        capability: str,
        kind: str,
        body: Json = None,
        *,
        sender: Optional[str] = None,
        topic: Optional[str] = None,
        id: Optional[str] = None,
        reply_to: Optional[str] = None,
        ttl: Optional[float] = None,
    ) -> str:
        """Sends a message to one agent that can do something, and gives which.

        That is the one with the most free places, or, if none has a free place, one that is busy. If
        there is none, the error has status 404.

        >>> client.send_to_any("translate/de-en", "help.wanted")       # doctest: +SKIP
        'writer-1'
        """
        announcement = self._announcement(
            kind, body, capability, sender, topic, id, reply_to, ttl
        )
        answer = self.request("POST", "/messages/any", announcement)
        to: str = answer["to"]
        return to

    @staticmethod
    def _announcement(
        kind: str,
        body: Json,
        capability: Optional[str],
        sender: Optional[str],
        topic: Optional[str],
        id: Optional[str],
        reply_to: Optional[str],
        ttl: Optional[float],
    ) -> Dict[str, Json]:
        given: Dict[str, Json] = {
            "id": id or str(uuid.uuid4()),
            "kind": kind,
            "body": body,
            "capability": capability,
            "from": sender,
            "topic": topic,
            "reply_to": reply_to,
            "ttl": None if ttl is None else length_text(ttl),
        }
        needed = ("id", "kind", "body")
        return {key: value for key, value in given.items() if key in needed or value is not None}

    def receive(
        self,
        agent: str,
        *,
        after: Optional[int] = None,
        limit: Optional[int] = None,
        wait: float = 0.0,
    ) -> List[Message]:
        """Reads a mailbox, oldest message first, waiting up to ``wait`` seconds for one.

        Messages stay until they are acknowledged.
        """
        query = {"agent": agent, "after": after, "limit": limit, "wait": length_text(wait)}
        answer = self.request("GET", "/mailbox", query=query, wait=wait)
        return [Message.from_json(value) for value in objects(answer, "messages")]

    def acknowledge(self, agent: str, messages: Iterable[Message]) -> None:
        """Takes messages out of a mailbox.

        >>> read = client.receive("writer-1", wait=10)                 # doctest: +SKIP
        >>> client.acknowledge("writer-1", read)                       # doctest: +SKIP
        """
        sequences = [message.sequence for message in messages]
        if sequences:
            body = {"agent": agent, "sequences": sequences}
            self.request("POST", "/mailbox/acknowledge", body)

    def reject(
        self, agent: str, messages: Iterable[Message], reason: str, *, at_once: bool = False
    ) -> int:
        """Says that an agent can do nothing with messages of its mailbox.

        They come again, until they were rejected so often that they are dead letters;
        ``at_once`` they are that now. Gives how many became one.
        """
        sequences = [message.sequence for message in messages]
        if not sequences:
            return 0
        body = {"agent": agent, "sequences": sequences, "reason": reason, "at_once": at_once}
        dead: int = self.request("POST", "/mailbox/reject", body)["dead"]
        return dead

    # The process itself

    def health(self) -> Mapping[str, Json]:
        """Whether the process lives. Asked once."""
        answer: Mapping[str, Json] = self.transport.call("GET", "/health", timeout=self.timeout)
        return answer

    def openapi(self) -> Mapping[str, Json]:
        """The OpenAPI document of the interface."""
        answer: Mapping[str, Json] = self.request("GET", "/openapi.json")
        return answer


def heartbeat(transport: Transport, agent: str, instance: str, timeout: float) -> bool:
    """A sign of life by any way to the platform."""
    body = {"agents": [{"id": agent, "instance": instance}]}
    answer = transport.call("POST", "/agents/heartbeat", body=body, timeout=timeout)
    return bool(answer["known"][0])


def _keyed(task: NewTask) -> Dict[str, Json]:
    value = task.to_json()
    value.setdefault("idempotency_key", f"auto-{uuid.uuid4()}")
    return value


def _changes(answer: Mapping[str, Json]) -> Dict[str, str]:
    return {item["task"]: item["change"] for item in objects(answer, "tasks")}
