"""What is particular to the SQLite ledger: its file, its SQL, its commits."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobd import ledger_reads, ledger_schema, ledger_writes
from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.ledger import LogChunk, Result, RunSpec
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.states import ACTIVE, TRANSITIONS, RunState
from craft_easy_jobd.turns import Turns
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


async def refused(path: Path) -> str:
    """What open says of a file that it must not take."""
    with pytest.raises(LedgerError) as caught:
        async with opened(SqliteLedger(path)):
            pass
    return str(caught.value)


# -- the file


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"what is this? " * 100)
    text = await refused(path)
    assert str(path) in text
    assert "move the file away" in text
    assert path.read_bytes() == b"what is this? " * 100


async def test_a_database_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    assert "no ledger of ours" in await refused(path)
    assert path.read_bytes() == before


async def test_a_ledger_of_a_later_version(ledger: SqliteLedger, tmp_path: Path) -> None:
    await ledger.close()
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")
    text = await refused(path)
    assert "later version" in text
    assert "999" in text


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "its folder must exist" in await refused(tmp_path / "nowhere" / "ledger.db")


async def test_an_sqlite_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 9))
    assert "needs SQLite 3.37" in await refused(tmp_path / "ledger.db")


@contextmanager
def _another_user() -> Iterator[None]:
    """Root may write read-only files; somebody else may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("folder_mode", [0o555, 0o777])
async def test_a_file_that_cannot_be_written(short_dir: Path, folder_mode: int) -> None:
    path = short_dir / "ledger.db"
    async with opened(SqliteLedger(path)):
        pass
    path.chmod(0o444)
    short_dir.chmod(folder_mode)
    with _another_user():
        text = await refused(path)
    short_dir.chmod(0o700)
    assert "writable" in text


async def test_a_file_that_another_program_holds(ledger: SqliteLedger, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    with closing(other):
        await ledger._writer.call(lambda db: db.execute("PRAGMA busy_timeout = 1") and None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="another program holds it"):
            await ledger.submit([spec("a")])
        other.execute("ROLLBACK")
    assert ledger.broken is None
    await ledger.submit([spec("a")])


async def test_the_file_is_durable_and_closed_whole(ledger: SqliteLedger, tmp_path: Path) -> None:
    asked = ["journal_mode", "synchronous"]
    answers = await ledger._writer.call(lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in asked])
    assert answers == ["wal", 2]
    await ledger.submit([spec("a")])
    await ledger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]


async def test_strange_names_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "a b?mode=memory#%41ü"
    folder.mkdir()
    async with opened(SqliteLedger(folder / "ledger.db")) as ledger:
        await ledger.submit([spec("a")])
        assert await ledger.get("a") is not None
    assert [path.name for path in folder.iterdir()] == ["ledger.db"]


OPEN_FILES = """
import os
for number in os.listdir("/proc/self/fd"):
    if os.path.exists(f"/proc/self/fd/{number}"):
        print(os.readlink(f"/proc/self/fd/{number}"))
"""


async def test_a_child_process_gets_none_of_it(ledger: SqliteLedger) -> None:
    await ledger.get("a")
    child = subprocess.run([sys.executable, "-c", OPEN_FILES], close_fds=False, capture_output=True, check=True)
    assert child.stdout
    assert b"ledger.db" not in child.stdout


# -- the law, in SQL


@pytest.mark.parametrize("target", [state for state in RunState if any(state in to for to in TRANSITIONS.values())])
def test_sql_moves_a_run_exactly_as_the_table_allows(tmp_path: Path, target: RunState) -> None:
    with closing(ledger_schema.open_writer(tmp_path / "ledger.db")) as db:
        ledger_writes.submit(db, 0.0, Turns(), [spec("a")], None)
        for source in RunState:
            db.execute("UPDATE runs SET state = ?", (ledger_schema.CODES[source],))
            moved = db.execute(ledger_schema.move(target, "reason = NULL", "run_id = 'a'")).rowcount
            assert bool(moved) is (target in TRANSITIONS[source]), f"{source} -> {target}"
            db.execute("DELETE FROM unpublished")


