"""All that changes the ledger: one function an operation, each called within a transaction of the writing thread."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from craft_easy_jobd import ledger_families as families
from craft_easy_jobd.interruptions import after_interruption
from craft_easy_jobd.ledger import (
    Again,
    Cancelled,
    Lane,
    Lease,
    LogChunk,
    Result,
    RunEnd,
    RunSpec,
    Slice,
    Started,
    Submitted,
)
from craft_easy_jobd.ledger_families import Gone
from craft_easy_jobd.ledger_moves import (
    LEASED,
    LOG_ACTIVE,
    add,
    end,
    end_waiting,
    failed,
    insert,
    numbered,
    reopen,
    state_at,
)
from craft_easy_jobd.ledger_rows import LEASE, SPEC, lease_of
from craft_easy_jobd.ledger_schema import CODES, DUE, LIVE, STATES, TIMED, move, state_is
from craft_easy_jobd.states import ACTIVE, WAITING, RunState
from craft_easy_jobd.turns import Turns
from craft_easy_jobs.definition import Isolation

_WAKE = move(RunState.QUEUED, "next_at = NULL", "next_at <= ?", among=TIMED)
_NEXT = (
    f"SELECT seq FROM runs WHERE {LIVE} AND state = {CODES[RunState.QUEUED]} AND isolation = ? "  # noqa: S608
    "ORDER BY priority DESC, turn, seq LIMIT ?"
)
_START = "token = token + 1, attempt = attempt + 1, started_at = coalesce(started_at, ?)"
_RETURNING = f" RETURNING -priority, turn, seq, {', '.join((*LEASE, *SPEC))}"
_CLAIM = move(RunState.RUNNING, _START, f"seq IN ({_NEXT})") + _RETURNING
_STOP = move(RunState.STOPPING, "cancel_requested = 1", "run_id = ?")
# A lease ends with its attempt: a waiting run is not put back a second time, though its token is still the last one.
_AGAIN = {
    state: move(
        state,
        "reason = ?, error = ?, next_at = ?, failures = failures + ?, interruptions = interruptions + ?, "
        "isolation = coalesce(?, isolation)",
        LEASED,
        among=ACTIVE,
    )
    for state in (RunState.QUEUED, RunState.RETRYING)
}
_encode_files = msgspec.msgpack.Encoder().encode
_LOG = LOG_ACTIVE + " AND token = ?"
_ABANDONED = (
    "SELECT run_id, parent_run_id, coalesce(step, tenant_id, run_id), token, attempt, interruptions, "  # noqa: S608
    f"on_interrupt, cancel_requested, started_at FROM runs "
    f"WHERE {LIVE} AND {state_is(*ACTIVE)} AND isolation != 'none' LIMIT ?"
)


def submit(
    db: sqlite3.Connection, now: float, turns: Turns, specs: Sequence[RunSpec], came_in: Slice | None
) -> list[Submitted]:
    return start(db, now, turns, specs, {}, came_in).submitted


def start(
    db: sqlite3.Connection,
    now: float,
    turns: Turns,
    specs: Sequence[RunSpec],
    room: Mapping[Isolation, int],
    came_in: Slice | None,
) -> Started:
    runs = numbered(specs, turns)
    first = _first(now, runs, room) if room and not _any_waits(db, now) else []
    added = insert(db, now, runs, frozenset(first))
    if added == len(specs):
        states = dict.fromkeys(first, RunState.RUNNING)
        submitted = [
            Submitted(spec.run_id, states.get(place) or state_at(now, spec), False) for place, spec in enumerate(specs)
        ]
    else:
        submitted = _tell_duplicates(db, [spec.run_id for spec in specs], added)
        first = [place for place in first if not submitted[place].duplicate]
    if came_in and added:
        files = [file for file, each in zip(came_in.files, submitted, strict=True) if not each.duplicate]
        db.execute("INSERT INTO slices VALUES (?, ?, ?)", (came_in.number, came_in.named, _encode_files(files)))
    for place in first:
        turns.served(specs[place].priority, runs[place][1])
    return Started(submitted, [Lease(specs[place].run_id, 1, 1, 0, 0, specs[place]) for place in first])


def _any_waits(db: sqlite3.Connection, now: float) -> bool:
    """A run waits for a slot, or may do so by now; of children to come their parent does."""
    counts, due = summarise(db)
    return counts[RunState.QUEUED] > 0 or (due is not None and due <= now)


def _first(now: float, runs: Sequence[tuple[RunSpec, int]], room: Mapping[Isolation, int]) -> list[int]:
    """The places of those that a claim would give out, in their turn."""
    left: dict[Lane, int] = dict(room.items())
    found = []
    for place in sorted(range(len(runs)), key=lambda place: (-runs[place][0].priority, runs[place][1], place)):
        spec = runs[place][0]
        if left.get(spec.isolation, 0) > 0 and state_at(now, spec) is RunState.QUEUED:
            left[spec.isolation] -= 1
            found.append(place)
    return found


def _tell_duplicates(db: sqlite3.Connection, run_ids: Sequence[str], added: int) -> list[Submitted]:
    """Which of the runs are the `added` newest ones; an id that comes twice in the batch is new the first time."""
    (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM runs").fetchone()
    seen: set[str] = set()
    answers = []
    for run_id in run_ids:
        seq, code = db.execute("SELECT seq, state FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        answers.append(Submitted(run_id, STATES[code], seq <= last - added or run_id in seen))
        seen.add(run_id)
    return answers


def claim(db: sqlite3.Connection, now: float, turns: Turns, n: int, isolation: Isolation) -> list[Lease]:
    db.execute(_WAKE, (now,))
    families.expand(db, now, turns)
    rows = db.execute(_CLAIM, (now, isolation, max(n, 0))).fetchall()
    for priority, turn, *_ in rows:
        turns.served(-priority, turn)
    # RETURNING promises no order; the first three columns are the order of the queue.
    return [lease_of(row[3:]) for row in sorted(rows)]


def log(db: sqlite3.Connection, chunks: Sequence[LogChunk]) -> None:
    db.executemany(_LOG, [(c.lines, c.warnings, c.entries, c.run_id, c.token) for c in chunks if c.lines])


def finish(
    db: sqlite3.Connection,
    now: float,
    turns: Turns,
    results: Sequence[tuple[Lease, Result]],
    then: Sequence[RunSpec],
) -> list[bool]:
    ended = [end(db, lease.run_id, lease.token, result) for lease, result in results]
    # Who lost the lease lost the right to go on as well: the new owner will submit the successors.
    if then and any(ended):
        add(db, now, then, turns)
    gone = [
        Gone.of(lease.spec, result.state, result.reason)
        for (lease, result), was_written in zip(results, ended, strict=True)
        if was_written
    ]
    families.advance_all(db, now, turns, gone)
    return ended


def retry(db: sqlite3.Connection, now: float, again: Sequence[Again]) -> list[bool]:
    return [_put_back(db, now, one) for one in again]


def _put_back(db: sqlite3.Connection, now: float, again: Again) -> bool:
    lease, reason, error, delay, interrupted, isolation = again
    state = RunState.QUEUED if delay is None else RunState.RETRYING
    next_at = None if delay is None else now + delay
    values = (reason, error, next_at, not interrupted, interrupted, isolation, lease.run_id, lease.token)
    return db.execute(_AGAIN[state], values).rowcount == 1


def cancel(db: sqlite3.Connection, now: float, turns: Turns, run_id: str) -> Cancelled | None:
    found = _Cancel([], [], [])
    if not _cancel(db, now, run_id, found):
        return None
    families.advance_all(db, now, turns, found.gone, also=found.parents)
    (code,) = db.execute("SELECT state FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    return Cancelled(STATES[code], found.stopping)


class _Cancel(NamedTuple):
    """What a cancel found: attempts to stop, runs that ended by it, and active parents.

    The parents are looked at once more in any case: a chain may be between two steps.
    """

    stopping: list[str]
    gone: list[Gone]
    parents: list[str]


def _cancel(db: sqlite3.Connection, now: float, run_id: str, found: _Cancel) -> bool:
    """Cancel a run and all below it. False: no such run."""
    row = db.execute(
        "SELECT state, token, attempt, isolation, parent_run_id, step, tenant_id FROM runs WHERE run_id = ?", (run_id,)
    ).fetchone()
    if row is None:
        return False
    code, token, attempt, isolation, parent, step, tenant_id = row
    state = STATES[code]
    if state in WAITING:
        end_waiting(db, run_id, token, failed("cancelled", "cancelled before it started", now, now, attempt))
        found.gone.append(Gone(parent, step or tenant_id or run_id, RunState.FAILED, "cancelled"))
    elif state in ACTIVE:
        if state is RunState.RUNNING:
            db.execute(_STOP, (run_id,))
        if isolation == "none":
            for child in families.live_children(db, run_id):
                _cancel(db, now, child, found)
            found.parents.append(run_id)
        else:
            found.stopping.append(run_id)
    return True


def rerun(db: sqlite3.Connection, now: float, turns: Turns, run_id: str) -> RunState | None:
    row = db.execute("SELECT state FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        return None
    if STATES[row[0]] is not RunState.FAILED:
        return STATES[row[0]]
    _reopen_failed(db, run_id)
    families.reopen_parents(db, run_id)
    return RunState.QUEUED


def _reopen_failed(db: sqlite3.Connection, run_id: str) -> None:
    for child in families.failed_children(db, run_id):
        _reopen_failed(db, child)
    reopen(db, run_id)


def let_go(db: sqlite3.Connection, named: Sequence[int], gone: Sequence[int]) -> None:
    db.executemany("UPDATE slices SET named = 1 WHERE number = ?", [(number,) for number in named])
    db.executemany("DELETE FROM slices WHERE number = ?", [(number,) for number in gone])


def mark_published(db: sqlite3.Connection, ends: Sequence[RunEnd]) -> None:
    db.executemany("DELETE FROM unpublished WHERE seq = ? AND token = ?", ends)


def reap(db: sqlite3.Connection, now: float, turns: Turns, budget: int, limit: int) -> int:
    """Settle up to `limit` runs that are active though nobody carries them out; returns how many."""
    rows = db.execute(_ABANDONED, (limit,)).fetchall()
    gone = []
    for run_id, parent, name, token, attempt, interruptions, on_interrupt, cancel_requested, started_at in rows:
        verdict = after_interruption(on_interrupt, interruptions + 1, budget, bool(cancel_requested))
        if verdict == "again":
            lease = (None, 0, 1, None, run_id, token)
            db.execute(_AGAIN[RunState.QUEUED], ("interrupted", None, *lease))
        else:
            error = f"the daemon died under attempt {attempt}, interruption {interruptions + 1} of this run"
            end(db, run_id, token, failed(verdict, error, started_at, now, attempt))
            gone.append(Gone(parent, name, RunState.FAILED, verdict))
    families.advance_all(db, now, turns, gone)
    return len(rows)


def summarise(db: sqlite3.Connection) -> tuple[dict[RunState, int], float | None]:
    """Runs by state, and when the earliest scheduled or retrying run may start."""
    counts = {STATES[code]: runs for code, runs in db.execute("SELECT state, runs FROM counts")}
    (next_due,) = db.execute(f"SELECT min(next_at) FROM runs WHERE {DUE}").fetchone()  # noqa: S608
    return counts, next_due
