"""What the publishing process does, in this process: whole files, durable before they are told of."""

import asyncio
import errno
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobd import folders, publishing, result_files
from craft_easy_jobd.errors import FolderError, LedgerError
from craft_easy_jobd.folders import SyncError
from craft_easy_jobd.ledger import Ended, LogChunk, Result, RunEnd, RunSpec
from craft_easy_jobd.publishing import BATCH, Publishing
from craft_easy_jobd.result_files import Drafted, ResultFiles
from craft_easy_jobd.results import job_result
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.states import RunState
from craft_easy_jobs.model import decode_result, encode_result
from tests.jobd.ledgers import STARTED


def entry(run_id: str) -> bytes:
    facts = {"timestamp": "2026-02-02T02:40:01.000000+00:00", "level": "warning", "message": f"of {run_id}"}
    return json.dumps({**facts, "percentage": None}).encode()


def result(*, state: RunState = RunState.COMPLETED, value: bytes = b'{"n":1}', error: str | None = None) -> Result:
    reason = None if state is RunState.COMPLETED else "exception"
    return Result(state, reason, value, error, STARTED, STARTED + 1.5, 2, 0.25, 4096, "w1", "v1")


async def end(
    ledger: SqliteLedger, run_ids: Sequence[str], answer: Result | None = None, *, logged: Sequence[str] | None = None
) -> None:
    """Carry runs out from request to result, with one log entry each, or for those in `logged`."""
    specs = [
        RunSpec(run_id=run_id, job="echo", params=b'{"p":[1]}', tenant_id="t", requested_by="ada") for run_id in run_ids
    ]
    await ledger.submit(specs)
    leases = await ledger.claim(len(specs))
    ids = run_ids if logged is None else logged
    await ledger.log(
        [LogChunk(each.run_id, each.token, entry(each.run_id), 1, 1) for each in leases if each.run_id in ids]
    )
    await ledger.finish([(lease, answer or result()) for lease in leases])


