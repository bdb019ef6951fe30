"""The worker: claims tasks, hands them to functions, and tells what became of them."""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
import traceback
import uuid
from types import FrameType
from typing import Callable, Dict, List, Mapping, Optional, TypeVar

from .client import Client, heartbeat
from .errors import Fail, LeaseLost, Problem, ResurgamError
from .outbox import Outbox, Report
from .transport import Connection, Patience, Transport, encode
from .types import Json, Lease, Length, Welcome, length_text, seconds

log = logging.getLogger("resurgam")

#: How long a claim waits for a task.
_CLAIM_WAIT = 20.0
#: The longest reason of a failure.
_MAX_REASON = 8 * 1024
#: The most tasks of one claim.
_MAX_CLAIM = 256


class Work:
    """One try of a task, as a handler gets it."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        #: Set when the lease is lost, or the worker cannot wait any longer: what the handler
        #: does from then on counts for nothing. Long work should look at it.
        self.cancelled = threading.Event()

    @property
    def task(self) -> str:
        """The id of the task."""
        return self._lease.task

    @property
    def capability(self) -> str:
        """What it is about."""
        return self._lease.capability

    @property
    def payload(self) -> Json:
        """What to work on."""
        return self._lease.payload

    @property
    def attempt(self) -> int:
        """1 on the first try."""
        return self._lease.attempt

    @property
    def token(self) -> int:
        """The fencing token. Give it to other systems that can refuse smaller ones."""
        return self._lease.token

    def check(self) -> None:
        """Raises :class:`resurgam.LeaseLost` if the work counts for nothing any more.

        >>> for page in pages:                                         # doctest: +SKIP
        ...     work.check()
        ...     read(page)
        """
        if self.cancelled.is_set():
            raise LeaseLost(f"task {self.task}: the lease is lost")

    def sleep(self, seconds: float) -> None:
        """Sleeps, and wakes with :class:`resurgam.LeaseLost` when the work is in vain."""
        if self.cancelled.wait(seconds):
            self.check()


#: Does one try of a task. What it returns is the result; what it raises ends the try.
Handler = Callable[[Work], Json]
_H = TypeVar("_H", bound=Handler)


class Worker:
    """An agent that works on tasks.

    ::

        worker = Worker("writer-1", Client("http://127.0.0.1:7070"), concurrency=4)

        @worker.handler("draft")
        def draft(work: Work) -> Json:
            return {"text": write(work.payload["title"])}

        worker.run()          # until SIGTERM or SIGINT

    The platform delivers at least once: a handler may run twice for one task (after a crash, or
    when a lease was lost), but only one result counts. Effects outside of the platform need a
    key of their own; ``work.task`` is a good one.

    What it does through trouble:

    - *no answer*: repeated with random waits; finished results are kept and sent when the
      platform is back. While too many wait, no further work is begun.
    - *the registry forgot it*: registers again.
    - *a lost lease*: ``work.cancelled`` is set, and the result is dropped.
    - *SIGTERM*: takes nothing new, finishes what it has (for up to ``drain`` seconds), sends the
      results, and leaves in order.

    - ``concurrency``: so many handlers run at once, each in a thread.
    - ``lease``: how long a task stays with this worker without a sign of life; extended while
      a handler runs.
    """

    def __init__(
        self,
        name: str,
        client: Optional[Client] = None,
        *,
        concurrency: int = 1,
        lease: Length = "10s",
        labels: Optional[Mapping[str, str]] = None,
        version: Optional[str] = None,
        drain: float = 30.0,
        most_reports: int = 4096,
        most_report_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        self.name = name
        self.client = client if client is not None else Client()
        self.concurrency = concurrency
        self.lease = length_text(lease)
        self.labels = dict(labels or {})
        self.version = version
        self.drain = drain
        #: This life of the worker.
        self.instance = str(uuid.uuid4())
        self._handlers: Dict[str, Handler] = {}
        self._outbox = Outbox(self.client, most_reports, most_report_bytes)
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._again = threading.Event()
        self._lock = threading.Condition()
        self._running: Dict[str, Work] = {}
        self._waiting: queue.SimpleQueue[Optional[Work]] = queue.SimpleQueue()
        self._claims: Optional[Connection] = None
        self._registry: Optional[Transport] = None

    def handler(self, capability: str) -> Callable[[_H], _H]:
        """Says which function works on tasks of this capability."""

        def register(function: _H) -> _H:
            if capability in self._handlers:
                raise ValueError(f"there is a handler for {capability} already")
            self._handlers[capability] = function
            return function

        return register

    def stop(self) -> None:
        """Ends :meth:`run` in order. Can be called from any thread and by signal handlers."""
        self._stopping.set()
        claims = self._claims
        if claims is not None:
            claims.abort()

    def run(self, *, signals: bool = True) -> None:
        """Works until :meth:`stop`, SIGTERM or SIGINT. A worker runs once.

        Signals are heeded if this is the main thread and ``signals`` is true. Raises a
        :class:`resurgam.Problem` if the platform refuses the registration.
        """
        if not self._handlers:
            raise ValueError("there is no handler; use @worker.handler(...)")
        before = self._heed_signals() if signals else {}
        try:
            welcome = self._register()
            if welcome is not None:
                self._work(welcome)
        finally:
            for number, action in before.items():
                signal.signal(number, action)

    def _heed_signals(self) -> Dict[int, Json]:
        if threading.current_thread() is not threading.main_thread():
            return {}

        def stop(number: int, frame: Optional[FrameType]) -> None:
            # What stopping takes is not done here: it may need a lock that is held.
            threading.Thread(target=self.stop, daemon=True).start()

        return {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}

    def _register(self) -> Optional[Welcome]:
        """Registers for the first time, as long as it takes; none if stopped before."""
        backoff = Patience(total=None).start()
        away = False
        while not self._stopping.is_set():
            try:
                return self._register_once()
            except ResurgamError as error:
                if not error.transient:
                    raise
                if not away:
                    log.warning("cannot register yet (%s); trying on", error)
                    away = True
                self._stopping.wait(backoff.next() or 0.0)
        return None

    def _register_once(self) -> Welcome:
        welcome = self.client.register(
            self.name,
            self.instance,
            sorted(self._handlers),
            capacity=self.concurrency,
            labels=self.labels,
            version=self.version,
        )
        registry = welcome.registry
        self._registry = None if registry is None else self.client.transport.at(registry)
        log.info("%s is registered", self.name)
        return welcome

    def _work(self, welcome: Welcome) -> None:
        helpers = [
            threading.Thread(target=self._show_signs, args=(welcome,), daemon=True),
            threading.Thread(target=self._extend_leases, daemon=True),
        ]
        slots = [
            threading.Thread(target=self._slot, name=f"resurgam-slot-{n}", daemon=True)
            for n in range(self.concurrency)
        ]
        self._outbox.start()
        for thread in helpers + slots:
            thread.start()
        self._claims = self.client.transport.connection()
        claiming = threading.Thread(target=self._claim_on, daemon=True)
        claiming.start()
        # Signals come to the main thread, which has nothing else to do.
        while not self._stopping.wait(3600.0):
            pass
        self._claims.abort()
        claiming.join()
        with self._lock:
            self._lock.wait_for(lambda: not self._running, self.drain)
            for work in self._running.values():
                log.warning("task %s is not done in time; it goes back", work.task)
                work.cancelled.set()
        for _ in slots:
            self._waiting.put(None)
        left = self._outbox.stop(min(self.drain, 10.0))
        if left:
            log.warning("%s results could not be told; their tasks will be redone", left)
        self._ended.set()
        for thread in helpers:
            thread.join(timeout=self.client.timeout + 1)
        try:
            self.client.deregister(self.name, self.instance)
            log.info("%s left in order", self.name)
        except ResurgamError as error:
            log.warning("%s left without saying so: %s", self.name, error)

    # Being known

    def _show_signs(self, welcome: Welcome) -> None:
        every = max(welcome.heartbeat_every, 0.01)
        away = False
        while not self._ended.is_set():
            told = self._again.wait(every)
            self._again.clear()
            if self._ended.is_set():
                return
            try:
                if told or not self._is_known():
                    log.warning("the registry does not know %s; registering again", self.name)
                    every = max(self._register_once().heartbeat_every, 0.01)
                away = False
            except ResurgamError as error:
                if not away:
                    log.warning("the registry does not answer: %s", error)
                    away = True

    def _is_known(self) -> bool:
        timeout = min(self.client.timeout, 2.0)
        if self._registry is not None:
            try:
                # Goes on when the API is away.
                return heartbeat(self._registry, self.name, self.instance, timeout)
            except ResurgamError as error:
                if not error.transient:
                    raise
        return heartbeat(self.client.transport, self.name, self.instance, timeout)

    # Claiming

    def _claim_on(self) -> None:
        backoff = Patience(total=None).start()
        claim = str(uuid.uuid4())
        again, away, most = False, False, 0
        while True:
            if not again:
                most = self._free()
            if self._stopping.is_set():
                return
            try:
                leases = self.client.claim(
                    self.name,
                    self.instance,
                    sorted(self._handlers),
                    max=most,
                    lease=self.lease,
                    wait=_CLAIM_WAIT,
                    id=claim,
                    again=again,
                    connection=self._claims,
                )
            except ResurgamError as error:
                if self._stopping.is_set():
                    return
                if isinstance(error, Problem) and error.code == "unknown-agent":
                    self._again.set()
                elif not away:
                    log.warning("cannot claim tasks (%s); trying on", error)
                    away = True
                # Whatever the lost answer gave is given again.
                again = error.transient
                if not again:
                    claim = str(uuid.uuid4())
                self._stopping.wait(backoff.next() or 0.0)
                continue
            backoff = Patience(total=None).start()
            claim, again, away = str(uuid.uuid4()), False, False
            for lease in leases:
                self._begin(lease)

    def _free(self) -> int:
        """Waits for free slots and gives how many there are."""
        with self._lock:
            while not self._stopping.is_set():
                free = self.concurrency - len(self._running)
                if free > 0 and self._outbox.has_room():
                    return min(free, _MAX_CLAIM)
                self._lock.wait(0.1)
        return 0

    def _begin(self, lease: Lease) -> None:
        work = Work(lease)
        with self._lock:
            before = self._running.get(lease.task)
            if before is not None:
                if before.token >= lease.token:
                    return
                # The platform gave it to us again: what we did before counts for nothing.
                before.cancelled.set()
            self._running[lease.task] = work
        self._waiting.put(work)

    # Working

    def _slot(self) -> None:
        while True:
            work = self._waiting.get()
            if work is None:
                return
            report = self._try(work)
            if report is not None and not work.cancelled.is_set():
                self._outbox.put(report)
            with self._lock:
                if self._running.get(work.task) is work:
                    del self._running[work.task]
                self._lock.notify_all()

    def _try(self, work: Work) -> Optional[Report]:
        if work.cancelled.is_set():
            return None
        try:
            result = self._handlers[work.capability](work)
        except LeaseLost:
            return None
        except Fail as fail:
            return _failed(work, fail.reason, fail.retry)
        except BaseException as error:  # noqa: B902 - also SystemExit ends the try alone
            log.exception("task %s: its handler failed", work.task)
            lines = traceback.format_exception_only(type(error), error)
            return _failed(work, "".join(lines).strip(), True)
        try:
            size = len(encode(result))
        except ValueError as error:
            return _failed(work, f"the handler's result: {error}", False)
        return Report(work._lease, {"result": result}, size)

    def _extend_leases(self) -> None:
        every = max(seconds(self.lease) / 3, 0.02)
        while not self._ended.wait(every):
            with self._lock:
                held = list(self._running.values())
            leases = [work._lease for work in held] + self._outbox.leases()
            for start in range(0, len(leases), 1000):
                part = leases[start : start + 1000]
                try:
                    outcomes = self.client.extend([lease.ref() for lease in part], self.lease)
                except ResurgamError as error:
                    # Nobody can take a lease while the platform is away; the token decides later.
                    log.debug("cannot extend leases: %s", error)
                    continue
                lost = {
                    (lease.task, lease.token)
                    for lease, outcome in zip(part, outcomes)
                    if outcome != "accepted"
                }
                self._lose([work for work in held if (work.task, work.token) in lost])

    def _lose(self, lost: List[Work]) -> None:
        for work in lost:
            with self._lock:
                runs = self._running.get(work.task) is work
            if runs and not work.cancelled.is_set():
                log.warning("task %s: the lease is lost; its work is dropped", work.task)
                work.cancelled.set()


def _failed(work: Work, reason: str, retry: bool) -> Report:
    fields = {"error": reason.encode("utf-8", "replace").decode()[:_MAX_REASON], "retry": retry}
    return Report(work._lease, fields, len(reason), completed=False)
