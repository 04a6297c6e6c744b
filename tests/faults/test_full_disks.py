"""A disk that is full or read-only: admission stops and says so, runs go on, and with room all goes on by itself."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.book import FORGIVING, Book, workplace
from tests.faults.mounts import Disk, disk, require_mounts
from tests.faults.scale import whole
from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until

pytestmark = [whole, pytest.mark.usefixtures("_mounts")]


@pytest.fixture(scope="module")
def _mounts() -> None:
    require_mounts()


@pytest.fixture
def place() -> Iterator[Path]:
    with workplace() as folder:
        yield folder


def problems(daemon: DaemonProcess) -> list[str]:
    return list(daemon.status()["problems"])


def drafts(book: Book, number: int) -> list[Path]:
    """Requests that are written already, so that a full disk can still take them: a rename needs no room."""
    made = []
    for _ in range(number):
        request = book.new("count")
        made.append(book.draft(f"{request['run_id']}.json"))
        made[-1].write_text(json.dumps(request))
    return made


def drop(book: Book, draft: Path) -> str:
    name = draft.name.removeprefix("draft-")
    draft.rename(book.incoming / name)
    run_id = name.removesuffix(".json")
    book.owed[run_id] = "count"
    return run_id


def stays_full(made: Disk, daemon: DaemonProcess, book: Book) -> None:
    """Fill again until it is said: what a commit needed may have been there yet."""

    def noticed() -> bool:
        made.fill()
        book.submit(daemon, "count")
        return bool(problems(daemon))

    wait_until(noticed, within=20)


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_full_disk_is_waited_out(kind: str, place: Path) -> None:
    with disk(16, kind) as made:
        book = Book(made.folder / "var", place / "notes")
        daemon = DaemonProcess(book.root, *FORGIVING, env=book.env)
        try:
            daemon.start()
            release = place / "release"
            going_on = book.drop("until", path=str(release))
            wait_until((book.notes / going_on).exists)
            waiting = drafts(book, 3)
            stays_full(made, daemon, book)
            wanted = [drop(book, draft) for draft in waiting]
            assert going_on in [run["run_id"] for run in daemon.status()["running"]]
            release.touch()
            assert not book.submit(daemon, "count")
            assert not [run_id for run_id in wanted if (book.notes / run_id).exists()]
            (made.folder / "filler").unlink()
            assert book.settle(daemon) == []
        finally:
            daemon.close()


def test_the_disk_is_full_from_the_start_and_then_not(place: Path) -> None:
    with disk(16) as made:
        book = Book(made.folder / "var", place / "notes")
        daemon = DaemonProcess(book.root, *FORGIVING, env=book.env)
        try:
            daemon.start()
            assert daemon.stop() == 0
            waiting = drafts(book, 3)
            made.fill()
            for draft in waiting:
                drop(book, draft)
            daemon.launch()
            # Either it waits for room, or it says that it cannot start and the next start does.
            wait_until(lambda: daemon.ended or ("READY=1" in daemon.notices and problems(daemon)))
            (made.folder / "filler").unlink()
            assert book.settle(daemon) == []
        finally:
            daemon.close()


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
@pytest.mark.parametrize("served_before", [True, False])
def test_who_cannot_start_on_a_full_disk_says_what_to_do(kind: str, served_before: bool, place: Path) -> None:
    with disk(16, kind) as made:
        book = Book(made.folder / "var", place / "notes")
        (book.root / "state").mkdir()
        daemon = DaemonProcess(book.root, *FORGIVING, env=book.env)
        try:
            if served_before:
                daemon.start()
                assert daemon.stop() == 0
            made.fill()
            daemon.launch()
            assert daemon.wait() in (73, 74)
            told = daemon.log.splitlines()[-1]
            assert told.startswith(f"craft-easy-jobd: {book.root}/state/")
            assert "full" in told
            assert told.endswith("free some space, then start again")
            assert "Traceback" not in daemon.log
            (made.folder / "filler").unlink()
            book.drop("count")
            assert book.settle(daemon) == []
        finally:
            daemon.close()


@pytest.mark.parametrize("tree", ["results", "spool"])
def test_a_tree_that_is_read_only_for_a_while(tree: str, place: Path) -> None:
    with disk(16) as made:
        (made.folder / "lost+found").rmdir()
        (place / "var").mkdir()
        (place / "var" / tree).symlink_to(made.folder)
        book = Book(place / "var", place / "notes")
        daemon = DaemonProcess(book.root, *FORGIVING, env=book.env)
        try:
            daemon.start()
            daemon.signal(signal.SIGSTOP)
            book.drop("count")
            made.remount("ro")
            daemon.signal(signal.SIGCONT)
            assert book.submit(daemon, "count")
            wait_until(lambda: [problem for problem in problems(daemon) if problem.startswith(tree)])
            made.remount("rw")
            assert book.settle(daemon) == []
        finally:
            daemon.close()
