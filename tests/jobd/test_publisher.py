"""The publishing process and the supervisor's side of it: what ended is published, whatever becomes of the process."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from craft_easy_jobd import publisher as publisher_module
from craft_easy_jobd.errors import FolderError, LedgerError
from craft_easy_jobd.folders import SyncError
from craft_easy_jobd.publisher import Publisher
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from tests.jobd.test_result_files import drafts, end, published
from tests.support.waiting import wait_until

T = TypeVar("T")


class Processes:
    """Starts publishing processes as the pool does; with other code in them, when a test needs one that fails."""

    def __init__(self) -> None:
        self.started: list[asyncio.subprocess.Process] = []
        self.spoiled = ""

    async def __call__(self, module: str, options: msgspec.Struct, fd: int) -> asyncio.subprocess.Process:
        argument = msgspec.json.encode(options).decode()
        code = ("-c", f"from {module} import *\nimport {module} as it\n{self.spoiled}\nmain()")
        command = [sys.executable, *(code if self.spoiled else ("-m", module)), argument]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, pass_fds=(fd,), start_new_session=True
        )
        self.started.append(process)
        return process


class Scene:
    """A publisher at work on a folder."""

    def __init__(self, folder: Path, ledger: Any) -> None:
        self.told: list[str] = []
        self.processes = Processes()
        settings = Settings(root=str(folder), state=str(folder))
        self.publisher = Publisher(settings, ledger, start=self.processes, published=self.told.extend)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(self.publisher.run())
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, FolderError, SyncError):
                await task
        assert all(process.returncode is not None for process in self.processes.started)


@pytest.fixture
async def scene(tmp_path: Path, ledger: SqliteLedger) -> Scene:
    return Scene(tmp_path, ledger)


async def until(fact: Callable[[], T]) -> T:
    return await asyncio.to_thread(wait_until, fact)


async def all_marked(ledger: SqliteLedger) -> None:
    """Wait until all that was published is marked, which may come with a later commit."""
    loop = asyncio.get_running_loop()
    await until(lambda: not asyncio.run_coroutine_threadsafe(ledger.unpublished(limit=1), loop).result())


async def test_what_was_there_before_is_published_and_marked(scene: Scene, ledger: SqliteLedger, results: Path) -> None:
    await end(ledger, ["a", "b"])
    async with scene.running():
        await asyncio.wait_for(scene.publisher.looked.wait(), 30)
        await until(lambda: scene.told == ["a", "b"])
        await all_marked(ledger)
    assert published(results) == {"a", "b"}
    assert scene.processes.started[0].returncode == 0


async def test_runs_that_end_while_others_are_published_follow(
    scene: Scene, ledger: SqliteLedger, results: Path
) -> None:
    async with scene.running():
        for number in range(50):
            await end(ledger, [f"r{number}"])
            scene.publisher.wake()
        await until(lambda: len(scene.told) == 50)
    assert len(set(scene.told)) == len(published(results)) == 50
    assert len(scene.processes.started) == 1


async def test_a_batch_of_long_names_is_told_whole(scene: Scene, ledger: SqliteLedger) -> None:
    ids = [f"{number:03}" + "x" * 240 for number in range(500)]
    await end(ledger, ids)
    async with scene.running():
        await until(lambda: scene.told == ids)


@pytest.mark.parametrize("count", [1, 1007])
async def test_drain_returns_when_all_is_published(
    scene: Scene, ledger: SqliteLedger, results: Path, count: int
) -> None:
    async with scene.running():
        await asyncio.wait_for(scene.publisher.looked.wait(), 30)
        await end(ledger, [f"r{number}" for number in range(count)])
        assert await asyncio.wait_for(scene.publisher.drain(), 30)
        assert len(published(results)) == len(scene.told) == count
        assert not drafts(results)
    await all_marked(ledger)


# -- its death


async def test_a_process_that_dies_idle_is_replaced_at_once_and_said(
    scene: Scene, ledger: SqliteLedger, results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene.running():
        await asyncio.wait_for(scene.publisher.looked.wait(), 30)
        pid = scene.publisher.pid
        assert pid == scene.processes.started[0].pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: scene.publisher.pid not in (None, pid))
        await end(ledger, ["a"])
        scene.publisher.wake()
        await until(lambda: scene.told == ["a"])
        await until(lambda: scene.publisher.problem is None)
    assert published(results) == {"a"}
    told = [str(getattr(record, "problem", "")) for record in caplog.records]
    assert "the publishing process was killed by SIGKILL" in told


DIES_AT = """
import os, signal
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
it.{name} = die
"""


@pytest.mark.parametrize("name", ["ResultFiles.draft", "ResultFiles.publish", "_tell", "_say", "open_reader"])
async def test_whoever_drains_is_told_when_every_process_dies_of_it(
    scene: Scene,
    ledger: SqliteLedger,
    name: str,
) -> None:
    scene.processes.spoiled = DIES_AT.format(name=name)
    await end(ledger, ["a"])
    async with scene.running():
        assert not await asyncio.wait_for(scene.publisher.drain(), 30)
        assert scene.publisher.problem == "results: the publishing process was killed by SIGKILL"
        assert len(scene.processes.started) == 3
        assert not scene.told
        scene.processes.spoiled = ""
        assert await asyncio.wait_for(scene.publisher.drain(), 30)
        assert scene.publisher.problem is None
    assert scene.told == ["a"]
    await all_marked(ledger)


async def test_killed_again_and_again_all_is_published(scene: Scene, ledger: SqliteLedger, results: Path) -> None:
    results.mkdir()
    async with scene.running():
        for number in range(12):
            await end(ledger, [f"r{number}-{each}" for each in range(20)])
            scene.publisher.wake()
            await until(lambda: scene.publisher.pid)
            if number % 2:
                await until(lambda number=number: f"r{number}-0" in published(results))
            with contextlib.suppress(ProcessLookupError):
                os.kill(scene.publisher.pid or 0, signal.SIGKILL)
        assert await asyncio.wait_for(scene.publisher.drain(), 30)
    assert len(set(scene.told)) == len(published(results)) == 240
    await all_marked(ledger)


async def test_a_process_that_cannot_be_started_is_tried_again(
    scene: Scene, ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene.publisher, "_start", refuse)
    await end(ledger, ["a"])
    async with scene.running():
        assert not await asyncio.wait_for(scene.publisher.drain(), 30)
        assert (
            scene.publisher.problem == "results: cannot start the publishing process: Resource temporarily unavailable"
        )
        monkeypatch.undo()
        assert await asyncio.wait_for(scene.publisher.drain(), 30)


async def refuse(module: str, options: msgspec.Struct, fd: int) -> asyncio.subprocess.Process:
    raise BlockingIOError(11, os.strerror(11))


SLEEPS = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
it.Publishing.look = lambda self: signal.pause()
"""


