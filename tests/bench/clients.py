"""What a client does: drop files, post over one connection, see results come, and check them."""

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import inotify_simple

from tests.bench.stage import BenchError

BATCH = 100
_CONNECTIONS = 4
# Between two looks at what inotify has, so that the observer takes no processor time worth a word.
_LOOK_SECONDS = 0.002

Request = dict[str, Any]


def requests(count: int, job: str = "noop", *, prefix: str = "run", **more: Any) -> list[Request]:
    """As many requests for a job, with run ids of their own; `more` are further keys of each."""
    return [{"run_id": f"{prefix}-{index}", "job": job, **more} for index in range(count)]


class Spool:
    """Drops request files into a root: written aside, renamed in."""

    def __init__(self, root: Path) -> None:
        self._aside = root / "aside"
        self._incoming = root / "spool" / "incoming"
        self._aside.mkdir(exist_ok=True)
        self._incoming.mkdir(parents=True, exist_ok=True)

    def drop(self, request: Request) -> None:
        name = f"{request['run_id']}.json"
        with open(self._aside / name, "wb", buffering=0) as file:
            file.write(json.dumps(request).encode())
        (self._aside / name).rename(self._incoming / name)

    def drop_all(self, batch: Iterable[Request]) -> None:
        for request in batch:
            self.drop(request)


class Connection:
    """One kept-alive connection to the control socket. As little of HTTP as will do: the client is not measured."""

    def __init__(self, root: Path, *, patience: float = 30.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience)
        self._socket.connect(str(root / "control.sock"))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, body: Request | Sequence[Request]) -> None:
        """POST /v1/runs; durable when it returns.

        Raises:
            BenchError: a request was refused.
        """
        answer = self.call("POST", "/v1/runs", json.dumps(body).encode())
        refused = [each for each in (answer if isinstance(answer, list) else [answer]) if "run_id" not in each]
        if refused:
            raise BenchError(f"refused: {refused[0]}")

    def call(self, method: str, path: str, body: bytes = b"") -> Any:
        """The JSON that the daemon answers."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        header, _, content = received.partition(b"\r\n\r\n")
        length = int(header.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        while len(content) < length:
            content += self._receive()
        if not header.startswith(b"HTTP/1.1 2"):
            raise BenchError(f"{method} {path}: {content[:300].decode(errors='replace')}")
        return json.loads(content)

    def _receive(self) -> bytes:
        part = self._socket.recv(65536)
        if not part:
            raise BenchError("the daemon closed the connection")
        return part


def submit_all(root: Path, batch: Sequence[Request], *, size: int = BATCH) -> None:
    """Submit over four connections, `size` requests a call; all are durable when it returns."""
    slices = iter([batch[start : start + size] for start in range(0, len(batch), size)])
    lock = threading.Lock()

    def work(_: int) -> None:
        with Connection(root) as connection:
            while True:
                with lock:
                    part = next(slices, None)
                if part is None:
                    return
                connection.submit(part)

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(work, range(_CONNECTIONS)))


class Watch:
    """Sees results being published under a root, in which no daemon needs to run yet."""

    def __init__(self, root: Path) -> None:
        self.results = root / "results"
        self.results.mkdir(mode=0o750, exist_ok=True)
        self._inotify = inotify_simple.INotify()
        self._inotify.add_watch(self.results, inotify_simple.flags.MOVED_TO)
        self.seen: set[str] = set()

    def close(self) -> None:
        self._inotify.close()

    def wait(self, count: int, *, within: float) -> int:
        """Until as many results were published in all; returns the time, monotonic nanoseconds.

        Raises:
            BenchError: they were not.
        """
        return self.until(lambda: len(self.seen) >= count, f"{count} results", within=within)

    def wait_for(self, run_id: str, *, within: float) -> int:
        """As `wait`, for one run."""
        return self.until(lambda: run_id in self.seen, f"the result of {run_id}", within=within)

    def until(self, fact: Callable[[], bool], what: str, *, within: float) -> int:
        deadline = time.monotonic() + within
        while not fact():
            left = deadline - time.monotonic()
            if left <= 0:
                raise BenchError(f"not within {within:g} s: {what}; there are {len(self.seen)}")
            select.select([self._inotify.fileno()], [], [], left)
            self._take()
            if not fact():
                time.sleep(_LOOK_SECONDS)
        return time.monotonic_ns()

    def _take(self) -> None:
        for event in self._inotify.read(timeout=0):
            if event.mask & inotify_simple.flags.Q_OVERFLOW:
                self.seen.update(path.stem for path in self.results.glob("*.json"))
            elif event.name.endswith(".json"):
                self.seen.add(event.name.removesuffix(".json"))


@contextmanager
def watching(root: Path) -> Iterator[Watch]:
    watch = Watch(root)
    try:
        yield watch
    finally:
        watch.close()


def validated(root: Path, asked: Iterable[Request], *, reason: str | None = None) -> dict[str, Any]:
    """The JobResults of exactly these requests, by run id.

    Raises:
        BenchError: one is missing, torn, not completed, or nobody asked for it.
    """
    found = {path.name: json.loads(path.read_bytes()) for path in (root / "results").glob("*.json")}
    expected = {f"{request['run_id']}.json" for request in asked}
    if found.keys() != expected:
        odd = sorted(found.keys() ^ expected)
        raise BenchError(f"results: {len(found)} instead of {len(expected)}; not in both: {odd[:3]}")
    for name, result in found.items():
        if name != f"{result['run_id']}.json" or (result["status"], result["reason"]) != ("completed", reason):
            raise BenchError(f"{name}: {result['status']}, {result['reason']}: {result['error']}")
    return {result["run_id"]: result for result in found.values()}


def first_line(results: Iterable[Any]) -> int:
    """When the first of the jobs began, monotonic nanoseconds."""
    return min(int(result["result"]) for result in results)
