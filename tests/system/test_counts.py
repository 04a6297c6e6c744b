"""What a run costs, counted and not timed: system calls and syncs, bytes in the ledger, modules that a command imports.

The limits lie a third above what was counted when they were written; who exceeds one has made something dearer.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from craft_easy_jobd.ledger import Result, RunSpec
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.states import RunState
from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until

Start = Callable[..., DaemonProcess]
JOBS = ("--jobs", "tests.system.sample_jobs")
RUNS = 1000

_SYNCS = ("fsync", "fdatasync", "syncfs")
_FILE_CALLS = ("openat", "newfstatat", "fstat", "renameat", "unlinkat", "close", "read", "write", "pwrite64", "pread64")
_LINE = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)


def drop_all(jobd: DaemonProcess) -> None:
    for _ in range(RUNS):
        jobd.drop({"job": "noop"})


def submit_all(jobd: DaemonProcess) -> None:
    for _ in range(RUNS // 100):
        requests = [{"job": "noop", "run_id": uuid.uuid4().hex} for _ in range(100)]
        code, _ = jobd.call("POST", "/v1/runs", requests)
        assert code == 202


@contextmanager
def traced(jobd: DaemonProcess, counted: Path) -> Iterator[None]:
    """Count system calls of the supervisor and of the publishing process while the block lasts, not of workers."""
    watched = ",".join((*_FILE_CALLS, *_SYNCS))
    pids = [jobd.pid, jobd.status()["publishing"]]
    who = [word for pid in pids for word in ("-p", str(pid))]
    command = ["strace", "-f", "-qq", "-c", "-e", f"trace={watched}", "-o", counted, *who]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as tracer:
        try:
            for pid in pids:
                status = Path(f"/proc/{pid}/status")
                wait_until(lambda status=status: "TracerPid:\t0\n" not in status.read_text())
            yield
        finally:
            tracer.terminate()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("ask", "file_calls", "syncs"), [(drop_all, 18, 150), (submit_all, 7, 150)], ids=["spool", "socket"]
)
def test_system_calls_of_supervisor_and_publishing_process(
    daemon: Start, tmp_path: Path, ask: Callable[[DaemonProcess], None], file_calls: int, syncs: int
) -> None:
    jobd = daemon(*JOBS)
    counted = tmp_path / "counted"
    with traced(jobd, counted):
        ask(jobd)
        wait_until(lambda: len(list((jobd.root / "results").glob("*.json"))) == RUNS, within=40)
        wait_until(lambda: not any((jobd.root / "spool" / "claimed").iterdir()))
    calls = Counter({name: int(number) for number, name in _LINE.findall(counted.read_text())})
    assert calls["renameat"] >= RUNS, "the tracer saw nothing"
    assert sum(calls[name] for name in _FILE_CALLS) <= file_calls * RUNS, calls
    assert sum(calls[name] for name in _SYNCS) <= syncs, calls
    assert jobd.stop() == 0


async def test_bytes_and_transactions_of_a_run_in_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    await ledger.open()
    for batch in range(50):
        specs = [RunSpec(run_id=f"01a2-{batch}-{number}", job="settlement", tenant_id="acme") for number in range(100)]
        _, leases = await asyncio.gather(ledger.submit(specs), ledger.claim(100))
        await ledger.finish([(lease, Result(RunState.COMPLETED, None, b"null", None, 1.0, 2.0, 1)) for lease in leases])
        await ledger.mark_published([one.run.end for one in await ledger.unpublished(limit=500)])
    # Admission and claim share one transaction; the result and its publication have one each.
    assert ledger.commits == 150
    await ledger.close()
    assert path.stat().st_size / 5000 <= 250


@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("import craft_easy_jobs", 12),
        ("import craft_easy_jobs.worker", 200),
        ("from craft_easy_jobs.worker import load; load(['tests.bench.bench_jobs'])", 205),
        ("import craft_easy_jobd.supervisor", 310),
        ("import craft_easy_jobd.control", 340),
        ("import craft_easy_jobd.publishing", 120),
        ("from craft_easy_jobs.cli import main; main(['list', '--jobs', 'craft_easy_jobs.demo'])", 80),
        ("from craft_easy_jobd.cli import main; main(['status', '--root', '/nowhere'])", 70),
    ],
)
def test_modules_that_are_imported(code: str, most: int) -> None:
    """Each costs a fraction of a millisecond of a command's start, and memory of a worker."""
    counting = f"""
import atexit, json, os, sys
before = set(sys.modules)
@atexit.register
def tell():
    os.write(2, json.dumps(sorted(set(sys.modules) - before)).encode())
{code}
"""
    done = subprocess.run(
        [sys.executable, "-c", counting], capture_output=True, env={**os.environ, "COLUMNS": "80"}, check=False
    )
    modules = json.loads(done.stderr.splitlines()[-1])
    assert len(modules) <= most, modules
