"""Runs that have ended become JobResult files: whole, durable before they are marked, written again after a failure."""

import asyncio
import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from craft_easy_jobd import folders, publisher
from craft_easy_jobd.errors import FolderError, LedgerError
from craft_easy_jobd.folders import SyncError
from craft_easy_jobd.ledger import LogChunk, Result, RunSpec
from craft_easy_jobd.publisher import BATCH, Publisher
from craft_easy_jobd.results import job_result
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.states import RunState
from craft_easy_jobs.model import decode_result, encode_result
from tests.support.waiting import wait_until

T = TypeVar("T")

STARTED = 1_770_000_000.25
ENTRY = b'{"timestamp":"2026-02-02T02:40:01.000000+00:00","level":"warning","message":"w","percentage":null}'


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    ledger = SqliteLedger(tmp_path / "ledger.db", clock=lambda: STARTED)
    await ledger.open()
    yield ledger
    await ledger.close()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


async def all_marked(ledger: SqliteLedger) -> None:
    """Wait until all that was published is marked, which may come with a later commit."""
    loop = asyncio.get_running_loop()
    await until(lambda: not asyncio.run_coroutine_threadsafe(ledger.unpublished(limit=1), loop).result())


def result(*, state: RunState = RunState.COMPLETED, value: bytes = b'{"n":1}', error: str | None = None) -> Result:
    reason = None if state is RunState.COMPLETED else "exception"
    return Result(state, reason, value, error, STARTED, STARTED + 1.5, 2, 0.25, 4096, "w1", "v1")


async def end(ledger: SqliteLedger, run_ids: Sequence[str], answer: Result | None = None) -> None:
    """Carry runs out from request to result, with one log entry each."""
    specs = [
        RunSpec(run_id=run_id, job="echo", params=b'{"p":[1]}', tenant_id="t", requested_by="ada") for run_id in run_ids
    ]
    await ledger.submit(specs)
    leases = await ledger.claim(len(specs))
    await ledger.log([LogChunk(lease.run_id, lease.token, ENTRY, 1, 1) for lease in leases])
    await ledger.finish([(lease, answer or result()) for lease in leases])


@contextlib.asynccontextmanager
async def publishing(results: Path, ledger: SqliteLedger) -> AsyncIterator[tuple[Publisher, list[str]]]:
    told: list[str] = []
    publisher = Publisher(results, ledger, published=told.extend)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher, told
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        publisher.close()


async def until(fact: Callable[[], T]) -> T:
    return await asyncio.to_thread(wait_until, fact)


def published(results: Path) -> set[str]:
    return {name.removesuffix(".json") for name in os.listdir(results) if name != ".tmp"}


def drafts(results: Path) -> list[str]:
    return os.listdir(results / ".tmp")


# -- what is written


async def test_the_file_says_what_the_ledger_knows(ledger: SqliteLedger, results: Path) -> None:
    async with publishing(results, ledger) as (publisher, told):
        await end(ledger, ["r1"])
        publisher.wake()
        await until(lambda: told == ["r1"])
    assert json.loads((results / "r1.json").read_bytes()) == {
        "job_name": "echo",
        "run_id": "r1",
        "status": "completed",
        "started_at": "2026-02-02T02:40:00.250000+00:00",
        "completed_at": "2026-02-02T02:40:01.750000+00:00",
        "duration_seconds": 1.5,
        "result": {"n": 1},
        "error": None,
        "logs": [json.loads(ENTRY)],
        "reason": None,
        "attempts": 2,
        "tenant_id": "t",
        "scope": "tenant",
        "params": {"p": [1]},
        "parent_run_id": None,
        "requested_by": "ada",
        "warnings": 1,
        "cpu_seconds": 0.25,
        "peak_rss_bytes": 4096,
        "worker": "w1",
        "code_version": "v1",
    }
    await all_marked(ledger)


async def test_a_failed_run_says_why(ledger: SqliteLedger, results: Path) -> None:
    async with publishing(results, ledger) as (publisher, told):
        await end(ledger, ["r1"], result(state=RunState.FAILED, value=b"null", error="ValueError: no"))
        publisher.wake()
        await until(lambda: told)
    written = decode_result((results / "r1.json").read_bytes())
    assert (written.status, written.reason, written.error, written.result) == (
        "failed",
        "exception",
        "ValueError: no",
        None,
    )


async def test_a_result_that_has_not_ended_is_no_result(ledger: SqliteLedger) -> None:
    await end(ledger, ["r1"])
    (ended,) = await ledger.unpublished(limit=1)
    waiting = ended._replace(run=type(ended.run)(**{**_fields(ended.run), "result": None}))
    with pytest.raises(ValueError, match="r1 has not ended"):
        job_result(waiting)


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


async def test_a_clock_that_is_set_back_makes_no_run_end_before_it_began(ledger: SqliteLedger) -> None:
    await end(ledger, ["r1"], result()._replace(completed_at=STARTED - 3600))
    (ended,) = await ledger.unpublished(limit=1)
    written = job_result(ended)
    assert (written.completed_at, written.duration_seconds) == (written.started_at, 0.0)


