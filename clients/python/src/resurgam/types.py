"""What is sent and received. Fields of answers that are not known here are passed over."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

#: Any JSON value.
Json = Any

#: A length of time: a text such as ``"10s"`` or ``"1h 30m"``, seconds, or a ``timedelta``.
Length = Union[str, int, float, timedelta]

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(h|ms|m|s|us|µs|ns)")


def length_text(length: Length) -> str:
    """A length of time as the platform reads it.

    >>> length_text(1.5)
    '1500ms'
    >>> length_text("1h 30m")
    '1h 30m'
    """
    if isinstance(length, str):
        return length
    seconds = length.total_seconds() if isinstance(length, timedelta) else float(length)
    if not 0 <= seconds < 1e12:
        raise ValueError(f"{length!r} is not a length of time")
    return f"{round(seconds * 1000)}ms"


def seconds(text: str) -> float:
    """Seconds of a length of time as the platform writes it.

    >>> seconds("1m 500ms")
    60.5
    """
    total, at = 0.0, 0
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            raise ValueError(f"{text!r} is not a length of time")
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    return total


def moment(text: str) -> datetime:
    """A moment as the platform writes it (RFC 3339), to the microsecond.

    >>> moment("2026-11-25T00:17:25.545278123Z").microsecond
    545278
    """
    date, _, fraction = text.rstrip("Zz").partition(".")
    at = datetime.strptime(date, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    return at + timedelta(microseconds=int(fraction[:6].ljust(6, "0")) if fraction else 0)


def moment_text(at: datetime) -> str:
    """A moment as the platform reads it. One without a time zone is taken for local time."""
    text = at.astimezone(timezone.utc).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")


def _moment(value: Optional[str]) -> Optional[datetime]:
    return None if value is None else moment(value)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how far apart a task is tried. What is ``None`` is left to the platform.

    >>> RetryPolicy(max_attempts=3, kind="fixed", backoff="1s").to_json()
    {'max_attempts': 3, 'kind': 'fixed', 'backoff': '1s'}
    """

    #: Tries that may fail or be lost before the task is dead.
    max_attempts: Optional[int] = None
    #: ``"exponential"`` or ``"fixed"``: how the wait grows.
    kind: Optional[str] = None
    #: The wait after the first failure.
    backoff: Optional[Length] = None
    #: The longest wait.
    max_backoff: Optional[Length] = None
    #: How much of each wait is left to chance, in per cent.
    jitter: Optional[int] = None

    def to_json(self) -> Dict[str, Json]:
        """As it is sent."""
        return _without_none(
            max_attempts=self.max_attempts,
            kind=self.kind,
            backoff=None if self.backoff is None else length_text(self.backoff),
            max_backoff=None if self.max_backoff is None else length_text(self.max_backoff),
            jitter=self.jitter,
        )


@dataclass(frozen=True)
class NewTask:
    """A task to hand in; see :meth:`resurgam.Client.submit` for the options."""

    capability: str
    payload: Json = None
    idempotency_key: Optional[str] = None
    priority: Optional[int] = None
    delay: Optional[Length] = None
    run_at: Optional[datetime] = None
    timeout: Optional[Length] = None
    key: Optional[str] = None
    tags: Sequence[str] = ()
    keep: Optional[Length] = None
    retry: Optional[RetryPolicy] = None
    reply_to: Optional[str] = None
    #: Another capability, and how long after it could be claimed first the task is for that one.
    fallback: Optional[Tuple[str, Length]] = None

    def to_json(self) -> Dict[str, Json]:
        """As it is sent."""
        task = _without_none(
            idempotency_key=self.idempotency_key,
            priority=self.priority,
            delay=None if self.delay is None else length_text(self.delay),
            run_at=None if self.run_at is None else moment_text(self.run_at),
            timeout=None if self.timeout is None else length_text(self.timeout),
            key=self.key,
            tags=list(self.tags) or None,
            keep=None if self.keep is None else length_text(self.keep),
            retry=None if self.retry is None else self.retry.to_json(),
            reply_to=self.reply_to,
        )
        if self.fallback is not None:
            capability, after = self.fallback
            task["fallback"] = {"capability": capability, "after": length_text(after)}
        task["capability"] = self.capability
        task["payload"] = self.payload
        return task


@dataclass(frozen=True)
class Submitted:
    """A task that was handed in: it is durable now."""

    id: str
    #: False when the idempotency key was known: ``id`` is then the earlier task.
    created: bool

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Submitted:
        """As it was received."""
        return cls(value["id"], value["created"])


