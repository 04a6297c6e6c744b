"""The peers beside us, in an environment of their own, on a Redis server that syncs each write before it answers.

One session of a peer: idle memory and latency, end to end, then without workers enqueuing one at a time, drain, and
jobs that sleep. Its drain is clocked from the first job's first line, which leaves out what comes before it; ours is
not. Its end is the last job's line, not an acknowledgement or a result.
"""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from tests.bench.figures import Figure, percentile
from tests.bench.footprint import settled_pss
from tests.bench.peers.marks import ENDED, read_marks
from tests.bench.pipeline import per_second
from tests.bench.stage import BenchError, Part, Samples, Sizes, Stage
from tests.support.daemon import PROJECT
from tests.support.processes import carrying, kill_all
from tests.support.waiting import wait_until

PYTHON = PROJECT / ".venv-peers" / "bin" / "python"
PEERS = {
    "taskiq_list": "taskiq (Redis list)",
    "taskiq_stream": "taskiq (Redis stream)",
    "dramatiq_redis": "dramatiq (Redis)",
    "huey_redis": "huey (Redis)",
    "huey_sqlite": "huey (SQLite)",
    "saq_redis": "SAQ (Redis)",
}
_MARK = "CRAFT_EASY_BENCH_PEER"
_WARM = 20
_HAS_NO_SUCH_SETTING = 3


def missing() -> str | None:
    """What has to be installed first, None when all is there."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed; on Debian: apt-get install redis-server"
    return None if PYTHON.exists() else "the peers are not installed; make bench-peers does it"


def parts(sizes: Sizes) -> dict[str, Part]:
    return {f"peer-{peer}": Part(partial(measure, peer), _figures(peer, title, sizes)) for peer, title in PEERS.items()}


def _figures(peer: str, title: str, sizes: Sizes) -> list[Figure]:
    return [
        Figure(f"peer.{peer}.drain", f"{title}: drain", "1/s"),
        Figure(f"peer.{peer}.end_to_end", f"{title}: end to end", "1/s"),
        Figure(f"peer.{peer}.enqueue", f"{title}: durable enqueues, one at a time", "1/s"),
        Figure(f"peer.{peer}.p50", f"{title}: enqueue to first line, idle, p50", "ms"),
        Figure(f"peer.{peer}.p99", f"{title}: enqueue to first line, idle, p99", "ms"),
        Figure(f"peer.{peer}.memory", f"{title}: memory (PSS), idle, with the broker", "MB"),
        Figure(f"peer.{peer}.sleep", f"{title}: {sizes.peer_sleepers:,} × sleep(1)", "s"),
    ]


def measure(peer: str, stage: Stage) -> Samples:
    with stage.root() as root, _session(peer, root, stage) as session:
        samples = _with_workers(session, stage.sizes) | _without_workers(session, stage.sizes)
        sleeping = _sleepers(session, stage.sizes)
    if sleeping is not None:
        samples["sleep"] = sleeping
    return {f"peer.{peer}.{name}": value for name, value in samples.items()}


def _with_workers(session: "Session", sizes: Sizes) -> dict[str, float]:
    with session.workers():
        memory = settled_pss(session.processes())
        waits = []
        for index in session.numbers(sizes.samples):
            enqueued, _ = session.enqueue("one", "noop", range(index, index + 1))
            session.wait(1, since=index)
            waits.append((session.marks[index] - enqueued) / 1e6)
        indices = session.numbers(sizes.peer_runs)
        began, _ = session.enqueue("all", "noop", indices)
        _, last = session.wait(len(indices), since=indices.start)
    return {
        "memory": memory,
        "p50": percentile(waits, 50),
        "p99": percentile(waits, 99),
        "end_to_end": per_second(len(indices), began, last),
    }


def _without_workers(session: "Session", sizes: Sizes) -> dict[str, float]:
    singles = session.numbers(min(500, sizes.peer_runs))
    began, ended = session.enqueue("one", "noop", singles)
    rest = session.numbers(sizes.peer_runs - len(singles))
    session.enqueue("all", "noop", rest)
    with session.workers(warm=False):
        first, last = session.wait(sizes.peer_runs, since=singles.start)
    return {
        "enqueue": per_second(len(singles), began, ended),
        "drain": per_second(sizes.peer_runs, first, last),
    }


def _sleepers(session: "Session", sizes: Sizes) -> float | None:
    """Seconds from the first start to the last end; None when the peer has no setting for so many."""
    try:
        with session.workers(slots=sizes.peer_sleepers):
            indices = session.numbers(sizes.peer_sleepers)
            session.enqueue("all", "sleep", indices)
            first, _ = session.wait(len(indices), since=indices.start)
            _, last = session.wait(len(indices), since=indices.start + ENDED)
    except _NoSuchSettingError:
        return None
    return (last - first) / 1e9


class _NoSuchSettingError(Exception):
    pass


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
        assert self._driver.stdout is not None
        if not self._driver.stdout.readline():
            raise BenchError(f"{self._peer}: {self._log.read_text()}")

    def _start(self, module: str, *args: str) -> "subprocess.Popen[str]":
        command = [str(PYTHON), "-m", f"tests.bench.peers.{module}", *args]
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
        assert self._driver.stdout is not None
        self._driver.stdin.write(f"{how} {job} {indices.start} {len(indices)}\n")
        self._driver.stdin.flush()
        said = self._driver.stdout.readline().split()
        if len(said) != 2:
            raise BenchError(f"{self._peer}: enqueuing failed\n{self._log.read_text()[-2000:]}")
        return int(said[0]), int(said[1])

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
        return bool(new or not expected) and all(index in self.marks for index in expected)

    @contextmanager
    def workers(self, *, slots: int | None = None, warm: bool = True) -> Iterator[None]:
        """Two worker processes, which have done something already when `warm`; gone at the end."""
        process = self._start("serve", self._peer, *([] if slots is None else [str(slots)]))
        try:
            if warm:
                self._warm(process)
            yield
        finally:
            kill_all([each for each in self.processes() if each not in self.broker and not self._is_driver(each)])
            process.communicate()

    def _warm(self, process: "subprocess.Popen[str]") -> None:
        if _ended_with(process) == _HAS_NO_SUCH_SETTING:
            raise _NoSuchSettingError
        indices = self.numbers(_WARM)
        self.enqueue("all", "noop", indices)
        self.wait(len(indices), since=indices.start)

    def _is_driver(self, process: psutil.Process) -> bool:
        return self._driver is not None and process.pid == self._driver.pid

    def processes(self) -> list[psutil.Process]:
        """Workers and broker, without the one that enqueues."""
        return [each for each in (*carrying(self._mark), *self.broker) if not self._is_driver(each)]

    def close(self) -> None:
        kill_all(carrying(self._mark))
        if self._driver is not None:
            self._driver.communicate()


def _ended_with(process: "subprocess.Popen[str]") -> int | None:
    """Its exit code if it ends within a moment."""
    try:
        return process.wait(2.0)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def _session(peer: str, root: Path, stage: Stage) -> Iterator[Session]:
    session = Session(peer, root, stage.sizes.patience)
    try:
        if peer.endswith(("_redis", "_list", "_stream")):
            with _redis(root, session.env) as broker:
                session.broker = [broker]
                session.start_driver()
                yield session
        else:
            session.start_driver()
            yield session
    finally:
        session.close()


@contextmanager
def _redis(root: Path, env: Mapping[str, str]) -> Iterator[psutil.Process]:
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
