"""The oracle: what one daemon was asked, and whether each accepted request has exactly one right result."""

import errno
import http.client
import json
import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from craft_easy_jobd.ledger_schema import CODES
from craft_easy_jobd.states import FINAL, RunState
from craft_easy_jobs.model import JobResult, decode_result
from tests.faults.notes import NOTES
from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until

JOBS = str(Path(__file__).with_name("fault_jobs.py"))
# An attempt that faults interrupt is no poison run, however many faults there are.
FORGIVING = ("--jobs", JOBS, "--workers", "1", "--slots", "20", "--interruption-budget", "100000")
NOBODY = (OSError, http.client.HTTPException, json.JSONDecodeError)

_ENDS = {
    "count": ("completed", None),
    "flaky": ("completed", None),
    "slow": ("completed", None),
    "until": ("completed", None),
    "eats": ("completed", None),
    "fails": ("failed", "exception"),
    "later": ("failed", "cancelled"),
}


def _idle(daemon: DaemonProcess) -> bool:
    """Nothing is left to do; runs that were asked for and not acknowledged may be there too."""
    try:
        counts = daemon.status()["runs"]
    except NOBODY:
        # It is still on its way up.
        return False
    return not any(runs for state, runs in counts.items() if RunState(state) not in FINAL)


@contextmanager
def workplace(where: str = "/tmp") -> Iterator[Path]:
    """A folder with a short name, gone with everything in it when the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="fault-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Book:
    """Requests for one root, and what must have come of them.

    Attributes:
        owed: kind of each request that was acknowledged, by run_id.
        asked: those as well to which no answer came; they may have a result or none.
        refused: names of dropped files that are no requests.
        dark: from when to when a disk lay; what it acknowledged then was not true, so that an attempt may come again.
    """

    def __init__(self, root: Path, notes: Path) -> None:
        self.root = root
        self.notes = notes
        self.owed: dict[str, str] = {}
        self.asked: dict[str, str] = {}
        self.refused: set[str] = set()
        self.dark: list[tuple[float, float]] = []
        self._seen: dict[str, bytes] = {}
        self._changed: list[str] = []
        self.incoming = root / "spool" / "incoming"
        self.incoming.mkdir(parents=True, exist_ok=True)
        notes.mkdir(exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        return {NOTES: str(self.notes)}

    # -- asking
    def new(self, kind: str, **params: Any) -> dict[str, Any]:
        """A request that nobody has yet; `later` is one for a run that only a cancel ends."""
        run_id = f"{kind}-{uuid.uuid4().hex[:12]}"
        self.asked[run_id] = kind
        if kind == "later":
            return {"run_id": run_id, "job": "count", "not_before": "2099-01-01T00:00:00Z"}
        return {"run_id": run_id, "job": kind, "params": params}

    def drop(self, kind: str, **params: Any) -> str:
        """Drop a request durably, as the README says; it is the daemon's when this returns."""
        request = self.new(kind, **params)
        run_id = str(request["run_id"])
        self.drop_bytes(json.dumps(request).encode(), f"{run_id}.json")
        self.owed[run_id] = kind
        return run_id

    def refuse(self) -> None:
        """Drop a request that must be refused."""
        name = f"refused-{uuid.uuid4().hex[:12]}.json"
        self.drop_bytes(b'{"job": "nobody-has-it"}', name)
        self.refused.add(name)

    def draft(self, name: str) -> Path:
        """Where a request is written: on the spool's file system, so that a rename can drop it."""
        return self.incoming.parent / f"draft-{name}"

    def drop_bytes(self, content: bytes, name: str) -> None:
        draft = self.draft(name)
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.incoming / name)
        fd = os.open(self.incoming, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def submit(self, daemon: DaemonProcess, kind: str, **params: Any) -> bool:
        """Ask over the socket; owed only if the answer says so and came."""
        request = self.new(kind, **params)
        try:
            code, _ = daemon.call("POST", "/v1/runs", request)
        except NOBODY:
            return False
        if code in (201, 202):
            self.owed[str(request["run_id"])] = kind
        return code in (201, 202)

    def cancel_later(self, daemon: DaemonProcess) -> None:
        """Cancel what would wait for ever; a daemon that is gone is asked again by the next caller."""
        for run_id, kind in self.asked.items():
            if kind == "later" and not self.path(run_id).exists():
                try:
                    daemon.call("POST", f"/v1/runs/{run_id}/cancel")
                except NOBODY:
                    return

    # -- checking
    def path(self, run_id: str) -> Path:
        return self.root / "results" / f"{run_id}.json"

    def glance(self) -> int:
        """Remember the results that there are: none of them may change or go away any more. How many there are."""
        folder = self.root / "results"
        for name in os.listdir(folder) if folder.exists() else ():
            if name.endswith(".json") and name not in self._seen:
                self._seen[name] = (folder / name).read_bytes()
        return len(self._seen)

    def missing(self) -> list[str]:
        return [run_id for run_id in self.owed if not self.path(run_id).exists()]

    def settle(self, daemon: DaemonProcess, *, within: float = 30.0) -> list[str]:
        """Let a daemon without faults come to an end of its work, stop it; all that is wrong then."""
        if daemon.ended:
            daemon.start()

        def settled() -> bool:
            self.cancel_later(daemon)
            # In this order: what was dropped without an answer is claimed first, and then waits in the queue.
            taken = not any(any(folder.iterdir()) for folder in (self.incoming, self.incoming.parent / "claimed"))
            return not self.missing() and taken and _idle(daemon)

        try:
            wait_until(settled, within=within, every=0.02)
        except AssertionError:
            return [f"lost: no result for {self.missing()}, in incoming: {os.listdir(self.incoming)}\n{daemon.log}"]
        code = daemon.stop()
        wrong = [f"the daemon that recovered ended with {code}\n{daemon.log}"] if code else []
        wrong += [f"left: {process}" for process in daemon.processes()]
        return wrong + self.wrong()

    def wrong(self) -> list[str]:
        """All that is wrong in the folders of a daemon that has stopped."""
        return [*self.torn(), *self._wrong_results(), *self._wrong_runs(), *self._wrong_folders()]

    def torn(self) -> Iterator[str]:
        """Result files that are no JobResult, or not what they were."""
        for path in (self.root / "results").glob("*"):
            if path.is_file():
                try:
                    decode_result(path.read_bytes())
                except msgspec.MsgspecError as error:
                    yield f"torn: {path.name}: {error}: {path.read_bytes()[:80]!r}"
        for name, content in self._seen.items():
            try:
                if (self.root / "results" / name).read_bytes() != content:
                    yield f"changed: {name}"
            except OSError as error:
                # A power cut may take back a name that was not announced yet; the same bytes come again.
                if error.errno != errno.ENOENT:
                    raise

    def _wrong_results(self) -> Iterator[str]:
        results = {path.stem: decode_result(path.read_bytes()) for path in (self.root / "results").glob("*.json")}
        yield from (f"lost: {run_id}" for run_id in self.owed.keys() - results.keys())
        yield from (f"nobody asked for {run_id}" for run_id in results.keys() - self.asked.keys())
        for run_id, kind in self.asked.items():
            if result := results.get(run_id):
                yield from self._wrong_result(run_id, kind, result)

    def _wrong_result(self, run_id: str, kind: str, result: JobResult) -> Iterator[str]:
        if result.run_id != run_id or (result.status, result.reason) != _ENDS[kind]:
            yield f"{run_id}: a result of {result.run_id}: {result.status}, {result.reason}, {result.error}"
        attempts = self._carried_out(run_id)
        sure = [number for number, moment in attempts if not any(a <= moment <= b for a, b in self.dark)]
        if len(set(sure)) != len(sure):
            yield f"doubled: {run_id} carried out the same attempt twice: {attempts}, dark: {self.dark}"
        if kind != "later" and result.attempts != max((number for number, _ in attempts), default=0):
            yield f"{run_id}: the result is of attempt {result.attempts}, carried out were {attempts}"

    def _carried_out(self, run_id: str) -> list[tuple[int, float]]:
        """Number and moment of each attempt that a job noted."""
        path = self.notes / run_id
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(number), float(moment)) for number, moment in map(str.split, lines)]

    def _wrong_runs(self) -> Iterator[str]:
        with closing(sqlite3.connect(self.root / "state" / "ledger.db")) as db:
            if (sound := db.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                yield f"the ledger is damaged: {sound}"
            states = {code: state for state, code in CODES.items()}
            runs = db.execute("SELECT run_id, state FROM runs").fetchall()
            yield from (f"{run_id} is {states[code]}" for run_id, code in runs if states[code] not in FINAL)
            yield from (f"unpublished: {seq}" for (seq,) in db.execute("SELECT seq FROM unpublished"))
            counts: dict[RunState, int] = {states[code]: runs for code, runs in db.execute("SELECT * FROM counts")}
            if sum(counts.values()) != len(runs):
                yield f"miscounted: {counts} of {len(runs)} runs"

    def _wrong_folders(self) -> Iterator[str]:
        spool = self.root / "spool"
        for folder in (self.incoming, spool / "claimed", self.root / "results" / ".tmp"):
            yield from (f"left behind: {path.relative_to(self.root)}" for path in folder.iterdir())
        expected = self.refused | {f"{name}.reason.json" for name in self.refused}
        rejected = set(os.listdir(spool / "rejected"))
        yield from (f"rejected: {name}" for name in rejected - expected)
        yield from (f"refused without a reason or a file: {name}" for name in expected - rejected)
        yield from (
            f"left behind: state/{name}" for name in set(os.listdir(self.root / "state")) - {"ledger.db", "lock"}
        )
        top = {"spool", "results", "state", "lost+found"}
        yield from (f"left behind: {name}" for name in set(os.listdir(self.root)) - top)
