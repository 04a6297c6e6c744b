"""Crash points: every call on the durable path, found by a tracer and failed by it, one at a time.

The supervisor makes them on the ledger and the spool, the publishing process on the results. Where one of these is
killed, it dies again at the same call whenever it is replaced, as the tracer counts the calls of each.
"""

import re
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.faults.book import FORGIVING, Book, workplace
from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until

CALLS = (
    *("openat", "mkdir", "write", "pwrite64", "fsync", "fdatasync", "syncfs", "ftruncate", "fallocate"),
    *("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "fchmod", "fchown"),
)
# A tracer counts calls in each thread for itself; what one thread does on its folders is counted alone.
PARTS = {
    "ledger": ("state", "state/ledger.db", "state/ledger.db-wal", "state/ledger.db-shm", "state/ledger.db-journal"),
    "spool": ("spool/incoming", "spool/claimed", "spool/rejected"),
    "results": ("results", "results/.tmp"),
}
DIED = "the publishing process was killed by SIGKILL"
_CALL = re.compile(r"^(\d+) +(\w+)\(")
_SYNC = re.compile(r"^\d+ +(fsync|fdatasync|syncfs)\(\d+<(?!\S*/state>).* EIO ")
_STUCK_SECONDS = 12.0


def telling(calls: int) -> list[int]:
    """Which of so many calls are points of their own: of thousands, most lay out the ledger's log and are all alike."""
    return [number for number in range(1, calls + 1) if number <= 20 or number > calls - 300 or number % 200 == 0]


class Point(NamedTuple):
    """The `number`th call of this name that a thread makes on the files of `part`."""

    part: str
    call: str
    number: int


class Fault(NamedTuple):
    """What happens at a point: `KILL`, or the name of an errno; `lasting`: from then on, not once."""

    kind: str
    lasting: bool = False

    def at(self, point: Point) -> str:
        what = "signal=KILL" if self.kind == "KILL" else f"error={self.kind}"
        return f"{point.call}:{what}:when={point.number}{'+' if self.lasting else ''}"


@contextmanager
def scene(env: Mapping[str, str] | None = None) -> Iterator["Scene"]:
    """A scene on a root of its own, gone with everything when the block ends."""
    with workplace() as folder:
        yield Scene(folder, env or {})


class Scene:
    """A daemon's whole life with requests of all kinds, once under a tracer and then without, until all is settled.

    Attributes:
        reached: the fault came; threads do not take turns in the same way each time.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.book = Book(folder / "var", folder / "notes")
        self.reached = False
        self._trace = folder / "trace"
        self._served_with: list[str] = []
        self._logs: tuple[str, ...] = ()
        self._env = {**env, **self.book.env}
        for kind in ("count", "fails", "flaky", "later"):
            self.book.drop(kind)
        self.book.refuse()
        self._drafts = [f"results/.tmp/{run_id}.json" for run_id in self.book.asked]

    def calls(self, part: str) -> list[Point]:
        """Every call on the files of the part that the supervisor makes when nothing goes wrong."""
        assert self._live(self._tracer(part)) == 0
        counts = Counter(match.groups() for line in self._traced() if (match := _CALL.match(line)))
        most: dict[str, int] = {}
        for (_, call), number in counts.items():
            most[call] = max(number, most.get(call, 0))
        return [Point(part, call, number) for call, most_calls in most.items() for number in telling(most_calls)]

    def wrong(self, point: Point, fault: Fault, *, within: float = 30.0) -> list[str]:
        """All that is wrong after the fault at the point and a start without it; empty is well."""
        wrong = self._faulty_life(point, fault)
        with self._daemon() as daemon:
            wrong += self.book.settle(daemon, within=within)
        told = [line for text in self._logs for line in text.splitlines()]
        wrong += ["Traceback in the log"] * any("Traceback" in line for line in told)
        return [f"{fault.kind}{'+' * fault.lasting} at {point}: {each}" for each in wrong] + (told if wrong else [])

    def _faulty_life(self, point: Point, fault: Fault) -> list[str]:
        try:
            if point.part == "results" and fault.kind == "KILL":
                fault = fault._replace(lasting=True)
            code = self._live(self._tracer(point.part, "-e", f"inject={fault.at(point)}"), fault)
        except AssertionError as error:
            return [str(error)]
        self.reached = code == -signal.SIGKILL or DIED in self._logs[-1] or bool(self._injected())
        return [] if code in self._expected(point, fault) else [f"ended with {code}"]

    def _tracer(self, part: str, *options: str) -> Sequence[str]:
        """As the daemon's grandchild; it lets go of what the supervisor starts, unless that writes results."""
        paths = [*PARTS[part], *(self._drafts if part == "results" else ())]
        watched = [word for path in paths for word in ("-P", str(self.book.root / path))]
        what = ("-y", "-o", str(self._trace), *watched, "-e", f"trace={','.join(CALLS)}", *options)
        whom = () if part == "results" else ("-b", "execve")
        return ("strace", "-D", "-f", *whom, "-qq", *what)

    def _traced(self) -> list[str]:
        return self._trace.read_text(errors="replace").splitlines()

    def _injected(self) -> list[str]:
        return [line for line in self._traced() if "(INJECTED)" in line]

    def _expected(self, point: Point, fault: Fault) -> set[int]:
        """Exit codes: who cannot start says 73 or 74; a sync that failed while it served ends the daemon with 74."""
        if not self.reached:
            return {0}
        if fault.kind == "KILL":
            return {0 if point.part == "results" else -signal.SIGKILL}
        # SQLite makes nothing depend on its sync of the folder, nor on the one by which it closes.
        return {74} if any(_SYNC.match(line) for line in self._served_with) else {0, 73, 74}

    @contextmanager
    def _daemon(self, prefix: Sequence[str] = ()) -> Iterator[DaemonProcess]:
        daemon = DaemonProcess(self.book.root, *FORGIVING, env=self._env, prefix=prefix)
        try:
            yield daemon
        finally:
            self._logs = (*self._logs, daemon.log)
            daemon.close()

    def _live(self, prefix: Sequence[str], fault: Fault | None = None) -> int:
        """One life under a tracer; its exit code. A fault that passes may not leave it stuck."""
        book = self.book
        with self._daemon(prefix) as daemon:
            daemon.launch()
            wait_until(lambda: daemon.ended or "READY=1" in daemon.notices, within=_STUCK_SECONDS)
            if not daemon.ended:
                book.submit(daemon, "count")
            patience = 1.0 if fault and fault.lasting else _STUCK_SECONDS

            def over() -> bool:
                book.cancel_later(daemon)
                return daemon.ended or not (book.missing() or any(book.incoming.iterdir()))

            try:
                wait_until(over, within=patience, every=0.02)
            except AssertionError:
                if not (fault and fault.lasting):
                    raise AssertionError(f"stuck after {fault}: {book.missing()}\n{daemon.log}") from None
            book.glance()
            self._served_with = self._injected()
            return daemon.wait() if daemon.ended else daemon.stop(within=_STUCK_SECONDS)
