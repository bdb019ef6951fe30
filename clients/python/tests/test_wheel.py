"""The wheel, as it is handed out, in an environment that has nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .conftest import Server

SCRIPT = """
import sys, threading
import resurgam
from resurgam import Client, Worker
assert "fresh" in resurgam.__file__, resurgam.__file__
client = Client(sys.argv[1])
worker = Worker("w", client)
worker.handler("greet")(lambda work: f"hello {work.payload}")
thread = threading.Thread(target=worker.run)
thread.start()
print(client.result(client.submit("greet", "world").id, timeout=60))
worker.stop()
thread.join()
"""


@pytest.mark.skipif("RESURGAM_PYTHON" not in os.environ, reason="scripts/test-python builds it")
def test_the_wheel_works_where_nothing_else_is(server: Server, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(
        [os.environ["RESURGAM_PYTHON"], "-c", SCRIPT, server.url],
        capture_output=True,
        cwd=tmp_path,
        env=clean,
        text=True,
        timeout=120,
        check=False,
    )
    assert (said.stdout, said.returncode) == ("hello world\n", 0), said.stderr
