"""More than can be done: memory stays bounded, who was first is served first, and status answers all the while."""

import http.client
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.faults.book import NOBODY, workplace
from tests.faults.scale import figures, scaled, whole
from tests.support.daemon import DaemonProcess, UnixConnection
from tests.support.waiting import wait_until

pytestmark = whole

JOBS = ("--jobs", str(Path(__file__).with_name("overload_jobs.py")), "--workers", "1")
MORE_BYTES = 64 * 1024 * 1024
FILES = scaled(10_000, 1_000_000)
# A slow disk gets as far as it gets: what is asked of it ends after this long, and all is right so far.
SECONDS = scaled(12, 3600)
CLIENT_SECONDS = scaled(5, 120)
# A run may overtake those that are taken and handed out with it.
TOGETHER = 2_000


class Watch(threading.Thread):
    """Asks for the status all the time; sees how long that takes, and how much memory the daemon has.

    Attributes:
        most_bytes: how much more than at the beginning the supervisor and the publishing process had together, and how
            much more the worker.
        wrong: why it ended before it was told to.
    """

    def __init__(self, daemon: DaemonProcess) -> None:
        super().__init__(daemon=True)
        self.most_bytes = [0, 0]
        self.seconds: list[float] = []
        self.wrong = ""
        self._daemon = daemon
        self._over = threading.Event()
        status = daemon.status()
        own = [psutil.Process(pid) for pid in (daemon.pid, status["publishing"])]
        self._processes = [own, [psutil.Process(worker["pid"]) for worker in status["workers"]]]
        self._at_first = self._bytes()

    def run(self) -> None:
        while not self._over.wait(0.02):
            begun = time.monotonic()
            try:
                self._daemon.status()
            except (*NOBODY, AssertionError) as error:
                self.wrong = f"no status after {time.monotonic() - begun:.1f} s: {error!r}"
                return
            self.seconds.append(time.monotonic() - begun)
            more = [now - before for now, before in zip(self._bytes(), self._at_first, strict=True)]
            self.most_bytes = list(map(max, self.most_bytes, more))

    def end(self) -> None:
        self._over.set()
        self.join()

    def _bytes(self) -> list[int]:
        return [sum(map(resident, processes)) for processes in self._processes]

    def __str__(self) -> str:
        late = sorted(self.seconds)
        p99 = late[len(late) * 99 // 100] * 1000 if late else 0
        daemon, worker = (more >> 20 for more in self.most_bytes)
        answers = f"status p99 {p99:.0f} ms, worst {(late or [0])[-1] * 1000:.0f} ms"
        return f"memory of the daemon {daemon} MB more, of the worker {worker} MB, {answers}"


def resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def roomy() -> str:
    """Where there is room for two files of each run; in memory if possible, as disks take long to remove so many."""
    memory = "/dev/shm"
    with suppress(OSError):
        if shutil.disk_usage(memory).free > FILES * 3 * 4096 + 2**28:
            return memory
    return "/tmp"


@contextmanager
def overloaded() -> Iterator[tuple[DaemonProcess, Watch]]:
    """A daemon that has done its first runs, and a watch over it; whatever is asked of it, both stay well."""
    with workplace(roomy()) as folder:
        daemon = DaemonProcess(folder / "var", *JOBS)
        try:
            daemon.start()
            requests = [{"job": "noop"} for _ in range(1000)]
            assert daemon.call("POST", "/v1/runs", requests)[0] == 202
            wait_until(lambda: daemon.status()["runs"]["completed"] == 1000)
            watch = Watch(daemon)
            watch.start()
            try:
                yield daemon, watch
            finally:
                watch.end()
            assert not watch.wrong, f"{watch.wrong}\n{daemon.log[-4000:]}"
            assert max(watch.most_bytes) <= MORE_BYTES, watch
            assert daemon.stop() == 0
        finally:
            daemon.close()


def done(daemon: DaemonProcess) -> int:
    return int(daemon.status()["runs"]["completed"]) - 1000


def assert_in_order(folder: Path, asked: int) -> None:
    """Runs began in the order in which they were asked for, by and large: run NUMBER is the NUMBERth."""
    step = 1 + asked // 20_000
    began = []
    for number in range(0, asked, step):
        with suppress(FileNotFoundError):
            result = json.loads((folder / f"n{number:07}.json").read_bytes())
            assert result["status"] == "completed"
            began.append((result["started_at"], number))
    places = [(place * step, number) for place, (_, number) in enumerate(sorted(began))]
    overtaken = max((place - number for place, number in places), default=0)
    overtaking = max((number - place for place, number in places), default=0)
    assert max(overtaken, overtaking) <= TOGETHER, f"of {asked}: {overtaken} places late, {overtaking} early"


def drop_many(daemon: DaemonProcess, most: int) -> int:
    """Written elsewhere, then renamed in together as fast as can be; how many."""
    incoming = daemon.root / "spool" / "incoming"
    drafts = daemon.root / "spool" / "drafts"
    drafts.mkdir()
    begun = time.monotonic()
    number = 0
    while number < most and time.monotonic() < begun + SECONDS:
        # Oldest first is by the time of the last write, which must differ.
        (drafts / f"n{number:07}.json").write_bytes(b'{"job": "noop", "run_id": "n%07d"}' % number)
        number += 1
    for each in range(number):
        os.rename(drafts / f"n{each:07}.json", incoming / f"n{each:07}.json")
    drafts.rmdir()
    return number


def test_very_many_files_at_once() -> None:
    with overloaded() as (daemon, watch):
        dropped = drop_many(daemon, FILES)
        begun = time.monotonic()
        with suppress(AssertionError):
            wait_until(lambda: watch.wrong or done(daemon) == dropped, within=SECONDS, every=0.1)
        seconds = time.monotonic() - begun
        completed = done(daemon)
        assert_in_order(daemon.root / "results", dropped)
        figures.append(f"overload: {completed} of {dropped} files at once done in {seconds:.0f} s, {watch}")
        assert completed >= min(dropped, 500), "it hardly got anywhere"


class Client(threading.Thread):
    """Submits without end, a hundred a call, and does not care what becomes of it."""

    numbers = itertools.count()

    def __init__(self, daemon: DaemonProcess) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.wrong = ""
        self.submitted = 0
        self._path = daemon.root / "control.sock"

    def run(self) -> None:
        connection = UnixConnection(self._path)
        try:
            while not self.over.is_set():
                requests = [self._request() for _ in range(100)]
                connection.request("POST", "/v1/runs", json.dumps(requests))
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 202, answer.status
                self.submitted += len(requests)
        except (OSError, http.client.HTTPException, AssertionError) as error:
            self.wrong = repr(error)
        finally:
            connection.close()

    def _request(self) -> dict[str, Any]:
        return {"job": "noop", "run_id": f"n{next(self.numbers):07}"}


def test_clients_that_submit_without_end() -> None:
    with overloaded() as (daemon, watch):
        clients = [Client(daemon) for _ in range(2)]
        for client in clients:
            client.start()
        over = threading.Event()
        over.wait(CLIENT_SECONDS)
        for client in clients:
            client.over.set()
        for client in clients:
            client.join()
        assert not [client.wrong for client in clients if client.wrong]
        submitted = sum(client.submitted for client in clients)
        completed = done(daemon)
        assert_in_order(daemon.root / "results", submitted)
        figures.append(f"overload: {submitted} submitted without a pause, {completed} done meanwhile, {watch}")
        assert completed >= 500, "it hardly got anywhere"


def test_jobs_that_log_without_end() -> None:
    with overloaded() as (daemon, watch):
        storms = [daemon.drop({"job": "storm"}) for _ in range(2)]
        wait_until(lambda: len(daemon.status()["running"]) == 2)
        begun = time.monotonic()
        neighbours = 0
        while time.monotonic() < begun + SECONDS / 2:
            daemon.result(daemon.drop({"job": "noop"}))
            neighbours += 1
        for run_id in storms:
            assert daemon.call("POST", f"/v1/runs/{run_id}/cancel")[0] == 200
        results = [daemon.result(run_id) for run_id in storms]
        said = sum(result["result"] for result in results)
        kept = sum(len(result["logs"]) for result in results)
        assert kept < said
        # The note of what was left out.
        assert all(result["warnings"] for result in results)
        figures.append(f"overload: {said} lines logged, {kept} kept, {neighbours} neighbours done, {watch}")
