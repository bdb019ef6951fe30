"""Workflows: start them, look at them, tell them something. Used as ``client.workflows``."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Union

from .errors import ResurgamError, WaitTimeout
from .transport import segment
from .types import Json, moment, objects

if TYPE_CHECKING:
    from .client import Client


@dataclass(frozen=True)
class Workflow:
    """A workflow as it stands."""

    id: str
    name: str
    #: ``running``, ``waiting``, ``compensating``, ``completed``, ``failed`` or ``cancelled``.
    state: str
    #: What it gave, once completed; not in lists.
    output: Json
    #: Why it failed or was cancelled.
    error: Optional[str]
    #: Its steps; not in lists.
    steps: List[Mapping[str, Json]]
    created_at: datetime
    #: The whole answer, fields that this version does not know included.
    raw: Mapping[str, Json] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_over(self) -> bool:
        """Nothing but a retry changes it any more."""
        return self.state in ("completed", "failed", "cancelled")

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Workflow:
        """As it was received."""
        return cls(
            value["id"],
            value["name"],
            value["state"],
            value.get("output"),
            value.get("error"),
            list(value.get("steps") or ()),
            moment(value["created_at"]),
            value,
        )


class WorkflowFailed(ResurgamError):
    """The workflow whose output was waited for has failed or was cancelled."""

    def __init__(self, workflow: Workflow) -> None:
        self.workflow = workflow
        reason = f": {workflow.error}" if workflow.error else ""
        super().__init__(f"workflow {workflow.id} is {workflow.state}{reason}")


class Workflows:
    """What can be done with workflows.

    >>> id = client.workflows.start("publish-article", {"topic": "Tides"})  # doctest: +SKIP
    >>> client.workflows.approve(id, "review", by="ann")                    # doctest: +SKIP
    >>> client.workflows.output(id, timeout=3600)                           # doctest: +SKIP
    {'url': 'https://example.org/tides'}
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def define(self, definition: Mapping[str, Json]) -> None:
        """Registers a definition. The very same may be registered again."""
        name = segment(str(definition.get("name", "")))
        self._client.request("PUT", f"/definitions/{name}", dict(definition))

    def start(
        self,
        definition: Union[str, Mapping[str, Json]],
        input: Json = None,
        *,
        version: Optional[int] = None,
        idempotency_key: Optional[str] = None,
    ) -> str:
        """Starts a workflow and gives its id. When this returns, it is durable.

        ``definition`` is the name of a registered one, or the definition itself. Without an
        ``idempotency_key`` one is made up, so that a lost answer does not lead to two.
        """
        named = isinstance(definition, str)
        body: Dict[str, Json] = {"name": definition} if named else {"definition": definition}
        body["input"] = input
        body["idempotency_key"] = idempotency_key or f"auto-{uuid.uuid4()}"
        if version is not None:
            body["version"] = version
        id: str = self._client.request("POST", "/workflows", body)["id"]
        return id

    def show(self, id: str) -> Workflow:
        """One workflow with its steps."""
        return Workflow.from_json(self._client.request("GET", f"/workflows/{segment(id)}"))

    def list(
        self,
        *,
        state: Optional[str] = None,
        name: Optional[str] = None,
        after: Optional[str] = None,
        limit: Optional[int] = None,
    ) -> List[Workflow]:
        """Workflows in the order in which they were started: one page."""
        query = {"state": state, "name": name, "after": after, "limit": limit}
        answer = self._client.request("GET", "/workflows", query=query)
        return [Workflow.from_json(value) for value in objects(answer, "workflows")]

    def signal(
        self, id: str, name: str, payload: Json = None, *, signal_id: Optional[str] = None
    ) -> None:
        """Leaves a signal. It stays until a step takes it; the same ``signal_id`` again changes
        nothing."""
        body = {"name": name, "payload": payload, "id": signal_id or str(uuid.uuid4())}
        self._client.request("POST", f"/workflows/{segment(id)}/signal", body)

    def approve(
        self,
        id: str,
        step: str,
        approved: bool = True,
        *,
        by: Optional[str] = None,
        comment: Optional[str] = None,
    ) -> None:
        """Answers an approval: lets the step go on, or with ``approved=False`` fails it."""
        answer: Dict[str, Json] = {"approved": approved}
        if by is not None:
            answer["by"] = by
        if comment is not None:
            answer["comment"] = comment
        self.signal(id, step, answer)

    def cancel(self, id: str, reason: Optional[str] = None) -> None:
        """Has a workflow come to its end and undo what was completed."""
        body = {} if reason is None else {"reason": reason}
        self._client.request("POST", f"/workflows/{segment(id)}/cancel", body)

    def retry(self, id: str) -> None:
        """Lets a failed or cancelled workflow go on from where it stopped."""
        self._client.request("POST", f"/workflows/{segment(id)}/retry")

    def wait(self, id: str, timeout: Optional[float] = None) -> Workflow:
        """Waits until the workflow is over and gives it as it then stands."""
        until = None if timeout is None else time.monotonic() + timeout
        pause = 0.02
        while True:
            found = self.show(id)
            if found.is_over:
                return found
            if until is not None:
                left = until - time.monotonic()
                if left <= 0:
                    raise WaitTimeout(f"workflow {id} is {found.state} after {timeout} s")
                pause = min(pause, left)
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def output(self, id: str, timeout: Optional[float] = None) -> Json:
        """Waits for what a workflow gives; raises :class:`resurgam.WorkflowFailed`."""
        found = self.wait(id, timeout)
        if found.state != "completed":
            raise WorkflowFailed(found)
        return found.output