async def test_a_process_that_says_nothing_is_not_waited_for(
    scene: Scene, ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_SLOW_SECONDS", 0.5)
    monkeypatch.setattr(publisher_module, "_SILENT_SECONDS", 1.0)
    monkeypatch.setattr(publisher_module, "_LEAVE_SECONDS", 0.2)
    scene.processes.spoiled = SLEEPS
    async with scene.running():
        assert not await asyncio.wait_for(scene.publisher.drain(), 30)
        assert f"the publishing process {scene.publisher.pid} says nothing" in str(scene.publisher.problem)
    assert scene.processes.started[0].returncode == -signal.SIGKILL


# -- what fails


ROOM = """
import errno
from craft_easy_jobd import result_files
real = result_files._write
def write(name, data, folder, *, synced):
    if not os.path.exists({path!r}):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    real(name, data, folder, synced=synced)
result_files._write = write
"""


async def test_a_full_disk_is_said_and_tried_again(
    scene: Scene, ledger: SqliteLedger, results: Path, tmp_path: Path
) -> None:
    """A stop of the daemon does not wait for somebody to make room."""
    scene.processes.spoiled = ROOM.format(path=str(tmp_path / "room"))
    await end(ledger, ["a"])
    async with scene.running():
        assert not await asyncio.wait_for(scene.publisher.drain(), 30)
        assert "No space left on device" in str(scene.publisher.problem)
        (tmp_path / "room").touch()
        await until(lambda: scene.told == ["a"])
        await until(lambda: scene.publisher.problem is None)
    assert published(results) == {"a"}


FAILING = """
import errno
from craft_easy_jobd import folders
def fsync(fd):
    raise OSError(errno.EIO, os.strerror(errno.EIO))
folders.os.fsync = fsync
"""


async def test_after_a_failed_sync_nothing_is_marked(scene: Scene, ledger: SqliteLedger) -> None:
    scene.processes.spoiled = FAILING
    await end(ledger, ["a"])
    async with scene.running() as task:
        with pytest.raises(SyncError, match="the disk did not take it: Input/output error") as caught:
            await asyncio.wait_for(task, 30)
    assert caught.value.exit_code == LedgerError.exit_code == 74
    assert not scene.told
    assert len(await ledger.unpublished(limit=100)) == 1


async def test_a_results_folder_that_is_none_is_refused(scene: Scene, ledger: SqliteLedger, results: Path) -> None:
    results.touch()
    async with scene.running() as task:
        with pytest.raises(FolderError, match="results: Not a directory") as caught:
            await asyncio.wait_for(task, 30)
    assert caught.value.exit_code == 73


async def test_marks_that_the_ledger_cannot_take_are_made_again(
    scene: Scene, ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = ledger.mark_published, 0

    def mark(ends: Sequence[Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls < 3:
            refused = asyncio.get_running_loop().create_future()
            refused.set_exception(LedgerError("ledger.db: disk is full"))
            return refused
        return real(ends)

    monkeypatch.setattr(ledger, "mark_published", mark)
    await end(ledger, ["a"])
    async with scene.running():
        await until(lambda: calls == 3)
        await all_marked(ledger)
    assert scene.told == ["a"]
