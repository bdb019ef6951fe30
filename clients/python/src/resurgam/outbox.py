"""What became of tasks, until the platform has taken note of it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Callable, Deque, Dict, List, Mapping, Sequence

from .client import Client
from .errors import ResurgamError
from .transport import Patience
from .types import Json, Lease

log = logging.getLogger("resurgam")

#: The most reports in one request, and about the most bytes.
_BATCH = 500
_BATCH_BYTES = 4 * 1024 * 1024


@dataclass
class Report:
    """What became of one task."""

    lease: Lease
    #: The field of a completion (``result``) or of a failure (``error``, ``retry``).
    fields: Mapping[str, Json]
    #: About how large it is.
    size: int
    completed: bool = field(default=True)

    def to_json(self) -> Dict[str, Json]:
        """As it is sent."""
        return {**self.lease.ref(), **self.fields}


class Outbox:
    """Reports that were not accepted yet. Sent in order by one thread, repeated through outages.

    Bounded: while it is full, no further work is begun.
    """

    def __init__(self, client: Client, most: int, most_bytes: int) -> None:
        self._client = client
        self._most = most
        self._most_bytes = most_bytes
        self._reports: Deque[Report] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resurgam-outbox", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def put(self, report: Report) -> None:
        """Takes a report. Never refused: what is done must be told."""
        with self._changed:
            self._reports.append(report)
            self._bytes += report.size
            self._changed.notify_all()

    def has_room(self) -> bool:
        """Whether further work may be begun."""
        with self._changed:
            return len(self._reports) < self._most and self._bytes < self._most_bytes

    def leases(self) -> List[Lease]:
        """The leases of the reports that wait."""
        with self._changed:
            return [report.lease for report in self._reports]

    def stop(self, patience: float) -> int:
        """Waits until all are sent, but not longer than so many seconds; gives how many are not."""
        with self._changed:
            self._changed.wait_for(lambda: not self._reports, patience)
            left = len(self._reports)
            self._ending.set()
            self._changed.notify_all()
        self._thread.join(timeout=self._client.timeout + 1)
        return left

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._reports or self._ending.is_set())
                if self._ending.is_set():
                    return
                batch = self._batch()
            # They stay in the queue, and count, until they were accepted.
            if self._send(batch):
                with self._changed:
                    for report in batch:
                        self._reports.popleft()
                        self._bytes -= report.size
                    self._changed.notify_all()

    def _batch(self) -> List[Report]:
        """The oldest reports of one kind."""
        batch: List[Report] = []
        size = 0
        for report in self._reports:
            size += report.size
            full = len(batch) >= _BATCH or size > _BATCH_BYTES
            if batch and (full or report.completed != batch[0].completed):
                break
            batch.append(report)
        return batch

    def _send(self, batch: Sequence[Report]) -> bool:
        """Sends reports as often as it takes; false when the worker ends before."""
        call: Callable[[Sequence[Mapping[str, Json]]], List[str]]
        call = self._client.complete if batch[0].completed else self._client.fail
        backoff = Patience(total=None).start()
        away = False
        while not self._ending.is_set():
            try:
                outcomes = call([report.to_json() for report in batch])
            except ResurgamError as error:
                if error.transient:
                    if not away:
                        log.warning("the platform does not take reports (%s); trying on", error)
                        away = True
                    self._ending.wait(backoff.next() or 0.0)
                    continue
                if len(batch) > 1:
                    # One that is refused must not take the others with it.
                    return all([self._send([report]) for report in batch])
                return self._refused(batch[0], error)
            for report, outcome in zip(batch, outcomes):
                if outcome != "accepted":
                    log.warning("task %s: came too late (%s)", report.lease.task, outcome)
            return True
        return False

    def _refused(self, report: Report, error: ResurgamError) -> bool:
        if not report.completed:
            log.error("task %s: its failure was refused: %s", report.lease.task, error)
            return True
        # Repeating the work would not mend it.
        fields = {"error": f"the result was refused: {error}", "retry": False}
        return self._send([Report(report.lease, fields, report.size, completed=False)])
