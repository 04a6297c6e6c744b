"""The SQLite ledger on disks that are full or broken, and after kill -9."""

import random
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.ledger import Result, RunSpec
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.states import ACTIVE, FINAL, RunState
from tests.jobd.ledgers import opened

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    async with opened(SqliteLedger(tmp_path / "ledger.db")) as ledger:
        yield ledger


def spec(run_id: str, params: bytes = b"{}") -> RunSpec:
    return RunSpec(run_id=run_id, job="settle", params=params)


def result() -> Result:
    return Result(RunState.COMPLETED, None, b"{}", None, 1.0, 2.0, 1)


async def test_a_full_disk_fails_the_batch_and_nothing_more(ledger: SqliteLedger) -> None:
    await ledger.submit([spec("before")])
    await ledger._writer.call(lambda db: db.execute("PRAGMA max_page_count = 30") and None)
    small, big = ledger.submit([spec("small")]), ledger.submit([spec("big", b"x" * 500_000)])
    for future in (small, big):
        with pytest.raises(LedgerError, match="free some space"):
            await future
    assert ledger.broken is None
    assert ledger.counts[RunState.QUEUED] == 1
    await ledger.submit([spec("after")])
    await ledger._writer.call(lambda db: db.execute("PRAGMA max_page_count = 100000") and None)
    await ledger.submit([spec("big", b"x" * 500_000)])
    assert [run.spec.run_id for run in await ledger.find()] == ["big", "after", "before"]


FULL_DISK = """
import asyncio, os, sys
from pathlib import Path
from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.ledger import RunSpec
from craft_easy_jobd.sqlite_ledger import SqliteLedger

async def main(folder):
    Path(folder, "filler").write_bytes(bytes(1 << 20))
    ledger = SqliteLedger(Path(folder, "ledger.db"))
    await ledger.open()
    kept = []
    try:
        for n in range(1000):
            await ledger.submit([RunSpec(run_id=f"r{n}", job="j", params=bytes(20_000))])
            kept.append(f"r{n}")
    except LedgerError as error:
        assert "free some space" in str(error), error
    assert 10 < len(kept) < 1000 and ledger.broken is None, (kept, ledger.broken)
    os.unlink(Path(folder, "filler"))
    await ledger.submit([RunSpec(run_id="after", job="j")])
    await ledger.close()
    ledger = SqliteLedger(Path(folder, "ledger.db"))
    await ledger.open()
    found = [run.spec.run_id for run in await ledger.find(limit=2000)]
    assert found == ["after", *reversed(kept)], found
    await ledger.close()

asyncio.run(main(sys.argv[1]))
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=3m none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("a small file system of its own needs user namespaces or root")
    script = ["sh", "-c", f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable, FULL_DISK]
    child = subprocess.run(["unshare", "-rm", *script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert child.returncode == 0, child.stderr


async def test_after_an_io_error_nothing_is_written_any_more(ledger: SqliteLedger, tmp_path: Path) -> None:
    await ledger.submit([spec("before")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond what the log has now: a write that fails with EFBIG is an I/O error to SQLite.
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "ledger.db-wal").stat().st_size, hard))
    try:
        with pytest.raises(LedgerError, match="check the disk"):
            await ledger.submit([spec("lost", b"x" * 10_000_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ledger.broken is not None
    with pytest.raises(LedgerError, match="check the disk"):
        await ledger.submit([spec("after")])
    assert [run.spec.run_id for run in await ledger.find()] == ["before"]
    await ledger.close()
    async with opened(SqliteLedger(tmp_path / "ledger.db")) as again:
        assert [run.spec.run_id for run in await again.find()] == ["before"]
        await again.submit([spec("after")])


WRITER = """
import asyncio, sys, time
from pathlib import Path
from craft_easy_jobd.ledger import LogChunk, Result, RunSpec
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.states import RunState

async def main(path, prefix):
    ledger = SqliteLedger(Path(path))
    await ledger.open()
    say = lambda word, ids: print(word, *ids, flush=True)
    for n in range(100_000):
        submitted = ledger.submit([RunSpec(run_id=f"{prefix}-{n}-{k}", job="j", params=bytes(500)) for k in range(7)])
        claimed = ledger.claim(5)
        say("submitted", [one.run_id for one in await submitted])
        leases = await claimed
        say("claimed", [lease.run_id for lease in leases])
        ledger.log([LogChunk(lease.run_id, lease.token, b"{}", 1, 0) for lease in leases])
        ended = [(lease, Result(RunState.COMPLETED, None, b"{}", None, 1.0, 2.0, 1)) for lease in leases[:4]]
        await ledger.finish(ended)
        say("finished", [lease.run_id for lease, _ in ended])

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("seed", range(5))
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "ledger.db"
    said: dict[str, set[str]] = {"submitted": set(), "claimed": set(), "finished": set()}
    for round_ in range(2):
        lines = _killed_after(chance.randrange(1, 200), [sys.executable, "-c", WRITER, str(path), f"{round_}"])
        for word, *run_ids in lines:
            said[word].update(run_ids)
    async with opened(SqliteLedger(path)) as ledger:
        runs = {run.spec.run_id: run for run in await ledger.find(limit=100_000)}
        assert said["submitted"] <= set(runs)
        assert all(runs[run_id].attempt == 1 for run_id in said["claimed"])
        assert all(runs[run_id].state is RunState.COMPLETED for run_id in said["finished"])
        assert all(runs[run_id].log_count == 1 for run_id in said["finished"])
        for state in RunState:
            assert ledger.counts[state] == sum(run.state is state for run in runs.values())
        final = sorted(run.seq for run in runs.values() if run.state in FINAL)
        assert [one.run.seq for one in await ledger.unpublished(limit=100_000)] == final
        assert await ledger.reap(budget=3) == sum(run.state in ACTIVE for run in runs.values())
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _killed_after(lines: int, command: list[str]) -> list[list[str]]:
    """The words of each whole line that the child said before it was killed, somewhere after the first `lines`."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
    return [line.split() for line in said if line.endswith("\n")]
