"""What the machine gives: one plain loop that leaves the same files behind for each run, without us.

A batch of 100: write the request aside and rename it in; read it, rename it to claimed; one commit with a row per run,
synchronous=FULL; unlink; an asyncio task per run; write each result aside, one fsync, rename. A run over the socket has
no request file. The loop has no second process, no state to recover from, and nobody to answer.
"""

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.bench.clients import BATCH
from tests.bench.figures import Figure
from tests.bench.stage import Part, Samples, Sizes, Stage

FIGURES = (
    Figure("limit.spool.drain", "limit: drain of request files", "1/s"),
    Figure("limit.spool.end_to_end", "limit: end to end with request files", "1/s"),
    Figure("limit.socket", "limit: without request files", "1/s"),
    Figure("limit.commit", "limit: commits of one row, one at a time", "1/s"),
    Figure("limit.tasks", "limit: an asyncio task a job, nothing else", "1/s"),
)


def parts(sizes: Sizes) -> dict[str, Part]:
    return {"limit": Part(measure, FIGURES)}


_COMMITS = 200
_REQUEST = json.dumps({"run_id": "run-00000", "job": "noop"}).encode()
_RESULT = json.dumps({"job_name": "noop", "logs": [], "padding": "x" * 600}).encode()


def measure(stage: Stage) -> Samples:
    with stage.root() as root:
        enqueuing, working = _files(root, stage.sizes.runs, with_requests=True)
    with stage.root() as root:
        _, without_requests = _files(root, stage.sizes.runs, with_requests=False)
    with stage.root() as root, closing(_ledger(root)) as ledger:
        commits = min(_COMMITS, stage.sizes.runs)
        began = time.monotonic()
        for number in range(commits):
            _commit(ledger, range(number, number + 1))
        committing = time.monotonic() - began
    runs = stage.sizes.runs
    return {
        "limit.spool.drain": runs / working,
        "limit.spool.end_to_end": runs / (enqueuing + working),
        "limit.socket": runs / without_requests,
        "limit.commit": commits / committing,
        "limit.tasks": runs / _tasks_alone(runs),
    }


def _files(root: Path, runs: int, *, with_requests: bool) -> tuple[float, float]:
    """Seconds for enqueuing, and for the rest."""
    for name in ("aside", "incoming", "claimed", "results", "drafts"):
        (root / name).mkdir()
    enqueuing, loop = 0.0, asyncio.new_event_loop()
    began = time.monotonic()
    with closing(_ledger(root)) as ledger, closing(loop):
        for batch in _batches(runs):
            if with_requests:
                now = time.monotonic()
                _enqueue(root, batch)
                enqueuing += time.monotonic() - now
                _claim(root, batch)
            _commit(ledger, batch)
            if with_requests:
                for number in batch:
                    os.unlink(f"{root}/claimed/{number}")
            loop.run_until_complete(_tasks(len(batch)))
            _publish(root, batch)
    return enqueuing, time.monotonic() - began - enqueuing


def _batches(runs: int) -> Iterator[range]:
    return (range(start, min(start + BATCH, runs)) for start in range(0, runs, BATCH))


def _write(path: str, content: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(content)


def _enqueue(root: Path, batch: range) -> None:
    for number in batch:
        _write(f"{root}/aside/{number}", _REQUEST)
        os.rename(f"{root}/aside/{number}", f"{root}/incoming/{number}")


def _claim(root: Path, batch: range) -> None:
    for number in batch:
        with open(f"{root}/incoming/{number}", "rb", buffering=0) as file:
            file.read()
        os.rename(f"{root}/incoming/{number}", f"{root}/claimed/{number}")


def _publish(root: Path, batch: range) -> None:
    for number in batch:
        _write(f"{root}/drafts/{number}", _RESULT)
    fd = os.open(root / "drafts", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    for number in batch:
        os.rename(f"{root}/drafts/{number}", f"{root}/results/{number}")


def _ledger(root: Path) -> sqlite3.Connection:
    db = sqlite3.connect(root / "ledger.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE runs (run_id TEXT PRIMARY KEY, request BLOB, result BLOB)")
    return db


def _commit(db: sqlite3.Connection, batch: range) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO runs VALUES (?, ?, ?)", [(f"run-{number}", _REQUEST, _RESULT) for number in batch])
    db.execute("COMMIT")


async def _nothing() -> None:
    return None


async def _tasks(count: int) -> None:
    await asyncio.gather(*(asyncio.create_task(_nothing()) for _ in range(count)))


def _tasks_alone(runs: int) -> float:
    began = time.monotonic()
    asyncio.run(_tasks(runs))
    return time.monotonic() - began
