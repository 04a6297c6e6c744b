"""The suite must be able to fail: known mistakes in the durable path, one at a time, each of which it has to catch."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.book import FORGIVING, Book, workplace
from tests.faults.mounts import disk, require_mounts
from tests.faults.points import Fault, Point, scene
from tests.faults.power import PowerCuts
from tests.faults.scale import TORTURE, figures, side_by_side, whole
from tests.support.daemon import PROJECT, DaemonProcess
from tests.support.waiting import wait_until

pytestmark = whole

Env = Mapping[str, str]


# -- the parts of the suite that catch them


def runs(log: str) -> None:
    """A mutant that fails by itself shows nothing: the code around it has changed."""
    assert "internal error" not in log, f"this mutant is to be written anew:\n{log}"


def crash_points(part: str, call: str, fault: str) -> Callable[[Env], bool]:
    """Every point of one kind until something is wrong."""

    def caught(env: Env) -> bool:
        for number in range(1, 40):
            with scene(env) as life:
                wrong = life.wrong(Point(part, call, number), Fault(fault), within=4)
                runs("\n".join(wrong))
                if wrong or not life.reached:
                    return bool(wrong)
        return False

    return caught


def power_cuts(env: Env) -> bool:
    with disk(64) as made, workplace() as notes:
        cuts = PowerCuts(0, made, notes, env)
        try:
            return any(cuts.cycle() for _ in range(6)) or bool(cuts.settle(within=5))
        finally:
            cuts.close()


def a_kill_while_it_runs(env: Env) -> bool:
    with workplace() as folder:
        book = Book(folder / "var", folder / "notes")
        daemon = DaemonProcess(book.root, *FORGIVING, env={**env, **book.env})
        try:
            daemon.start()
            run_id = book.drop("slow", seconds=0.5)
            wait_until((book.notes / run_id).exists)
            daemon.kill()
            return bool(book.settle(daemon, within=5))
        finally:
            runs(daemon.log)
            daemon.close()


def conformance(*tests: str) -> Callable[[Env], bool]:
    """What a daemon that is alone on its root cannot show: the tests of the ledger itself."""

    def caught(env: Env) -> bool:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=PROJECT, env={**os.environ, **env}, capture_output=True, check=False)
        assert done.returncode in (0, 1), done.stdout.decode()
        return done.returncode == 1

    return caught


# -- the mistakes


class Change(NamedTuple):
    file: str
    old: str
    new: str


class Mutant(NamedTuple):
    name: str
    changes: tuple[Change, ...]
    caught: Callable[[Env], bool]


MUTANTS = [
    Mutant(
        "marked as published before it is written",
        (
            # And time for the mark to be committed.
            Change(
                "publishing.py",
                "                drafted = self._files.draft(batch)\n",
                "                self._tell(batch)\n"
                "                __import__('time').sleep(0.5)\n"
                "                drafted = self._files.draft(batch)\n",
            ),
        ),
        crash_points("results", "renameat", "KILL"),
    ),
    Mutant(
        "results named before they are synced",
        (Change("publishing.py", "            under_way.synced.result()\n", ""),),
        conformance("tests/jobd/test_result_files.py", "-k", "failed_sync"),
    ),
    Mutant(
        "two drafts of one run at a time",
        (Change("publishing.py", "            if end.seq not in under_way:\n", "            if True:\n"),),
        conformance("tests/jobd/test_result_files.py", "-k", "ends_again_while"),
    ),
    Mutant(
        "two publishing processes at a time",
        (Change("publishing.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),),
        conformance("tests/jobd/test_result_files.py", "-k", "only_one"),
    ),
    Mutant(
        "a dead publishing process is not replaced",
        (Change("publisher.py", "        while True:\n            try:\n", "        if True:\n            try:\n"),),
        conformance("tests/jobd/test_publisher.py", "-k", "replaced_at_once"),
    ),
    Mutant(
        "request unlinked before the commit",
        (
            Change(
                "spool.py",
                "            self._number += 1\n",
                "            self._number += 1\n            self._intake.remove([run.run_id for _, run in good])\n",
            ),
        ),
        crash_points("spool", "unlinkat", "KILL"),
    ),
    Mutant(
        "claimed leftovers not taken up",
        (Change("spool.py", "            await self._take(self._intake.leftovers())\n", ""),),
        crash_points("spool", "renameat", "KILL"),
    ),
    Mutant(
        "request files not kept in mind",
        (Change("ledger_writes.py", "    if came_in and added:\n", "    if False:\n"),),
        crash_points("spool", "unlinkat", "KILL"),
    ),
    Mutant(
        "request unlinked before its name is durable",
        (Change("letting_go.py", "        await self._lane.call(self._intake.sync)\n", ""),),
        conformance("tests/jobd/test_spool.py", "-k", "failing_disk"),
    ),
    Mutant(
        "a file forgotten before it is unlinked",
        (
            Change(
                "letting_go.py",
                "            self._intake.remove(file.run_id for file in files)\n",
                "            self._unlinked.append(self._named.popleft())\n"
                "            self._intake.remove(file.run_id for file in files)\n"
                "            continue\n",
            ),
        ),
        conformance("tests/jobd/test_spool.py", "-k", "could_not_be_unlinked"),
    ),
    Mutant(
        "recovery skipped",
        (Change("supervisor.py", "        await self._recover()\n", ""),),
        a_kill_while_it_runs,
    ),
    Mutant(
        "failed sync taken for a good one",
        (Change("folders.py", "        _failed(error.errno, what)\n", "        return\n"),),
        crash_points("results", "fsync", "EIO"),
    ),
    Mutant(
        "lease token ignored",
        (Change("ledger_moves.py", 'LEASED = "run_id = ? AND token = ?"', 'LEASED = "run_id = ? AND ? > 0"'),),
        conformance("tests/jobd/test_ledger.py", "-k", "old_token"),
    ),
    Mutant(
        "batch of results not synced",
        (
            Change("result_files.py", "        if synced:\n", "        if False:\n"),
            Change(
                "result_files.py",
                "            sync_all(drafts, str(self._drafts))\n",
                "            pass\n",
            ),
        ),
        power_cuts,
    ),
    Mutant(
        "ledger not synced",
        (Change("ledger_schema.py", '"PRAGMA synchronous = FULL"', '"PRAGMA synchronous = OFF"'),),
        power_cuts,
    ),
]


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the daemon's tree that may be spoiled."""
    with workplace() as folder:
        yield Path(shutil.copytree(PROJECT / "daemon", folder / "daemon", ignore=shutil.ignore_patterns("__pycache__")))


