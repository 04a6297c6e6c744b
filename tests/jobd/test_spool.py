"""Dropped files: each becomes one run, is rejected beside a reason, or is left alone; whatever happens in between."""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from craft_easy_jobd import folders, intake, patience
from craft_easy_jobd.admission import Catalogue, Rules
from craft_easy_jobd.errors import FolderError, LedgerError
from craft_easy_jobd.folders import SyncError
from craft_easy_jobd.identity import Rights
from craft_easy_jobd.ledger import RequestFile, RunSpec, Slice, Submitted
from craft_easy_jobd.letting_go import LET_GO_FILES
from craft_easy_jobd.log_lines import text_line
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.spool import Spool
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.wire import Catalogue as Announced
from tests.jobd.looking import claims_of
from tests.support.waiting import wait_until

T = TypeVar("T")

CATALOGUE = Catalogue(
    Announced(jobs=[JobOptions("echo"), JobOptions("period", params_schema={"period": {"type": "string"}})])
)
ECHO = b'{"job": "echo"}'


class Desk:
    """The supervisor's side of the spool: a real ledger, what was handed to it, and a fault to be put in its way."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.ledger = ledger
        self.slices: list[list[RunSpec]] = []
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def submit(self, specs: list[RunSpec], came_in: Slice) -> "asyncio.Future[list[Submitted]]":
        return asyncio.ensure_future(self._submit(specs, came_in))

    async def _submit(self, specs: list[RunSpec], came_in: Slice) -> list[Submitted]:
        self.before()
        submitted = await self.ledger.submit(specs, came_in=came_in)
        self.slices.append(specs)
        self.after()
        return submitted

    @property
    def specs(self) -> list[RunSpec]:
        return [spec for specs in self.slices for spec in specs]

    async def runs(self) -> list[RunSpec]:
        return [run.spec for run in await self.ledger.find(limit=100_000)]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    (tmp_path / "state").mkdir()
    ledger = SqliteLedger(tmp_path / "state" / "ledger.db")
    await ledger.open()
    yield Desk(ledger)
    await ledger.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """With a scan so rare that only a hint can be why a file was seen."""
    return Settings(root=str(tmp_path), settle_seconds=0.3, scan_interval=300.0)


@pytest.fixture
def incoming(settings: Settings) -> Path:
    settings.incoming_dir.mkdir(parents=True)
    return settings.incoming_dir


def rules(settings: Settings) -> Rules:
    return Rules(settings, Rights(settings), CATALOGUE)


def make_spool(settings: Settings, desk: Desk) -> Spool:
    return Spool(lambda: rules(settings), desk.ledger, submit=desk.submit)


@contextlib.asynccontextmanager
async def serving(settings: Settings, desk: Desk) -> AsyncIterator[Spool]:
    """A spool that runs; a failure of it is the test's."""
    spool = make_spool(settings, desk)
    await spool.recover()
    task = asyncio.create_task(spool.run())
    try:
        yield spool
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(fact: Callable[[], T]) -> T:
    return await asyncio.to_thread(wait_until, fact)


def drop(incoming: Path, content: bytes, name: str = "request.json") -> None:
    draft = incoming.parent / "draft"
    draft.write_bytes(content)
    draft.rename(incoming / name)


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def reason(settings: Settings, name: str) -> dict[str, Any]:
    return dict(json.loads((settings.rejected_dir / f"{name}.reason.json").read_bytes()))


def rejected(settings: Settings) -> set[str]:
    return {name for name in names(settings.rejected_dir) if not name.endswith(".reason.json")}


def nothing_left(settings: Settings) -> bool:
    return not names(settings.incoming_dir) and not names(settings.claimed_dir)


# -- what is taken


async def test_a_file_renamed_in_becomes_one_run(settings: Settings, desk: Desk, incoming: Path) -> None:
    async with serving(settings, desk):
        drop(incoming, b'{"job": "echo", "run_id": "r1", "params": {"a": 1}, "tenant_id": "t", "priority": 3}')
        await until(lambda: desk.specs)
        await until(lambda: nothing_left(settings))
    (run,) = await desk.runs()
    assert (run.run_id, run.params, run.tenant_id, run.priority) == ("r1", b'{"a":1}', "t", 3)
    assert run.requested_by == subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
    assert not names(settings.rejected_dir)


async def test_files_that_were_there_before_are_taken_oldest_first(
    settings: Settings, desk: Desk, incoming: Path
) -> None:
    for number in range(20):
        drop(incoming, json.dumps({"job": "echo", "run_id": f"r{number}"}).encode(), f"{(number * 7) % 20}.json")
        os.utime(incoming / f"{(number * 7) % 20}.json", (number, number))
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert [spec.run_id for spec in desk.specs] == [f"r{number}" for number in range(20)]


