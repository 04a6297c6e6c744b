"""kill -9 of the supervisor, of a worker, of who writes results, of all, at random moments, while requests come in."""

import os
import random
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from threading import Event, Timer

import psutil

from tests.faults.book import FORGIVING, Book, workplace
from tests.faults.scale import LANES, chance, figures, scaled, side_by_side, whole
from tests.support.daemon import DaemonProcess
from tests.support.processes import wait_ended

pytestmark = whole

CYCLES = scaled(200, 1000)
# From before READY to the middle of the runs.
LATEST_SECONDS = 0.5


KINDS = ("supervisor", "worker", "publishing", "nursery", "all")


class Lane:
    """One daemon that is killed again and again, on a root that lives through it all."""

    def __init__(self, number: int, folder: Path) -> None:
        self.chance = chance(f"kill cycles, lane {number}")
        self.book = Book(folder / "var", folder / "notes")
        self.daemon = DaemonProcess(self.book.root, *FORGIVING, env=self.book.env)
        self.kinds: Counter[str] = Counter()

    def cycle(self) -> None:
        """Ask and kill at the same time; the daemon may be on its way up, in recovery, or at work."""
        if self.daemon.ended:
            self.daemon.launch()
        kind = self.chance.choice(KINDS)
        struck = Event()
        killer = Timer(self.chance.uniform(0, LATEST_SECONDS), self._strike, (kind, struck))
        killer.start()
        requests = [ask_for(self.chance) for _ in range(self.chance.randint(1, 4))]
        for job, params in requests:
            self.book.drop(job, **params)
        while not struck.wait(self.chance.uniform(0.01, 0.1)):
            self.book.submit(self.daemon, *self.chance.choice([("count",), ("fails",), ("flaky",)]))
        killer.join()
        if kind in ("supervisor", "all"):
            self.daemon.wait()
        self.book.glance()

    def _strike(self, kind: str, struck: Event) -> None:
        try:
            victims = self._victims(kind)
            self.chance.shuffle(victims)
            # On its way up, the daemon has no such process yet.
            self.kinds[kind if victims else "nobody"] += 1
            for pid in victims if kind == "all" else victims[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        finally:
            struck.set()

    def _victims(self, kind: str) -> list[int]:
        if kind == "supervisor":
            return [self.daemon.pid]
        if kind == "all":
            return [each.pid for each in self.daemon.processes()]
        return [each.pid for each in self.daemon.processes() if name_of(each) == f"jobd-{kind}"]


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def ask_for(chance: random.Random) -> tuple[str, dict[str, float]]:
    job = chance.choice(["count", "fails", "flaky", "slow"])
    return job, {"seconds": chance.uniform(0, 0.3)} if job == "slow" else {}


def killed_again_and_again(number: int) -> tuple[Lane, list[str]]:
    with workplace() as folder:
        lane = Lane(number, folder)
        try:
            for _ in range(CYCLES // LANES + 1):
                lane.cycle()
            return lane, lane.book.settle(lane.daemon)
        finally:
            lane.daemon.close()


def test_random_kills_lose_double_tear_and_leave_nothing() -> None:
    outcomes = side_by_side(killed_again_and_again, range(LANES))
    kinds = sum((lane.kinds for lane, _ in outcomes), Counter[str]())
    owed = sum(len(lane.book.owed) for lane, _ in outcomes)
    wrong = [each for _, lane_wrong in outcomes for each in lane_wrong]
    figures.append(f"kill -9: {kinds.total()} cycles {dict(kinds)}, {owed} acknowledged requests, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)


def test_everything_is_dead_a_moment_after_the_supervisor() -> None:
    with workplace() as folder:
        book = Book(folder / "var", folder / "notes")
        daemon = DaemonProcess(book.root, *FORGIVING, env=book.env)
        try:
            daemon.start()
            book.drop("slow", seconds=30)
            workers = [process for process in daemon.processes() if process.pid != daemon.pid]
            assert workers
            daemon.kill()
            wait_ended(workers, within=5)
        finally:
            daemon.close()