def spoil(copy: Path, change: Change) -> None:
    path = copy / "craft_easy_jobd" / change.file
    text = path.read_text()
    assert text.count(change.old) == 1, f"{change.file} has changed: this mutant is to be written anew: {change.old!r}"
    path.write_text(text.replace(change.old, change.new))


def environment(copy: Path) -> Env:
    """In which the copy is imported."""
    env = {"PYTHONPATH": str(copy)}
    where = [sys.executable, "-c", "import craft_easy_jobd.supervisor as module; print(module.__file__)"]
    used = subprocess.run(where, env={**os.environ, **env}, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert used.stdout.startswith(str(copy))
    return env


def survives(mutant: Mutant) -> bool:
    with copied() as copy:
        for change in mutant.changes:
            spoil(copy, change)
        return not mutant.caught(environment(copy))


def test_every_mutant_is_caught() -> None:
    mutants = [mutant for mutant in MUTANTS if mutant.caught is not power_cuts]
    survivors = [mutant.name for mutant, lives in zip(mutants, side_by_side(survives, mutants), strict=True) if lives]
    figures.append(f"mutants: {len(mutants)} without power cuts, {len(survivors)} survived {survivors}")
    assert not survivors


def test_every_mutant_is_caught_that_a_power_cut_shows() -> None:
    require_mounts()
    mutants = [mutant for mutant in MUTANTS if mutant.caught is power_cuts]
    survivors = [mutant.name for mutant, lives in zip(mutants, side_by_side(survives, mutants), strict=True) if lives]
    figures.append(f"mutants: {len(mutants)} by power cuts, {len(survivors)} survived {survivors}")
    assert not survivors


@pytest.mark.skipif(not TORTURE, reason="only in `make torture`: the other tests of the short form say the same")
def test_nothing_is_caught_where_nothing_is_wrong() -> None:
    sound = [mutant._replace(changes=()) for mutant in MUTANTS]
    assert all(side_by_side(survives, sound))