@dataclass(frozen=True)
class Task:
    """A task as it stands."""

    id: str
    capability: str
    #: ``scheduled``, ``ready``, ``running``, ``completed``, ``dead`` or ``cancelled``.
    state: str
    payload: Json
    #: What it gave, once completed.
    result: Json
    #: Why the last try failed.
    error: Optional[str]
    attempts: int
    priority: int
    run_at: datetime
    created_at: datetime
    finished_at: Optional[datetime]
    held_by: Optional[str]
    idempotency_key: Optional[str] = None
    key: Optional[str] = None
    tags: Sequence[str] = ()
    #: The whole answer, fields that this version does not know included.
    raw: Mapping[str, Json] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_over(self) -> bool:
        """Nothing but a requeue changes it any more."""
        return self.state in ("completed", "dead", "cancelled")

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Task:
        """As it was received."""
        return cls(
            id=value["id"],
            capability=value["capability"],
            state=value["state"],
            payload=value["payload"],
            result=value.get("result"),
            error=value.get("error"),
            attempts=value["attempts"],
            priority=value["priority"],
            run_at=moment(value["run_at"]),
            created_at=moment(value["created_at"]),
            finished_at=_moment(value.get("finished_at")),
            held_by=value.get("held_by"),
            idempotency_key=value.get("idempotency_key"),
            key=value.get("key"),
            tags=tuple(value.get("tags") or ()),
            raw=value,
        )


@dataclass(frozen=True)
class Lease:
    """The right to work on a task for a while."""

    task: str
    #: Proves the right; given with every later word about the task.
    token: int
    capability: str
    payload: Json
    #: 1 on the first try.
    attempt: int
    until: datetime

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Lease:
        """As it was received."""
        return cls(
            value["task"],
            value["token"],
            value["capability"],
            value["payload"],
            value["attempt"],
            moment(value["until"]),
        )

    def ref(self) -> Dict[str, Json]:
        """What names it."""
        return {"task": self.task, "token": self.token}


@dataclass(frozen=True)
class Welcome:
    """The answer to a registration."""

    #: Seconds between heartbeats.
    heartbeat_every: float
    #: Seconds without one after which the agent counts as gone.
    expire_after: float
    #: Leases of earlier lives that went back to the queue.
    leases_returned: int
    #: Where the registry itself takes heartbeats, if that is another process.
    registry: Optional[str]

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Welcome:
        """As it was received."""
        terms = value["heartbeat"]
        return cls(
            seconds(terms["every"]),
            seconds(terms["expire_after"]),
            value["leases_returned"],
            value.get("registry"),
        )


@dataclass(frozen=True)
class Agent:
    """An agent as the registry knows it."""

    id: str
    instance: str
    state: str
    capabilities: Sequence[str]
    capacity: int
    running: int
    labels: Mapping[str, str]
    #: The whole answer, fields that this version does not know included.
    raw: Mapping[str, Json] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Agent:
        """As it was received."""
        return cls(
            value["id"],
            value["instance"],
            value["state"],
            tuple(value["capabilities"]),
            value["capacity"],
            value["running"],
            value["labels"],
            value,
        )


@dataclass(frozen=True)
class Message:
    """A message out of a mailbox: delivered at least once, in order of ``sequence``."""

    sequence: int
    id: str
    topic: str
    to: str
    sender: Optional[str]
    kind: str
    body: Json
    created_at: datetime
    #: Whose mailbox an answer is for.
    reply_to: Optional[str] = None
    #: The id of the message that this one answers.
    in_reply_to: Optional[str] = None
    #: From when on it is of no use.
    expires_at: Optional[datetime] = None
    #: How often its receiver has rejected it.
    rejections: int = 0

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Message:
        """As it was received."""
        return cls(
            value["sequence"],
            value["id"],
            value["topic"],
            value["to"],
            value.get("from"),
            value["kind"],
            value["body"],
            moment(value["created_at"]),
            value.get("reply_to"),
            value.get("in_reply_to"),
            moment(value["expires_at"]) if value.get("expires_at") else None,
            value.get("rejections", 0),
        )


def _without_none(**fields: Json) -> Dict[str, Json]:
    return {name: value for name, value in fields.items() if value is not None}


def objects(value: Mapping[str, Json], name: str) -> List[Mapping[str, Json]]:
    """The list of objects in an answer."""
    items: List[Mapping[str, Json]] = value[name]
    return items