class Told:
    """Whom the publishing process told of, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[list[Ended]] = []

    def __call__(self, written: Sequence[Ended]) -> None:
        self.batches.append(list(written))

    @property
    def run_ids(self) -> list[str]:
        return [each.run.spec.run_id for batch in self.batches for each in batch]

    async def mark(self, ledger: SqliteLedger) -> None:
        await ledger.mark_published([each.run.end for batch in self.batches for each in batch])


@contextmanager
def publishing_to(results: Path) -> Iterator[tuple[Publishing, Told]]:
    told = Told()
    with closing(Publishing(results.parent / "ledger.db", results, told)) as one:
        yield one, told


def published(results: Path) -> set[str]:
    return {name.removesuffix(".json") for name in os.listdir(results) if name != ".tmp"}


def drafts(results: Path) -> list[str]:
    return os.listdir(results / ".tmp")


# -- what is written


async def test_the_file_says_what_the_ledger_knows(ledger: SqliteLedger, results: Path) -> None:
    await end(ledger, ["r1"])
    with publishing_to(results) as (one, told):
        assert one.look() is None
    assert told.run_ids == ["r1"]
    assert json.loads((results / "r1.json").read_bytes()) == {
        "job_name": "echo",
        "run_id": "r1",
        "status": "completed",
        "started_at": "2026-02-02T02:40:00.250000+00:00",
        "completed_at": "2026-02-02T02:40:01.750000+00:00",
        "duration_seconds": 1.5,
        "result": {"n": 1},
        "error": None,
        "logs": [json.loads(entry("r1"))],
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


async def test_a_failed_run_says_why(ledger: SqliteLedger, results: Path) -> None:
    await end(ledger, ["r1"], result(state=RunState.FAILED, value=b"null", error="ValueError: no"))
    with publishing_to(results) as (one, _):
        assert one.look() is None
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


@pytest.mark.parametrize("logged", [[], ["b"], ["a", "c"], ["a", "b", "c"]])
async def test_each_run_has_its_own_log(ledger: SqliteLedger, results: Path, logged: list[str]) -> None:
    await end(ledger, ["a", "b", "c"], logged=logged)
    with publishing_to(results) as (one, _):
        assert one.look() is None
    logs = {run_id: decode_result((results / f"{run_id}.json").read_bytes()).logs for run_id in ("a", "b", "c")}
    assert {run_id for run_id, entries in logs.items() if entries} == set(logged)
    assert all(entry["message"] == f"of {run_id}" for run_id, entries in logs.items() for entry in entries)


# -- when it is written


@pytest.mark.parametrize("count", [1, 3, 4, BATCH, 2 * BATCH + 7])
async def test_all_that_is_there_is_published(ledger: SqliteLedger, results: Path, count: int) -> None:
    ids = [f"r{number}" for number in range(count)]
    await end(ledger, ids)
    with publishing_to(results) as (one, told):
        assert one.look() is None
    assert published(results) == set(ids)
    assert told.run_ids == ids
    assert max(map(len, told.batches)) <= BATCH
    assert not drafts(results)


async def test_what_is_not_marked_yet_is_not_written_again(ledger: SqliteLedger, results: Path) -> None:
    with publishing_to(results) as (one, told):
        await end(ledger, ["a"])
        one.look()
        await end(ledger, ["b"])
        one.look()
        assert told.run_ids == ["a", "b"]
        await told.mark(ledger)
        one.look()
        assert not one._durable, "what is marked is to be forgotten"
        assert told.run_ids == ["a", "b"]


async def test_a_run_that_ends_again_is_published_again(ledger: SqliteLedger, results: Path) -> None:
    with publishing_to(results) as (one, told):
        await end(ledger, ["a"], result(state=RunState.FAILED))
        one.look()
        await ledger.rerun("a")
        one.look()
        assert told.run_ids == ["a"]
        (lease,) = await ledger.claim(1)
        await ledger.finish([(lease, result())])
        one.look()
    assert told.run_ids == ["a", "a"]
    assert decode_result((results / "a.json").read_bytes()).status == "completed"


async def test_drafts_that_a_crash_left_are_swept(ledger: SqliteLedger, results: Path) -> None:
    (results / ".tmp").mkdir(parents=True)
    (results / ".tmp" / "old.json").write_bytes(b"{")
    with publishing_to(results) as (one, _):
        assert one.look() is None
    assert not drafts(results)


async def test_a_result_that_was_not_marked_is_written_again(ledger: SqliteLedger, results: Path) -> None:
    """A crash between rename and mark leaves a file that recovery replaces by the same."""
    await end(ledger, ["r1"])
    results.mkdir()
    (results / "r1.json").write_bytes(b"")
    with publishing_to(results) as (one, _):
        assert one.look() is None
    assert decode_result((results / "r1.json").read_bytes()).run_id == "r1"


async def test_the_folder_is_made_again_when_it_is_removed(ledger: SqliteLedger, results: Path) -> None:
    with publishing_to(results) as (one, told):
        await end(ledger, ["a"])
        one.look()
        subprocess.run(["rm", "-r", results], check=True)
        await end(ledger, ["b"])
        one.look()
    assert told.run_ids == ["a", "b"]
    assert published(results) == {"b"}


async def test_only_one_may_write(ledger: SqliteLedger, results: Path) -> None:
    await end(ledger, ["a"])
    with publishing_to(results) as (first, _), publishing_to(results) as (second, told):
        assert first.look() is None
        assert "a publishing process of an earlier daemon has not ended" in str(second.look())
        assert not told.batches
        first.close()
        assert second.look() is None
        assert told.run_ids == ["a"]


# -- order


@pytest.mark.parametrize("count", [1, 20])
async def test_content_is_durable_before_the_name_and_the_name_before_it_is_told(
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
    monkeypatch.setattr(result_files, "sync", noting("sync", result_files.sync))
    monkeypatch.setattr(result_files, "sync_all", noting("sync all", result_files.sync_all))
    monkeypatch.setattr(result_files.os, "rename", noting("rename", os.rename))
    await end(ledger, [f"r{number}" for number in range(count)])
    tell = noting("tell", lambda _: None)
    with closing(Publishing(results.parent / "ledger.db", results, tell)) as one:
        assert one.look() is None
    assert steps == ["sync" if count == 1 else "sync all", "rename", "sync", "tell"]


# -- side by side


class Taking:
    """A disk that takes a batch only when it is `let`, or as many batches are drafted as `batches` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, batches: int = 0) -> None:
        self.let = threading.Event()
        self._batches = batches
        self.drafted: list[list[str]] = []
        self._draft, self._sync = ResultFiles.draft, ResultFiles.sync
        monkeypatch.setattr(ResultFiles, "draft", lambda files, batch: self._drafts(files, batch))
        monkeypatch.setattr(ResultFiles, "sync", lambda files: self._takes(files))

    def _drafts(self, files: ResultFiles, batch: Sequence[Ended]) -> Drafted:
        self.drafted.append([each.run.spec.run_id for each in batch])
        drafted = self._draft(files, batch)
        if len(self.drafted) == self._batches:
            self.let.set()
        return drafted

    def _takes(self, files: ResultFiles) -> None:
        assert self.let.wait(10)
        self._sync(files)


async def test_the_next_batch_is_drafted_while_the_disk_takes_one(
    ledger: SqliteLedger, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"r{number}" for number in range(BATCH + 4)]
    await end(ledger, ids)
    disk = Taking(monkeypatch, batches=2)
    with publishing_to(results) as (one, told):
        assert one.look() is None
    assert disk.drafted == [ids[:BATCH], ids[BATCH:]]
    assert told.run_ids == ids