async def test_no_query_looks_at_every_run(ledger: SqliteLedger) -> None:
    statements: list[str] = []

    def record(db: sqlite3.Connection) -> None:
        db.set_trace_callback(statements.append)

    await ledger._writer.call(record)
    await ledger.submit([spec("a"), spec("a"), spec("b")])
    leases = await ledger.claim(2)
    await ledger.log([LogChunk("a", 1, b"{}", 1, 0)])
    await ledger.finish([(leases[0], result())])
    await ledger.cancel("b")
    await ledger.reap(budget=3)
    for run in await ledger.unpublished(limit=9):
        await ledger.mark_published([run.run.end])
    reads = [
        lambda db: ledger_reads.get(db, "a"),
        lambda db: ledger_reads.find(db, [], "settle", None, None, None, 9),
        lambda db: ledger_reads.find(db, [], None, "t", None, None, 9),
        lambda db: ledger_reads.find(db, [], None, None, "p", None, 9),
        lambda db: ledger_reads.find(db, [RunState.FAILED], None, None, None, None, 9),
        lambda db: ledger_reads.find(db, list(ACTIVE), None, None, None, None, 9),
        lambda db: ledger_reads.find(db, [RunState.HELD], None, None, None, None, 9),
        lambda db: ledger_reads.read_log(db, "a", 0, 9),
        lambda db: ledger_reads.unpublished(db, 0, 9),
    ]

    def plans(db: sqlite3.Connection) -> list[str]:
        db.row_factory = sqlite3.Row
        for read in reads:
            read(db)
        db.set_trace_callback(None)
        asked = {text for text in statements if text.split()[0] in ("SELECT", "UPDATE", "INSERT", "DELETE")}
        assert len(asked) > len(reads)
        return [f"{row['detail']}: {text}" for text in asked for row in db.execute(f"EXPLAIN QUERY PLAN {text}")]

    scans = [plan for plan in await ledger._writer.call(plans) if plan.startswith(("SCAN runs", "SCAN log"))]
    # The smallest next_at and the newest seq are read off the end of an index; what has failed has an index of its own.
    assert [plan for plan in scans if not any(word in plan for word in ("runs_due", "max(seq)", "runs_failed"))] == []


async def test_loud_runs_are_published_a_few_at_a_time(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reads, "MAX_UNPUBLISHED_BYTES", 1000)
    await ledger.submit([spec(f"r{n}") for n in range(5)])
    leases = await ledger.claim(5)
    await ledger.log([LogChunk(lease.run_id, lease.token, b'"%s"' % (b"x" * 600), 1, 0) for lease in leases])
    await ledger.finish([(lease, result()) for lease in leases])
    sizes = []
    while batch := await ledger.unpublished(limit=9):
        sizes.append(len(batch))
        await ledger.mark_published([one.run.end for one in batch])
    assert sizes == [2, 2, 1]


# -- commits


async def test_calls_of_one_turn_share_a_commit(ledger: SqliteLedger) -> None:
    before = ledger.commits
    reached = threading.Event()
    first = ledger._writer.call(lambda db: reached.set())
    assert not reached.wait(0.05), "handed over before the turn was over"
    await asyncio.gather(first, *[ledger.submit([spec(f"r{n}")]) for n in range(100)])
    assert ledger.commits == before + 1


async def test_calls_made_during_a_commit_share_the_next_one_in_their_order(ledger: SqliteLedger) -> None:
    reached, gate = threading.Event(), threading.Event()
    before = ledger.commits
    slow = ledger._writer.call(lambda db: (reached.set(), gate.wait(20))[1])
    await asyncio.to_thread(reached.wait, 20)
    calls: list[Any] = []
    for n in range(50):
        calls += [ledger.submit([spec(f"r{n}")]), ledger.claim(1)]
        await asyncio.sleep(0)  # noqa: TID251 - one turn of the loop, no wait
    gate.set()
    answers = await asyncio.gather(slow, *calls)
    assert [leases[0].run_id for leases in answers[2::2]] == [f"r{n}" for n in range(50)]
    assert ledger.commits == before + 2


async def test_what_was_called_in_the_turn_of_the_close_is_committed(ledger: SqliteLedger) -> None:
    last = ledger._writer.call(lambda db: "committed")
    await ledger._writer.close()
    assert last.done()
    assert await last == "committed"


async def test_reading_goes_on_while_writing(ledger: SqliteLedger) -> None:
    async def write() -> None:
        for n in range(100):
            await ledger.submit([spec(f"r{n}-{k}") for k in range(10)])

    writing = asyncio.create_task(write())
    seen = [0]
    while not writing.done():
        page = await ledger.find(limit=1)
        seen.append(page[0].seq if page else 0)
    await writing
    assert seen == sorted(seen)
    assert len(await ledger.find(limit=2000)) == 1000
