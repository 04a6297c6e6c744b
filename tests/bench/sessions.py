"""A peer's processes: its broker, its workers, and one that enqueues; and the marks that its jobs leave."""

import os
import select
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.bench.peers.marks import read_marks
from tests.bench.stage import BenchError
from tests.support.daemon import PROJECT
from tests.support.processes import carrying, kill_all
from tests.support.waiting import wait_until

_PYTHON = PROJECT / ".venv-peers" / "bin" / "python"
_MARK = "CRAFT_EASY_BENCH_PEER"
_WARM = 20


def missing() -> str | None:
    """What has to be installed first, None when all is there."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed; on Debian: apt-get install redis-server"
    return None if _PYTHON.exists() else "the peers are not installed; make bench-peers does it"


@contextmanager
def peer_session(peer: str, root: Path, *, redis: bool, patience: float) -> Iterator["Session"]:
    """All that a peer needs but its workers; gone with everything at the end."""
    made = Session(peer, root, patience)
    try:
        if redis:
            with _redis(root) as server:
                made.broker = [server]
                made.start_driver()
                yield made
        else:
            made.start_driver()
            yield made
    finally:
        made.close()


class Session:
    """A peer's environment, one that enqueues, and the marks that its jobs have left: number → nanoseconds."""

    def __init__(self, peer: str, root: Path, patience: float) -> None:
        self._peer = peer
        self._patience = patience
        self._file = root / "marks"
        self._file.touch()
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self.env = {
            **os.environ,
            name: value,
            "CRAFT_EASY_BENCH_MARKS": str(self._file),
            "CRAFT_EASY_BENCH_REDIS": f"unix://{root}/redis.sock",
            "CRAFT_EASY_BENCH_SQLITE": str(root / "huey.db"),
        }
        self._log = root / "log"
        self._next = 0
        self._read = 0
        self.marks: dict[int, int] = {}
        self.broker: list[psutil.Process] = []
        self._driver: subprocess.Popen[str] | None = None

    def start_driver(self) -> None:
        self._driver = self._start("drive", self._peer)
        self._answer()

    def _start(self, module: str, *args: str) -> "subprocess.Popen[str]":
        command = [str(_PYTHON), "-m", f"tests.bench.peers.{module}", *args]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=PROJECT,
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if module == "drive" else log,
                stderr=log,
                text=True,
            )

    def numbers(self, count: int) -> range:
        """Numbers for jobs that no other has."""
        self._next += count
        return range(self._next - count, self._next)

    def enqueue(self, how: str, job: str, indices: range) -> tuple[int, int]:
        """Nanoseconds before the first call, and when all had returned; see `peers/drive.py`."""
        assert self._driver is not None
        assert self._driver.stdin is not None
        self._driver.stdin.write(f"{how} {job} {indices.start} {len(indices)}\n")
        self._driver.stdin.flush()
        began, ended = map(int, self._answer().split())
        return began, ended

    def _answer(self) -> str:
        """The next line of the one that enqueues."""
        assert self._driver is not None
        assert self._driver.stdout is not None
        # Nothing waits in Python's own buffer: it says one line at a time, and only when it was asked.
        ready, _, _ = select.select([self._driver.stdout], [], [], self._patience)
        if not ready or not (line := self._driver.stdout.readline()):
            raise BenchError(f"{self._peer}: enqueuing failed\n{self._log.read_text()[-2000:]}")
        return line

    def wait(self, count: int, *, since: int) -> tuple[int, int]:
        """Until jobs `since`, `since` + 1, ... have left their marks, once each; returns the first and the last time.

        Raises:
            BenchError: they have not.
        """
        expected = range(since, since + count)
        try:
            wait_until(lambda: self._look(expected), within=self._patience, every=0.002)
        except AssertionError:
            there = sum(index in self.marks for index in expected)
            log = self._log.read_text()[-2000:]
            raise BenchError(f"{self._peer}: {there} of {count} jobs within {self._patience:g} s\n{log}") from None
        times = [self.marks[index] for index in expected]
        return min(times), max(times)

    def _look(self, expected: range) -> bool:
        with self._file.open("rb") as file:
            file.seek(self._read)
            new = read_marks(file.read())
        self._read += 16 * len(new)
        for index, at in new:
            if index in self.marks:
                raise BenchError(f"{self._peer}: job {index} was carried out twice")
            self.marks[index] = at
        return all(index in self.marks for index in expected)

    @contextmanager
    def workers(self, *, slots: int | None = None, warm: bool = True) -> Iterator[None]:
        """Two worker processes, which have done something already when `warm`; gone at the end."""
        process = self._start("serve", self._peer, *([] if slots is None else [str(slots)]))
        try:
            if warm:
                indices = self.numbers(_WARM)
                self.enqueue("all", "noop", indices)
                self.wait(len(indices), since=indices.start)
            yield
        finally:
            # A parent that is not dead yet may start what was just killed again.
            while left := [each for each in self.processes() if each not in self.broker]:
                kill_all(left)
                process.wait(self._patience)

    def _is_driver(self, process: psutil.Process) -> bool:
        return self._driver is not None and process.pid == self._driver.pid

    def processes(self) -> list[psutil.Process]:
        """Workers and broker, without the one that enqueues."""
        return [each for each in (*carrying(self._mark), *self.broker) if not self._is_driver(each)]

    def close(self) -> None:
        kill_all(carrying(self._mark))
        if self._driver is not None:
            self._driver.communicate()


@contextmanager
def _redis(root: Path) -> Iterator[psutil.Process]:
    """A server of its own on a unix socket; each write is on the disk before it is answered."""
    socket = root / "redis.sock"
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    place = ["--dir", str(root), "--port", "0", "--unixsocket", str(socket), "--maxclients", "4096"]
    command = ["redis-server", *durable, *place, "--loglevel", "warning", "--daemonize", "no"]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: socket.exists() or server.poll() is not None, within=10.0)
        if server.poll() is not None:
            raise BenchError(f"redis-server ended with {server.returncode}")
        yield psutil.Process(server.pid)
    finally:
        server.kill()
        server.wait()
