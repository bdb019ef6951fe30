"""A worker of the Python client that does the same as `effect`, by calling it."""

import os
import subprocess
import sys

from resurgam import Client, Fail, Work, Worker

EFFECT, NAME, *CAPABILITIES = sys.argv[1:]
worker = Worker(NAME, Client(), concurrency=4, lease="3s")


def work(job: Work) -> str:
    environment = {**os.environ, "RESURGAM_TASK_ID": str(job.task), "RESURGAM_TASK_TOKEN": str(job.token),
                   "RESURGAM_TASK_ATTEMPT": str(job.attempt)}
    done = subprocess.run([EFFECT], input=job.payload, text=True, capture_output=True, env=environment)
    if done.returncode:
        raise Fail(done.stderr.strip(), retry=done.returncode != 100)
    return done.stdout


for capability in CAPABILITIES:
    worker.handler(capability)(work)
worker.run()