async def test_a_backlog_larger_than_a_look_is_taken_oldest_first(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "LOOK_FILES", 7)
    for number in range(40):
        drop(incoming, json.dumps({"job": "echo", "run_id": f"r{number}"}).encode(), f"{(number * 7) % 40}.json")
        os.utime(incoming / f"{(number * 7) % 40}.json", (number, number))
    drop(incoming, b"{", "unready.json")
    async with serving(settings, desk):
        await until(lambda: len(desk.specs) == 40)
    assert [spec.run_id for spec in desk.specs] == [f"r{number}" for number in range(40)]


async def test_requests_without_an_id_get_one_each(settings: Settings, desk: Desk, incoming: Path) -> None:
    for number in range(30):
        drop(incoming, ECHO, f"{number}.json")
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert len({run.run_id for run in await desk.runs()}) == 30


@pytest.mark.parametrize("name", [".hidden.json", "request.json.tmp", "request.part"])
async def test_names_of_drafts_are_left_alone(settings: Settings, desk: Desk, incoming: Path, name: str) -> None:
    drop(incoming, b"[]", name)
    async with serving(settings, desk):
        drop(incoming, ECHO)
        await until(lambda: names(incoming) == {name})
        (incoming / name).rename(incoming / "whole.json")
        await until(lambda: rejected(settings) == {"whole.json"})


async def test_a_slow_copy_is_taken_once_and_whole(settings: Settings, desk: Desk, incoming: Path) -> None:
    content = json.dumps({"job": "echo", "params": {"text": "x" * 5000}}).encode()
    async with serving(settings, desk):
        with open(incoming / "slow.json", "wb", buffering=0) as file:
            for start in range(0, 5000, 1000):
                file.write(content[start : start + 1000])
                # A hint in the middle of the copy, for another file.
                drop(incoming, ECHO, f"other-{start}.json")
                await until(lambda: names(incoming) == {"slow.json"})
            file.write(content[5000:])
        await until(lambda: nothing_left(settings))
    runs = Counter(run.params for run in await desk.runs())
    assert [count for params, count in runs.items() if len(params) > 5000] == [1]
    assert not names(settings.rejected_dir)


async def test_a_file_written_in_two_goes_is_taken_whole(settings: Settings, desk: Desk, incoming: Path) -> None:
    """`>` and then `>>`: two CLOSE_WRITE events, the first of them for half a request."""
    async with serving(settings, desk):
        (incoming / "a.json").write_bytes(b'{"job": "echo", ')
        drop(incoming, ECHO, "other.json")
        await until(lambda: len(desk.specs) == 1)
        with open(incoming / "a.json", "ab") as file:
            file.write(b'"run_id": "whole"}')
        await until(lambda: nothing_left(settings))
    assert "whole" in [run.run_id for run in await desk.runs()]
    assert not names(settings.rejected_dir)