async def test_a_run_that_ends_again_while_the_disk_takes_its_file_comes_after_it(
    ledger: SqliteLedger, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second draft must not go under the name of the first one, half written."""
    await end(ledger, ["a", "b", "c", "d"], result(state=RunState.FAILED))
    disk = Taking(monkeypatch)
    looked, again = threading.Event(), threading.Event()

    def publish_twice() -> list[str]:
        with publishing_to(results) as (one, told):
            new = one._new

            def look(db: sqlite3.Connection) -> list[RunEnd]:
                if one._under_way:
                    looked.set()
                    assert again.wait(30)
                return new(db)

            monkeypatch.setattr(one, "_new", look)
            assert one.look() is None
            assert one.look() is None
            return told.run_ids

    publishing = asyncio.create_task(asyncio.to_thread(publish_twice))
    assert await asyncio.to_thread(looked.wait, 30)
    await ledger.rerun("a")
    (lease,) = await ledger.claim(1)
    await ledger.finish([(lease, result())])
    disk.let.set()
    again.set()
    assert await publishing == ["a", "b", "c", "d", "a"]
    assert decode_result((results / "a.json").read_bytes()).status == "completed"


# -- what fails


async def test_a_full_disk_publishes_what_has_room_and_the_rest_later(
    ledger: SqliteLedger, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"r{number}" for number in range(20)]
    await end(ledger, ids)
    room = 7
    real = result_files._write

    def write(name: str, data: bytes, folder: int, *, synced: bool) -> None:
        nonlocal room
        real(name, data if room else data[:10], folder, synced=synced)
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        room -= 1

    monkeypatch.setattr(result_files, "_write", write)
    with publishing_to(results) as (one, told):
        assert "No space left on device" in str(one.look())
        assert published(results) == set(ids[:7]) == set(told.run_ids)
        assert not drafts(results)
        for run_id in told.run_ids:
            assert decode_result((results / f"{run_id}.json").read_bytes()).run_id == run_id
        room = 1000
        assert one.look() is None
    assert told.run_ids == ids
    assert published(results) == set(ids)


FULL_DISK = """
import asyncio, os, sys
from pathlib import Path
from craft_easy_jobd.publishing import Publishing
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobs.model import decode_result
from tests.jobd.test_result_files import Told, drafts, end, published, result

async def main(root, disk, count):
    ledger = SqliteLedger(root / "ledger.db")
    await ledger.open()
    await end(ledger, [f"r{number}" for number in range(count)], result(value=b'"' + b"x" * 6000 + b'"'))
    told = Told()
    one = Publishing(root / "ledger.db", disk / "results", told)
    (disk / "ballast").write_bytes(b"x" * 500_000)
    with open(disk / "ballast", "ab", buffering=0) as ballast:
        try:
            while ballast.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass
    os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - 5 * 4096)
    full = one.look() is not None
    for run_id in published(disk / "results"):
        decode_result((disk / "results" / f"{run_id}.json").read_bytes())
    print(full, published(disk / "results") == set(told.run_ids), len(told.run_ids) < count, drafts(disk / "results"))
    (disk / "ballast").unlink()
    print(one.look(), len(told.run_ids) == len(published(disk / "results")) == count)
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
    assert answer.stdout == "True True True []\nNone True\n", answer.stderr


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("failing", ["content", "name"])
async def test_after_a_failed_sync_nothing_is_told(
    ledger: SqliteLedger, results: Path, count: int, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fsync(fd: int) -> None:
        nonlocal calls
        calls += 1
        # Of a few files the first calls are for their content; of many that is syncfs alone.
        of_content = count <= 3 and calls <= count
        if of_content == (failing == "content"):
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
    took_no_data = pytest.raises(SyncError, match="the disk did not take it: Input/output error")
    with publishing_to(results) as (one, told), took_no_data as caught:
        one.look()
    assert caught.value.exit_code == LedgerError.exit_code == 74
    assert not told.batches


async def test_a_ledger_that_cannot_be_read_is_said_and_tried_again(ledger: SqliteLedger, results: Path) -> None:
    await end(ledger, ["a"])
    path = results.parent / "ledger.db"
    with publishing_to(results) as (one, told):
        path.rename(path.with_name("away"))
        assert f"{path}: cannot read the ledger" in str(one.look())
        path.with_name("away").rename(path)
        assert one.look() is None
    assert told.run_ids == ["a"]


async def test_a_results_folder_that_is_none_is_refused(ledger: SqliteLedger, results: Path) -> None:
    results.touch()
    with publishing_to(results) as (one, _), pytest.raises(FolderError, match="results: Not a directory"):
        one.look()


def test_started_by_hand_it_says_whose_it_is() -> None:
    command = [sys.executable, "-m", publishing.__name__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (1, "craft_easy_jobd.publishing is started by craft-easy-jobd only\n")
