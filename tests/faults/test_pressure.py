"""Processes that are stopped for a while, that run out of descriptors, that the kernel kills for their memory."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from tests.faults.book import FORGIVING, NOBODY, Book, workplace
from tests.faults.scale import chance, figures, scaled, whole
from tests.support.cgroups import memory_group
from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until

pytestmark = whole

STOPS = scaled(40, 1000)


@contextmanager
def serving() -> Iterator[tuple[DaemonProcess, Book]]:
    with workplace() as folder:
        book = Book(folder / "var", folder / "notes")
        daemon = DaemonProcess(book.root, *FORGIVING, env=book.env)
        try:
            yield daemon.start(), book
        finally:
            daemon.close()


def workers(daemon: DaemonProcess) -> list[int]:
    return [worker["pid"] for worker in daemon.status()["workers"] if worker["state"] == "ready"]


def test_stopped_and_continued_at_random() -> None:
    dice = chance("stops")
    with serving() as (daemon, book):
        for _ in range(STOPS):
            victim = dice.choice(daemon.processes())
            with suppress(psutil.NoSuchProcess):
                victim.suspend()
                book.drop(dice.choice(["count", "fails", "flaky"]))
                # Long enough to be in the way, without a sleep: the next request is written to the disk meanwhile.
                book.drop("slow", seconds=dice.uniform(0, 0.1))
                victim.resume()
        figures.append(f"SIGSTOP and SIGCONT: {STOPS} times, {len(book.owed)} requests")
        assert book.settle(daemon) == []


def test_no_run_is_lost_to_a_supervisor_that_slept() -> None:
    with serving() as (daemon, book):
        running = book.drop("slow", seconds=0.05)
        wait_until((book.notes / running).exists)
        daemon.signal(signal.SIGSTOP)
        for kind in ("count", "fails", "flaky"):
            book.drop(kind)
        daemon.signal(signal.SIGCONT)
        assert book.settle(daemon) == []


def test_without_descriptors_it_waits_and_recovers() -> None:
    with serving() as (daemon, book):
        book.drop("count")
        wait_until(lambda: not book.missing())
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        opened = len(os.listdir(f"/proc/{daemon.pid}/fd"))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (opened - 2, hard))
        for kind in ("count", "fails", "flaky"):
            book.drop(kind)
            with suppress(*NOBODY, AssertionError):
                daemon.status()
        wait_until(lambda: "Too many open files" in daemon.log)
        assert not daemon.ended
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert book.settle(daemon) == []


def test_a_worker_that_is_killed_for_its_memory() -> None:
    with memory_group(160 << 20) as group, serving() as (daemon, book):
        [worker] = workers(daemon)
        (group / "cgroup.procs").write_text(str(worker))
        neighbours = [book.drop("slow", seconds=1), book.drop("slow", seconds=1)]
        wait_until(lambda: all((book.notes / run_id).exists() for run_id in neighbours))
        book.drop("eats")
        assert book.settle(daemon) == []
        assert "SIGKILL" in daemon.log
