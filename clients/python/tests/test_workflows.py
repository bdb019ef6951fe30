"""Workflows with a worker in Python."""

from __future__ import annotations

from typing import Callable

import pytest

from resurgam import Client, Fail, Json, Work, Worker, WorkflowFailed

from .conftest import Running, until

Start = Callable[[Worker], Running]

DEFINITION = {
    "name": "publish",
    "steps": [
        {"id": "draft", "capability": "write", "input": {"topic": "${input.topic}"}},
        {"id": "review", "needs": ["draft"], "wait": {"approval": "Publish it?"}},
        {
            "id": "publish",
            "needs": ["review"],
            "capability": "publish",
            "input": "${steps.draft.output}",
        },
    ],
    "output": {"url": "${steps.publish.output}"},
}


def test_a_workflow_goes_from_start_to_end(client: Client, start: Start) -> None:
    worker = Worker("w", client, concurrency=2)

    @worker.handler("write")
    def write(work: Work) -> Json:
        return f"about {work.payload['topic']}"

    @worker.handler("publish")
    def publish(work: Work) -> Json:
        if "forbidden" in work.payload:
            raise Fail("this cannot be published", retry=False)
        return f"https://example.org/{work.payload}"

    start(worker)
    workflows = client.workflows
    workflows.define(DEFINITION)
    id = workflows.start("publish", {"topic": "tides"}, idempotency_key="k")
    assert workflows.start("publish", {"topic": "tides"}, idempotency_key="k") == id
    until("it waits", lambda: workflows.show(id).state == "waiting")
    assert [found.id for found in workflows.list(state="waiting")] == [id]
    assert [step["step"] for step in workflows.show(id).steps] == ["draft", "review"]
    workflows.approve(id, "review", by="ann")
    assert workflows.output(id, timeout=60) == {"url": "https://example.org/about tides"}

    rejected = workflows.start(DEFINITION, {"topic": "ebb"})
    until("it waits", lambda: workflows.show(rejected).state == "waiting")
    workflows.approve(rejected, "review", False, comment="no")
    with pytest.raises(WorkflowFailed):
        workflows.output(rejected, timeout=60)

    failing = workflows.start("publish", {"topic": "forbidden"})
    workflows.approve(failing, "review")
    assert workflows.wait(failing, timeout=60).state == "failed"
    workflows.retry(failing)
    assert workflows.wait(failing, timeout=60).state == "failed"

    stopped = workflows.start("publish", {"topic": "x"})
    workflows.cancel(stopped, "not needed")
    assert workflows.wait(stopped, timeout=60).state == "cancelled"
