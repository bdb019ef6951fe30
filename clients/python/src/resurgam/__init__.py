"""Client and worker for Resurgam, a control plane for fleets of agents.

Hand in work and wait for it::

    from resurgam import Client

    client = Client("http://127.0.0.1:7070")
    task = client.submit("draft", {"title": "Tides"})
    print(client.result(task.id, timeout=60))

Work on it::

    from resurgam import Client, Worker, Work

    worker = Worker("writer-1", client, concurrency=4)

    @worker.handler("draft")
    def draft(work: Work):
        return {"text": "Twice a day…"}

    worker.run()
"""

from .client import Client
from .errors import (
    Fail,
    LeaseLost,
    Problem,
    ResurgamError,
    TaskFailed,
    TransportError,
    WaitTimeout,
)
from .transport import Patience
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
)
from .workflows import Workflow, WorkflowFailed, Workflows
from .worker import Handler, Work, Worker

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Client",
    "Fail",
    "Handler",
    "Json",
    "Lease",
    "LeaseLost",
    "Length",
    "Message",
    "NewTask",
    "Patience",
    "Problem",
    "ResurgamError",
    "RetryPolicy",
    "Submitted",
    "Task",
    "TaskFailed",
    "TransportError",
    "WaitTimeout",
    "Welcome",
    "Work",
    "Worker",
    "Workflow",
    "WorkflowFailed",
    "Workflows",
]