async def test_values_go_to_the_file_as_the_json_that_they_are(ledger: SqliteLedger) -> None:
    """Big integers and key order survive, as nothing is decoded on the way."""
    value = b'{"z":123456789012345678901234567890,"a":1.0}'
    await end(ledger, ["r1"], result(value=value))
    (ended,) = await ledger.unpublished(limit=1)
    assert b'"result":' + value in encode_result(job_result(ended))


# -- when it is written


async def test_what_was_there_before_is_published_at_once(ledger: SqliteLedger, results: Path) -> None:
    await end(ledger, ["a", "b"])
    async with publishing(results, ledger) as (_, told):
        await until(lambda: set(told) == {"a", "b"})
    assert published(results) == {"a", "b"}


@pytest.mark.parametrize("count", [1, 3, 4, BATCH, 2 * BATCH + 7])
async def test_drain_publishes_all_that_is_there(ledger: SqliteLedger, results: Path, count: int) -> None:
    ids = [f"r{number}" for number in range(count)]
    await end(ledger, ids)
    batches: list[Sequence[str]] = []
    publisher = Publisher(results, ledger, published=batches.append)
    assert await publisher.drain()
    publisher.close()
    assert published(results) == set(ids)
    assert [run_id for batch in batches for run_id in batch] == ids
    assert max(map(len, batches)) <= BATCH
    assert not drafts(results)
    await all_marked(ledger)


async def test_runs_that_end_while_others_are_published_follow(ledger: SqliteLedger, results: Path) -> None:
    async with publishing(results, ledger) as (publisher, told):
        for number in range(50):
            await end(ledger, [f"r{number}"])
            publisher.wake()
        await until(lambda: len(told) == 50)
    assert len(set(told)) == len(published(results)) == 50


async def test_drafts_that_a_crash_left_are_swept(ledger: SqliteLedger, results: Path) -> None:
    (results / ".tmp").mkdir(parents=True)
    (results / ".tmp" / "old.json").write_bytes(b"{")
    publisher = Publisher(results, ledger, published=lambda _: None)
    assert await publisher.drain()
    publisher.close()
    assert not drafts(results)


async def test_a_result_that_was_not_marked_is_written_again(ledger: SqliteLedger, results: Path) -> None:
    """A crash between rename and mark leaves a file that recovery replaces by the same."""
    await end(ledger, ["r1"])
    results.mkdir()
    (results / "r1.json").write_bytes(b"")
    async with publishing(results, ledger) as (_, told):
        await until(lambda: told)
    assert decode_result((results / "r1.json").read_bytes()).run_id == "r1"


async def test_the_folder_is_made_again_when_it_is_removed(ledger: SqliteLedger, results: Path) -> None:
    async with publishing(results, ledger) as (publisher, told):
        await end(ledger, ["a"])
        publisher.wake()
        await until(lambda: told == ["a"])
        subprocess.run(["rm", "-r", results], check=True)
        await end(ledger, ["b"])
        publisher.wake()
        await until(lambda: told == ["a", "b"])
    assert published(results) == {"b"}


# -- order


