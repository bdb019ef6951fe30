"""What can go wrong, and whether trying again can help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Optional

if TYPE_CHECKING:
    from .types import Task


class ResurgamError(Exception):
    """Every error of this package is one."""

    #: Whether the same request may succeed later.
    transient: bool = False


class TransportError(ResurgamError):
    """There was no answer. The request may have taken effect, and may be repeated."""

    transient = True


class Problem(ResurgamError):
    """The platform answered that it cannot do what was asked (RFC 9457).

    ``code`` is stable and meant for programs, ``detail`` is meant for people::

        try:
            client.submit("no spaces allowed")
        except Problem as problem:
            print(problem.status, problem.code, problem.detail)
    """

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        request_id: Optional[str] = None,
    ) -> None:
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        #: The id under which the platform's log tells of the request.
        self.request_id = request_id
        self.transient = status in (408, 429, 502, 503, 504)
        super().__init__(f"{detail or title} ({status} {code})")

    @classmethod
    def from_answer(
        cls, status: int, body: Mapping[str, Any], request_id: Optional[str]
    ) -> Problem:
        """Reads a problem document; what is missing in it is left empty."""
        return cls(
            status,
            str(body.get("code", "")),
            str(body.get("title", "")),
            str(body.get("detail", "")),
            request_id,
        )


class TaskFailed(ResurgamError):
    """The task whose result was waited for is dead or cancelled."""

    def __init__(self, task: Task) -> None:
        self.task = task
        reason = f": {task.error}" if task.error else ""
        super().__init__(f"task {task.id} is {task.state}{reason}")


class WaitTimeout(ResurgamError, TimeoutError):
    """The task was not over in time. It goes on; wait again, or cancel it."""


class Fail(Exception):
    """Raised by a handler to end a try that failed, with a reason for people.

    With ``retry=False`` the task is dead at once, because another try cannot help::

        @worker.handler("draft")
        def draft(work: Work) -> str:
            if "title" not in work.payload:
                raise Fail("the payload has no title", retry=False)
            ...
    """

    def __init__(self, reason: str, *, retry: bool = True) -> None:
        self.reason = reason
        self.retry = retry
        super().__init__(reason)


class LeaseLost(Exception):
    """Raised by :meth:`resurgam.Work.check`: somebody else has the task, so drop the work."""