async def test_a_copy_that_goes_on_for_longer_than_the_patience_is_not_rejected(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change of the file begins the wait anew."""
    now = 1000.0
    monkeypatch.setattr(patience.time, "monotonic", lambda: now)
    with spool_intake(settings) as look:
        (incoming / "a.json").write_bytes(b"")
        for _ in range(5):
            with open(incoming / "a.json", "ab") as file:
                file.write(b" ")
            assert look() == []
            now += settings.settle_seconds * 0.9
        assert names(incoming) == {"a.json"}
        now += settings.settle_seconds
        look()
    assert rejected(settings) == {"a.json"}


async def test_a_link_that_loses_its_second_name_is_taken(settings: Settings, desk: Desk, incoming: Path) -> None:
    """`ln draft request; unlink draft`, as maildir does; nothing has to be waited for once the link is alone."""
    patient = Settings(root=settings.root, settle_seconds=300.0, scan_interval=300.0)
    (incoming / ".draft").write_bytes(ECHO)
    async with serving(patient, desk):
        os.link(incoming / ".draft", incoming / "a.json")
        drop(incoming, ECHO, "other.json")
        await until(lambda: len(desk.specs) == 1)
        (incoming / ".draft").unlink()
        await until(lambda: nothing_left(settings))
    assert not names(settings.rejected_dir)


async def test_requests_are_admitted_by_the_rules_of_the_moment(settings: Settings, desk: Desk, incoming: Path) -> None:
    now = [rules(Settings(root=settings.root, settle_seconds=300.0, scan_interval=300.0, max_request_bytes=10))]
    spool = Spool(lambda: now[-1], desk.ledger, submit=desk.submit)
    await spool.recover()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(spool.run())
        drop(incoming, ECHO, "large.json")
        await until(lambda: rejected(settings) == {"large.json"})
        drop(incoming, b'{"job"', "slow.json")
        now.append(rules(Settings(root=settings.root, settle_seconds=0.1, scan_interval=300.0)))
        drop(incoming, ECHO, "also-large.json")
        await until(lambda: len(desk.specs) == 1)
        await until(lambda: rejected(settings) == {"large.json", "slow.json"})
        running.cancel()


# -- what is refused


def garbage(name: bytes, content: bytes) -> Callable[[bytes], None]:
    def make(incoming: bytes) -> None:
        path = os.path.join(incoming, name)
        with open(path, "wb") as file:
            file.write(content)

    return make


def special(name: bytes, make: Callable[[bytes], object]) -> Callable[[bytes], None]:
    return lambda incoming: make(os.path.join(incoming, name)) and None  # type: ignore[func-returns-value]


def a_socket(path: bytes) -> None:
    here = os.getcwd()
    # A socket's path may have 107 bytes, which the folder alone may take.
    os.chdir(os.path.dirname(path))
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.basename(path))
    finally:
        os.chdir(here)


def a_hard_link(path: bytes) -> None:
    other = os.path.join(os.path.dirname(os.path.dirname(path)), b"other")
    with open(other, "wb") as file:
        file.write(ECHO)
    os.link(other, path)


GARBAGE: dict[str, tuple[Callable[[bytes], None], str, str]] = {
    "empty": (garbage(b"x", b""), "json", "not JSON"),
    "truncated": (garbage(b"x", b'{"job": "ec'), "json", "not JSON"),
    "invalid UTF-8 inside": (garbage(b"x", b'{"job": "\xff"}'), "json", "not JSON"),
    "nested": (garbage(b"x", b'{"job":"echo","params":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"), "json", ""),
    "2 MiB": (garbage(b"x", b" " * 2 * 1024 * 1024), "", "at most 1048576"),
    "not an object": (garbage(b"x", b"[1, 2]"), "", "object"),
    "unknown key": (garbage(b"x", b'{"job": "echo", "jbo": 1}'), "jbo", "unknown key"),
    "wrong type": (garbage(b"x", b'{"job": "echo", "priority": "high"}'), "priority", "int"),
    "unknown job": (garbage(b"x", b'{"job": "ecco"}'), "job", "did you mean 'echo'"),
    "no job": (garbage(b"x", b"{}"), "job", "exactly one"),
    "chain": (garbage(b"x", b'{"chain": "month-end"}'), "chain", "unknown chain"),
    "bad params": (garbage(b"x", b'{"job": "period", "params": {"period": 4}}'), "params.period", "string"),
    "bad run id": (garbage(b"x", b'{"job": "echo", "run_id": "../../etc/passwd"}'), "run_id", ""),
    "symbolic link": (special(b"x", lambda path: os.symlink("/etc/hostname", path)), "", "symbolic link"),
    "dangling link": (special(b"x", lambda path: os.symlink("/nowhere", path)), "", "symbolic link"),
    "FIFO": (special(b"x", os.mkfifo), "", "FIFO"),
    "socket": (special(b"x", a_socket), "", "socket"),
    "hard link": (special(b"x", a_hard_link), "", "2 hard links"),
    "folder": (special(b"x", os.mkdir), "", "folder"),
    "name with newline and ESC": (garbage(b"a\nb\x1b[31m\r.json", b"[]"), "", "object"),
    "name of invalid UTF-8": (garbage(b"\xff\xfe\n.json", b"[]"), "", "object"),
    "name with a dash": (garbage(b"-rf", b"[]"), "", "object"),
    "name like a reason": (garbage(b"x.reason.json", b"[]"), "", "object"),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_is_rejected_beside_its_reason(
    settings: Settings, desk: Desk, incoming: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, field, text = GARBAGE[what]
    async with serving(settings, desk):
        make(os.fsencode(incoming))
        (name,) = names(incoming) or rejected(settings)
        await until(lambda: (settings.rejected_dir / f"{name}.reason.json").exists() and nothing_left(settings))
        drop(incoming, ECHO, "good.json")
        await until(lambda: desk.specs)
    found = reason(settings, name)
    assert found["field"] == field
    assert text in found["error"]
    assert found["uid"] == os.getuid()
    assert found["at"].endswith("+00:00")
    assert os.path.lexists(settings.rejected_dir / name)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    # What a terminal would obey, or a JSON log could not hold, is escaped.
    assert vars(record)["file"] == name
    assert text_line(record).isprintable()


async def test_a_name_too_long_for_its_reason_is_shortened(settings: Settings, desk: Desk, incoming: Path) -> None:
    long = "ä" * 125 + "12345"
    async with serving(settings, desk):
        for _ in range(3):
            garbage(os.fsencode(long), b"[]")(os.fsencode(incoming))
            await until(lambda: not names(incoming))
    files = [name for name in names(settings.rejected_dir) if not name.endswith(".reason.json")]
    assert len(files) == 3
    assert all(f"{name}.reason.json" in names(settings.rejected_dir) for name in files)


async def test_a_rejected_file_never_takes_the_place_of_another(settings: Settings, desk: Desk, incoming: Path) -> None:
    async with serving(settings, desk):
        for number in range(5):
            drop(incoming, f"[{number}]".encode())
            await until(lambda: not names(incoming))
    contents = {(settings.rejected_dir / name).read_bytes() for name in rejected(settings)}
    assert contents == {f"[{number}]".encode() for number in range(5)}
    assert all((settings.rejected_dir / f"{name}.reason.json").exists() for name in rejected(settings))


async def test_a_run_id_that_was_used_before_is_rejected(settings: Settings, desk: Desk, incoming: Path) -> None:
    async with serving(settings, desk):
        drop(incoming, b'{"job": "echo", "run_id": "r1", "priority": 1}', "first.json")
        await until(lambda: desk.specs and nothing_left(settings))
        drop(incoming, b'{"job": "echo", "run_id": "r1", "priority": 2}', "second.json")
        await until(lambda: nothing_left(settings))
    assert [run.priority for run in await desk.runs()] == [1]
    assert reason(settings, "second.json")["field"] == "run_id"
    assert "queued" in reason(settings, "second.json")["error"]
    assert b'"priority": 2' in (settings.rejected_dir / "second.json").read_bytes()


async def test_of_two_files_with_one_run_id_one_is_rejected(settings: Settings, desk: Desk, incoming: Path) -> None:
    for name in ("a.json", "b.json"):
        drop(incoming, b'{"job": "echo", "run_id": "r1"}', name)
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert len(await desk.runs()) == 1
    assert reason(settings, *rejected(settings))["field"] == "run_id"


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to other users")
async def test_the_owner_of_the_file_is_who_asked(settings: Settings, desk: Desk, incoming: Path) -> None:
    for uid in (65534, 54321):
        draft = incoming / f".{uid}"
        draft.write_bytes(json.dumps({"job": "echo", "run_id": f"of-{uid}"}).encode())
        os.chown(draft, uid, uid)
        draft.rename(incoming / f"{uid}.json")
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert {run.run_id: run.requested_by for run in await desk.runs()} == {
        "of-65534": "nobody",
        "of-54321": "uid:54321",
    }


@pytest.mark.skipif(os.getuid() != 0, reason="makes a file immutable")
@pytest.mark.parametrize("content", [ECHO, b"[]"])
async def test_a_file_that_cannot_be_moved_is_named_once_and_left(
    settings: Settings,
    desk: Desk,
    incoming: Path,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck = incoming / "stuck.json"
    stuck.write_bytes(content)
    moves: list[str] = []
    real = os.rename
    monkeypatch.setattr(os, "rename", lambda name, *args, **options: (moves.append(name), real(name, *args, **options)))
    if subprocess.run(["chattr", "+i", stuck], capture_output=True).returncode:
        pytest.skip("the file system knows no immutable files")
    try:
        async with serving(settings, desk) as spool:
            for number in range(5):
                drop(incoming, ECHO, f"{number}.json")
                await until(lambda: names(incoming) == {"stuck.json"})
            await until(lambda: len(desk.specs) == 5)
            assert spool.problem is None
    finally:
        subprocess.run(["chattr", "-i", stuck], check=True)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert [vars(record)["file"] for record in caplog.records] == ["stuck.json"]
    assert moves.count("stuck.json") == 1
    assert not names(settings.rejected_dir)


# -- clocks


@contextlib.contextmanager
def spool_intake(settings: Settings) -> Iterator[Callable[[], list[intake.Claim]]]:
    """Looks through incoming/ when the test says so."""
    looker = intake.Intake(rules(settings), before_look=lambda: None)
    looker.prepare()
    yield lambda: claims_of(looker.incoming())


@pytest.mark.parametrize("modified", [0, 4_000_000_000])
def test_neither_an_old_nor_a_future_time_of_a_file_decides(
    settings: Settings, incoming: Path, modified: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(patience.time, "monotonic", lambda: now)
    (incoming / "a.json").write_bytes(b"{")
    os.utime(incoming / "a.json", (modified, modified))
    with spool_intake(settings) as look:
        look()
        look()
        assert names(incoming) == {"a.json"}
        now += settings.settle_seconds
        look()
        assert rejected(settings) == {"a.json"}


def test_notes_are_bounded_and_end_with_their_files(
    settings: Settings, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MAX_NOTES", 10)
    now = 1000.0
    monkeypatch.setattr(patience.time, "monotonic", lambda: now)
    for number in range(25):
        (incoming / f"{number}.json").write_bytes(b"{")
    looker = intake.Intake(rules(settings), before_look=lambda: None)
    looker.prepare()
    for rejects in (0, 10, 20, 25):
        claims_of(looker.incoming())
        assert len(rejected(settings)) == rejects
        now += settings.settle_seconds
    claims_of(looker.incoming())
    assert looker.unready.due_in() is None


# -- hints and looks


async def test_without_inotify_files_are_found_by_looking(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_instance_left(**_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("craft_easy_jobd.watching.INotify", no_instance_left)
    often = Settings(root=settings.root, scan_interval=0.02)
    async with serving(often, desk):
        drop(incoming, ECHO)
        await until(lambda: desk.specs and nothing_left(settings))
    assert "no inotify" in caplog.text


async def test_more_files_than_the_queue_of_events_holds(settings: Settings, desk: Desk, incoming: Path) -> None:
    """The kernel drops events while the loop is busy; no file may be dropped with them."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 20_000:
        pytest.skip(f"the queue holds {limit} events")
    async with serving(settings, desk):
        drop(incoming, ECHO, "first.json")
        await until(lambda: desk.specs and nothing_left(settings))
        # The loop is blocked: nobody reads events.
        for number in range(limit // 2 + 1000):
            (incoming / f"{number % 100}.part").touch()
            (incoming / f"{number % 100}.part").rename(incoming / f"{number % 50}.tmp")
        drop(incoming, ECHO, "last.json")
        await until(lambda: len(desk.specs) == 2)
        drop(incoming, ECHO, "after.json")
        await until(lambda: len(desk.specs) == 3)


@pytest.mark.parametrize("how", ["removed", "moved away"])
async def test_incoming_is_removed_and_made_again(settings: Settings, desk: Desk, incoming: Path, how: str) -> None:
    async with serving(settings, desk):
        for number in range(3):
            if how == "removed":
                shutil.rmtree(incoming)
            else:
                incoming.rename(incoming.parent / f"old-{number}")
            await until(incoming.exists)
            drop(incoming, ECHO, f"{number}.json")
            await until(lambda number=number: len(desk.specs) == number + 1)  # type: ignore[misc]
        assert watches() == 1


def watches() -> int:
    infos = [path.read_text() for path in Path("/proc/self/fdinfo").iterdir() if path.exists()]
    return sum(info.count("inotify wd:") for info in infos)


async def test_claimed_and_rejected_are_made_again(settings: Settings, desk: Desk, incoming: Path) -> None:
    async with serving(settings, desk):
        shutil.rmtree(settings.claimed_dir)
        shutil.rmtree(settings.rejected_dir)
        drop(incoming, ECHO, "good.json")
        drop(incoming, b"[]", "bad.json")
        await until(lambda: not names(incoming) and desk.specs)
    assert rejected(settings) == {"bad.json"}


# -- many


async def test_a_backlog_is_taken_in_slices_of_bounded_memory(settings: Settings, desk: Desk, incoming: Path) -> None:
    content = json.dumps({"job": "echo", "params": {"text": "x" * 500}}).encode()
    for number in range(5_000):
        (incoming / f"{number}.json").write_bytes(content)
    peak = 0

    def measure() -> None:
        nonlocal peak
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        desk.slices[:] = [[]] * len(desk.slices)

    desk.after = measure
    sizes = Counter[int]()
    desk.before = lambda: sizes.update([len(names(settings.claimed_dir))])
    tracemalloc.start()
    try:
        async with serving(settings, desk):
            await asyncio.to_thread(wait_until, lambda: nothing_left(settings), within=50)
    finally:
        tracemalloc.stop()
    assert sum(desk.ledger.counts.values()) == 5_000
    assert max(sizes) <= LET_GO_FILES + 2 * intake.SLICE_FILES
    assert peak < 4 * 1024 * 1024


async def test_what_comes_in_while_a_slice_is_committed_is_claimed_meanwhile(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = asyncio.Event()
    submit = desk._submit

    async def submit_slowly(specs: list[RunSpec], came_in: Slice) -> list[Submitted]:
        await disk.wait()
        return await submit(specs, came_in)

    monkeypatch.setattr(desk, "_submit", submit_slowly)
    async with serving(settings, desk):
        drop(incoming, b'{"job": "echo", "run_id": "a"}', "a.json")
        await until(lambda: names(settings.claimed_dir) == {"a.json"})
        drop(incoming, b'{"job": "echo", "run_id": "b"}', "b.json")
        await until(lambda: names(settings.claimed_dir) == {"a.json", "b.json"})
        disk.set()
        await until(lambda: nothing_left(settings))
    assert [spec.run_id for spec in desk.specs] == ["a", "b"]


async def test_what_comes_in_while_files_are_unlinked_does_not_wait_for_all_of_them(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SLICE_FILES", 50)
    for number in range(300):
        drop(incoming, ECHO, f"{number}.json")
    done: list[str] = []
    unlink, rename = os.unlink, os.rename

    def unlink_and_drop(*args: Any, **options: Any) -> None:
        unlink(*args, **options)
        done.append("unlinked")
        if done.count("unlinked") == 1:
            drop(incoming, b'{"job": "echo", "run_id": "late"}', "late.json")

    def note_claim(name: str, target: str, **options: Any) -> None:
        rename(name, target, **options)
        done.append(target)

    monkeypatch.setattr(os, "unlink", unlink_and_drop)
    monkeypatch.setattr(os, "rename", note_claim)
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert done.count("unlinked") == 301
    assert done[: done.index("late.json")].count("unlinked") < 250


async def test_large_requests_make_small_slices(settings: Settings, desk: Desk, incoming: Path) -> None:
    content = json.dumps({"job": "echo", "params": {"text": "x" * 1_000_000}}).encode()
    for number in range(40):
        (incoming / f"{number}.json").write_bytes(content)
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    sizes = [sum(len(spec.params) for spec in specs) for specs in desk.slices]
    assert sum(map(len, desk.slices)) == 40
    assert max(sizes) <= intake.SLICE_BYTES + 1_048_576


def test_it_runs_on_uvloop_as_well(settings: Settings, incoming: Path, tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "state").mkdir()
        ledger = SqliteLedger(tmp_path / "state" / "ledger.db")
        await ledger.open()
        desk = Desk(ledger)
        async with serving(settings, desk):
            for number in range(100):
                drop(incoming, ECHO, f"{number}.json")
                await until(lambda number=number: len(desk.specs) == number + 1)  # type: ignore[misc]
        await ledger.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


# -- what fails


class CrashError(BaseException):
    """The daemon ends here."""


async def crash_at(settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch, step: str, nth: int) -> bool:
    """Run a spool that ends at the nth time that it comes to a step; False when it never does."""
    calls = 0

    def crashing(*args: Any, real: Callable[..., Any], **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise CrashError
        return real(*args, **options)

    with monkeypatch.context() as patch:
        if step in ("before", "after"):
            patch.setattr(desk, step, lambda: crashing(real=lambda: None))
        elif step == "fsync":
            real_sync = folders.sync
            patch.setattr(intake, "sync", lambda *args: crashing(*args, real=real_sync))
        else:
            real = getattr(os, step)
            patch.setattr(os, step, lambda *args, **options: crashing(*args, real=real, **options))
        spool = make_spool(settings, desk)
        try:
            await spool.recover()
            task = asyncio.create_task(spool.run())
            idle = asyncio.create_task(until(lambda: nothing_left(settings) or task.done()))
            await asyncio.wait({task, idle}, return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            await idle
            with contextlib.suppress(asyncio.CancelledError):
                await task
        except CrashError:
            return True
        finally:
            spool.close()
        return False


@pytest.mark.parametrize("step", ["rename", "fsync", "before", "after", "unlink"])
async def test_a_crash_at_any_step_admits_each_request_once(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    crashes = 0
    for nth in range(1, 8):
        drop(incoming, b'{"job": "echo", "params": {"own": false}}', "a.json")
        drop(incoming, json.dumps({"job": "echo", "run_id": f"own-{nth}"}).encode(), "b.json")
        drop(incoming, b"[]", "c.json")
        crashes += await crash_at(settings, desk, monkeypatch, step, nth)
        async with serving(settings, desk):
            await until(lambda: nothing_left(settings))
        runs = await desk.runs()
        assert len(runs) == 2 * nth
        assert len([name for name in names(settings.rejected_dir) if not name.endswith(".reason.json")]) == nth
        assert f"own-{nth}" in {run.run_id for run in runs}
    assert crashes >= 1


@pytest.mark.parametrize("step", ["before", "after"])
@pytest.mark.parametrize("priority", [0, 1])
async def test_a_duplicate_is_answered_after_a_crash_too(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch, step: str, priority: int
) -> None:
    """One that asks for the very same as well: only the run's own file is unlinked."""
    drop(incoming, b'{"job": "echo", "run_id": "used", "priority": 0}', "first.json")
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    drop(incoming, json.dumps({"job": "echo", "run_id": "used", "priority": priority}).encode(), "again.json")
    assert await crash_at(settings, desk, monkeypatch, step, 1)
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert rejected(settings) == {"used.json"}
    assert reason(settings, "used.json")["field"] == "run_id"
    (run,) = await desk.runs()
    assert run.priority == 0


async def test_a_file_that_could_not_be_unlinked_before_a_stop_is_not_forgotten(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next start would take it for a duplicate of its own run."""
    real, failures = os.unlink, []

    def full_once(*args: Any, **options: Any) -> None:
        if not failures:
            failures.append(args)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args, **options)

    monkeypatch.setattr(os, "unlink", full_once)
    drop(incoming, b'{"job": "echo", "run_id": "a"}')
    async with serving(settings, desk):
        await until(lambda: failures)
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert rejected(settings) == set()
    assert len(await desk.runs()) == 1


async def test_requests_wait_in_claimed_while_the_ledger_cannot_be_written(
    settings: Settings, desk: Desk, incoming: Path
) -> None:
    def fail() -> None:
        raise LedgerError("ledger.db: no space left on device")

    desk.before = fail
    async with serving(settings, desk) as spool:
        drop(incoming, b'{"job": "echo", "run_id": "a"}', "a.json")
        await until(lambda: spool.problem)
        assert spool.problem == "spool: ledger.db: no space left on device"
        assert names(settings.claimed_dir) == {"a.json"}
        drop(incoming, b'{"job": "echo", "run_id": "a"}', "again.json")
        drop(incoming, b'{"job": "echo", "run_id": "b"}', "b.json")
        desk.before = lambda: None
        await until(lambda: nothing_left(settings))
        await until(lambda: spool.problem is None)
    assert {run.run_id for run in await desk.runs()} == {"a", "b"}
    assert rejected(settings) == {"again.json"}


async def test_a_duplicate_is_answered_after_a_full_disk_too(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reason cannot be written at once, and nothing but memory knows that it is no leftover of a crash."""
    real, failures = intake.reject, 0

    def full(*args: Any, **options: Any) -> str:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    monkeypatch.setattr(intake, "reject", full)
    await desk.ledger.submit([RunSpec(run_id="a", job="echo")])
    drop(incoming, b'{"job": "echo", "run_id": "a"}', "again.json")
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert failures == 3
    assert rejected(settings) == {"again.json"}


async def test_what_was_claimed_before_a_full_disk_is_still_answered(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.ledger.submit([RunSpec(run_id="used", job="echo")])
    drop(incoming, b'{"job": "echo", "run_id": "used"}', "used.json")
    real_look, looked = intake.Intake._look, []

    def full_after_one(self: intake.Intake, name: str, opened: Any) -> intake.Claim | None:
        looked.append(name)
        if len(looked) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_look(self, name, opened)

    monkeypatch.setattr(intake.Intake, "_look", full_after_one)
    drop(incoming, ECHO, "other.json")
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert rejected(settings) == {"used.json"}
    assert len(await desk.runs()) == 2


async def test_a_failing_disk_ends_the_spool(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync nobody knows what is on the disk: no file may be unlinked on the strength of it."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(folders.os, "fsync", fail)
    drop(incoming, ECHO)
    spool = make_spool(settings, desk)
    await spool.recover()
    with pytest.raises(SyncError, match="claimed: the disk did not take it"):
        await asyncio.wait_for(spool.run(), 10)
    assert len(names(settings.claimed_dir)) == 1
    assert [each.named for each in await desk.ledger.slices()] == [False]


async def test_a_claimed_file_that_lost_its_content_is_rejected_only_when_the_ledger_does_not_have_it(
    settings: Settings, desk: Desk, incoming: Path
) -> None:
    """A power cut may take the content of a file that its submitter did not sync."""
    settings.claimed_dir.mkdir()
    (settings.claimed_dir / "known.json").touch()
    (settings.claimed_dir / "lost.json").touch()
    await desk.ledger.submit(
        [RunSpec(run_id="known", job="echo")], came_in=in_mind(settings.claimed_dir / "known.json")
    )
    async with serving(settings, desk):
        assert not names(settings.claimed_dir)
    assert rejected(settings) == {"lost.json"}
    assert reason(settings, "lost.json")["field"] == "json"


def in_mind(*files: Path) -> Slice:
    """Slice 7 of these files, as a spool that crashed left it in the ledger."""
    return Slice(7, [RequestFile(file.stem, file.stat().st_ino, file.stat().st_mtime_ns) for file in files])


async def test_a_rename_that_a_power_cut_undid_is_no_second_request(
    settings: Settings, desk: Desk, incoming: Path
) -> None:
    """The ledger's commit survives and the name in claimed/ does not: the file lies in incoming/ as it was dropped."""
    (settings.claimed_dir).mkdir()
    for name in ("r1", "r2", "r3"):
        (settings.claimed_dir / f"{name}.json").write_bytes(ECHO)
    files = [settings.claimed_dir / f"{name}.json" for name in ("r1", "r2", "r3")]
    await desk.ledger.submit([RunSpec(run_id=file.stem, job="echo") for file in files], came_in=in_mind(*files))
    files[0].rename(incoming / "undone.json")
    files[1].rename(incoming / "written-to-since.json")
    os.utime(incoming / "written-to-since.json", (1, 1))
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert await desk.ledger.slices() == []
    assert not names(settings.rejected_dir)
    # r1 and r3 are once in the ledger; what was written to since is a request of its own.
    assert len(await desk.runs()) == 4


async def test_a_named_file_is_not_taken_for_another_with_its_inode(
    settings: Settings, desk: Desk, incoming: Path
) -> None:
    """Once a file may have been unlinked, its inode tells nothing any more."""
    (incoming / "a.json").write_bytes(ECHO)
    known = in_mind(incoming / "a.json")
    await desk.ledger.submit([RunSpec(run_id="a", job="echo")], came_in=known)
    await desk.ledger.let_go(named=[known.number], gone=[])
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert len(await desk.runs()) == 2


async def test_a_duplicate_that_a_crash_left_in_claimed_is_rejected(
    settings: Settings, desk: Desk, incoming: Path
) -> None:
    settings.claimed_dir.mkdir()
    (settings.claimed_dir / "r1.json").write_bytes(ECHO)
    await desk.ledger.submit([RunSpec(run_id="r1", job="echo")])
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert "was used before" in reason(settings, "r1.json")["error"]
    assert len(await desk.runs()) == 1


async def test_a_stop_leaves_nothing_in_claimed(settings: Settings, desk: Desk, incoming: Path) -> None:
    for number in range(20):
        drop(incoming, ECHO, f"{number}.json")
    async with serving(settings, desk):
        await until(lambda: len(desk.specs) == 20)
    assert nothing_left(settings)
    assert await desk.ledger.slices() == []


async def test_a_file_that_is_replaced_while_it_is_claimed_is_looked_at_itself(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = intake.admit
    replaced = False

    def admit_late(*args: Any, **options: Any) -> RunSpec:
        nonlocal replaced
        if not replaced:
            replaced = True
            drop(incoming, b'{"job": "echo", "run_id": "second"}', "a.json")
        return real(*args, **options)

    monkeypatch.setattr(intake, "admit", admit_late)
    drop(incoming, b'{"job": "echo", "run_id": "first"}', "a.json")
    async with serving(settings, desk):
        await until(lambda: desk.specs and nothing_left(settings))
    assert [run.run_id for run in await desk.runs()] == ["second"]


async def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_look(
    settings: Settings, desk: Desk, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(incoming, ECHO)
    real = os.read

    def read_and_write(fd: int, size: int) -> bytes:
        data = real(fd, size)
        (incoming / "request.json").write_bytes(ECHO + b" ")
        return data

    with spool_intake(settings) as look:
        with monkeypatch.context() as patch:
            patch.setattr("craft_easy_jobd.request_files.os.read", read_and_write)
            assert look() == []
        assert names(incoming) == {"request.json"}
        assert [claim.size for claim in look()] == [len(ECHO) + 1]


async def test_a_spool_that_is_cancelled_at_once_leaves_everything_for_the_next(
    settings: Settings, desk: Desk, incoming: Path
) -> None:
    for number in range(50):
        drop(incoming, ECHO, f"{number}.json")
        spool = make_spool(settings, desk)
        await spool.recover()
        task = asyncio.create_task(spool.run())
        for _ in range(number):
            await asyncio.tasks.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    async with serving(settings, desk):
        await until(lambda: nothing_left(settings))
    assert len(await desk.runs()) == 50
    assert not names(settings.rejected_dir)


@pytest.mark.parametrize("folder", ["incoming", "claimed", "rejected"])
async def test_a_folder_that_is_none_is_refused_by_its_path(settings: Settings, desk: Desk, folder: str) -> None:
    settings.spool_dir.mkdir()
    (settings.spool_dir / folder).touch()
    spool = make_spool(settings, desk)
    with pytest.raises(FolderError, match=f"{folder}: Not a directory"):
        await spool.recover()
    spool.close()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_may_not_be_written_is_refused(settings: Settings, desk: Desk, incoming: Path) -> None:
    incoming.chmod(0o500)
    spool = make_spool(settings, desk)
    with pytest.raises(FolderError, match="not writable"):
        await spool.recover()
    spool.close()