@pytest.mark.parametrize("count", [1, 20])
async def test_content_is_durable_before_the_name_and_the_name_before_the_mark(
    ledger: SqliteLedger, results: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def noting(step: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if not steps or steps[-1] != step:
                steps.append(step)
            return real(*args, **options)

        return call

    results.mkdir()
    monkeypatch.setattr(publisher, "sync", noting("sync", publisher.sync))
    monkeypatch.setattr(publisher, "sync_all", noting("sync all", publisher.sync_all))
    monkeypatch.setattr(publisher.os, "rename", noting("rename", os.rename))
    monkeypatch.setattr(ledger, "mark_published", noting("mark", ledger.mark_published))
    await end(ledger, [f"r{number}" for number in range(count)])
    one = Publisher(results, ledger, published=noting("tell", lambda _: None))
    assert await one.drain()
    one.close()
    assert steps == ["sync" if count == 1 else "sync all", "rename", "sync", "mark", "tell"]


# -- what fails


async def test_a_full_disk_publishes_what_has_room_and_the_rest_later(
    ledger: SqliteLedger, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"r{number}" for number in range(20)]
    await end(ledger, ids)
    room = 7
    real = publisher._write

    def write(name: str, data: bytes, folder: int, *, synced: bool) -> None:
        nonlocal room
        real(name, data if room else data[:10], folder, synced=synced)
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        room -= 1

    monkeypatch.setattr(publisher, "_write", write)
    async with publishing(results, ledger) as (one, told):
        await until(lambda: one.problem)
        assert one.problem is not None
        assert "No space left on device" in one.problem
        assert published(results) == set(ids[:7]) == set(told)
        assert not drafts(results)
        for run_id in told:
            assert decode_result((results / f"{run_id}.json").read_bytes()).run_id == run_id
        room = 1000
        await until(lambda: len(told) == 20)
        await until(lambda: one.problem is None)
    assert published(results) == set(ids)


FULL_DISK = """
import asyncio, os, sys
from pathlib import Path
from craft_easy_jobd.publisher import Publisher
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobs.model import decode_result
from tests.jobd.test_publisher import drafts, end, published, result

async def main(root, disk, count):
    ledger = SqliteLedger(root / "ledger.db")
    await ledger.open()
    await end(ledger, [f"r{number}" for number in range(count)], result(value=b'"' + b"x" * 6000 + b'"'))
    told = []
    one = Publisher(disk / "results", ledger, published=told.extend)
    (disk / "ballast").write_bytes(b"x" * 500_000)
    with open(disk / "ballast", "ab", buffering=0) as ballast:
        try:
            while ballast.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass
    os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - 5 * 4096)
    full = not await one.drain()
    for run_id in published(disk / "results"):
        decode_result((disk / "results" / f"{run_id}.json").read_bytes())
    print(full, published(disk / "results") == set(told), len(told) < count, drafts(disk / "results"))
    (disk / "ballast").unlink()
    print(await one.drain(), len(told) == len(published(disk / "results")) == count, one.problem)
    one.close()
    await ledger.close()

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.parametrize("count", [3, 50])
def test_a_real_full_disk_leaves_no_torn_file(tmp_path: Path, count: int) -> None:
    """On a small file system of its own, in a mount namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=1m none "$1" || exit 77; shift; exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", mount, "sh", disk, sys.executable, "-c", FULL_DISK, tmp_path, disk, count]
    answer = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=50)
    if answer.returncode == 77 or answer.stderr.startswith("unshare:"):
        pytest.skip(answer.stderr.strip())
    assert answer.stdout == "True True True []\nTrue True None\n", answer.stderr


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("failing", ["content", "name"])
async def test_after_a_failed_sync_nothing_is_marked(
    ledger: SqliteLedger, results: Path, count: int, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fsync(fd: int) -> None:
        nonlocal calls
        calls += 1
        if failing == "content" or count > 3 or calls > count:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    class Libc:
        """The kernel's answer to syncfs when the disk is broken."""

        @staticmethod
        def syncfs(fd: int) -> int:
            if failing == "content":
                folders.ctypes.set_errno(errno.EIO)
                return -1
            return 0

    monkeypatch.setattr(folders.os, "fsync", fsync)
    monkeypatch.setattr(folders, "_libc", Libc)
    # The ledger syncs in C, where the patch does not reach.
    await end(ledger, [f"r{number}" for number in range(count)])
    told: list[str] = []
    one = Publisher(results, ledger, published=told.extend)
    with pytest.raises(SyncError, match="the disk did not take it: Input/output error") as caught:
        await asyncio.wait_for(one.run(), 10)
    one.close()
    assert caught.value.exit_code == LedgerError.exit_code == 74
    assert not told
    assert len(await ledger.unpublished(limit=100)) == count


async def test_a_ledger_that_cannot_be_written_is_tried_again(
    ledger: SqliteLedger, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = ledger.mark_published, 0

    def mark(seqs: Sequence[int]) -> Any:
        nonlocal failures
        failures += 1
        if failures < 3:
            refused = asyncio.get_running_loop().create_future()
            refused.set_exception(LedgerError("ledger.db: disk is full"))
            return refused
        return real(seqs)

    monkeypatch.setattr(ledger, "mark_published", mark)
    await end(ledger, ["r1"])
    async with publishing(results, ledger) as (_, told):
        await until(lambda: failures == 3)
        await all_marked(ledger)
    # It was published each time: what is not known to be published is written again.
    assert told == ["r1"] * 3


async def test_drain_gives_up_on_a_full_disk_and_says_so(
    ledger: SqliteLedger, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop of the daemon must not wait for somebody to make room."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(publisher, "_write", full)
    await end(ledger, ["r1"])
    one = Publisher(results, ledger, published=lambda _: None)
    assert not await one.drain()
    one.close()
    assert one.problem is not None
    assert len(await ledger.unpublished(limit=1)) == 1


async def test_a_results_folder_that_is_none_is_refused(ledger: SqliteLedger, results: Path) -> None:
    results.touch()
    one = Publisher(results, ledger, published=lambda _: None)
    with pytest.raises(FolderError, match="results: Not a directory"):
        await asyncio.wait_for(one.run(), 10)
    one.close()


async def test_a_publisher_that_is_cancelled_at_any_moment_leaves_the_rest_to_drain(
    ledger: SqliteLedger, results: Path
) -> None:
    told: list[str] = []
    one = Publisher(results, ledger, published=told.extend)
    for number in range(30):
        await end(ledger, [f"r{number}"])
        one.wake()
        task = asyncio.create_task(one.run())
        for _ in range(number):
            await asyncio.tasks.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert await one.drain()
    one.close()
    assert published(results) == {f"r{number}" for number in range(30)}
    assert not drafts(results)
