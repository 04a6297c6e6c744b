"""All that changes the ledger: one function an operation, each called within a transaction of the writing thread."""

import sqlite3
from collections.abc import Sequence

from msgspec.structs import astuple

from craft_easy_jobd.interruptions import after_interruption
from craft_easy_jobd.ledger import Again, Lease, LogChunk, Result, RunSpec, Submitted
from craft_easy_jobd.ledger_rows import LEASE, RESULT, SPEC, lease_of
from craft_easy_jobd.ledger_schema import CODES, DUE, LIVE, STATES, TIMED, move, state_is
from craft_easy_jobd.states import ACTIVE, FINAL, WAITING, RunState
from craft_easy_jobs.definition import Isolation

# Every value is bound; what is put into the text are our own column names and numbers.
_ADD = (
    f"INSERT INTO runs ({', '.join(SPEC)}, requested_at, state, next_at) "  # noqa: S608
    f"VALUES ({', '.join('?' * len(SPEC))}, ?, ?, ?) ON CONFLICT (run_id) DO NOTHING"
)
_LEASED = "run_id = ? AND token = ?"
_WAKE = move(RunState.QUEUED, "next_at = NULL", "next_at <= ?", among=TIMED)
_NEXT = (
    f"SELECT seq FROM runs WHERE {LIVE} AND {state_is(RunState.QUEUED)} AND isolation = ? "  # noqa: S608
    "ORDER BY priority DESC, seq LIMIT ?"
)
_START = "token = token + 1, attempt = attempt + 1, started_at = coalesce(started_at, ?)"
_RETURNING = f" RETURNING -priority, seq, {', '.join((*LEASE, *SPEC))}"
_CLAIM = move(RunState.RUNNING, _START, f"seq IN ({_NEXT})") + _RETURNING
# A run began with its first attempt, whichever attempt ends it.
_SOURCES = {**dict.fromkeys(RESULT, "?"), "started_at": "coalesce(started_at, ?)"}
_RESULT_IS = ", ".join(("next_at = NULL", *(f"{name} = {source}" for name, source in _SOURCES.items())))
_END_ACTIVE = {state: move(state, _RESULT_IS, _LEASED, among=ACTIVE) for state in FINAL}
_END_WAITING = move(RunState.FAILED, _RESULT_IS, _LEASED, among=WAITING)
_STOP = move(RunState.STOPPING, "cancel_requested = 1", "run_id = ?")
# A lease ends with its attempt: a waiting run is not put back a second time, though its token is still the last one.
_AGAIN = {
    state: move(
        state,
        "reason = ?, error = ?, next_at = ?, failures = failures + ?, interruptions = interruptions + ?, "
        "isolation = coalesce(?, isolation)",
        _LEASED,
        among=ACTIVE,
    )
    for state in (RunState.QUEUED, RunState.RETRYING)
}
_TOTAL = "coalesce((SELECT {0} FROM log WHERE log.seq = runs.seq ORDER BY upto DESC LIMIT 1), 0) + ?"
_LOG = (
    f"INSERT INTO log SELECT seq, {_TOTAL.format('upto')}, {_TOTAL.format('warnings')}, ? FROM runs "  # noqa: S608
    f"WHERE {_LEASED} AND {state_is(*ACTIVE)}"
)
_ABANDONED = (
    "SELECT run_id, token, attempt, interruptions, on_interrupt, cancel_requested, started_at "  # noqa: S608
    f"FROM runs WHERE {LIVE} AND {state_is(*ACTIVE)} LIMIT ?"
)


def submit(db: sqlite3.Connection, now: float, specs: Sequence[RunSpec]) -> list[Submitted]:
    states = [_state_at(now, spec) for spec in specs]
    rows = [
        (*astuple(spec), now, CODES[state], spec.not_before if state is RunState.SCHEDULED else None)
        for spec, state in zip(specs, states, strict=True)
    ]
    added = db.executemany(_ADD, rows).rowcount if rows else 0
    if added == len(specs):
        return [Submitted(spec.run_id, state, False) for spec, state in zip(specs, states, strict=True)]
    return _tell_duplicates(db, [spec.run_id for spec in specs], added)


def _state_at(now: float, spec: RunSpec) -> RunState:
    return RunState.QUEUED if spec.not_before is None or spec.not_before <= now else RunState.SCHEDULED


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


def claim(db: sqlite3.Connection, now: float, n: int, isolation: Isolation) -> list[Lease]:
    db.execute(_WAKE, (now,))
    rows = db.execute(_CLAIM, (now, isolation, max(n, 0))).fetchall()
    # RETURNING promises no order; the first two columns are the order of the queue.
    return [lease_of(row[2:]) for row in sorted(rows)]


def log(db: sqlite3.Connection, chunks: Sequence[LogChunk]) -> None:
    db.executemany(_LOG, [(c.lines, c.warnings, c.entries, c.run_id, c.token) for c in chunks if c.lines])


def finish(
    db: sqlite3.Connection, now: float, results: Sequence[tuple[Lease, Result]], then: Sequence[RunSpec]
) -> list[bool]:
    ended = [_end(db, _END_ACTIVE[result.state], result, lease.run_id, lease.token) for lease, result in results]
    # Who lost the lease lost the right to go on as well: the new owner will submit the successors.
    if then and any(ended):
        submit(db, now, then)
    return ended


def _end(db: sqlite3.Connection, sql: str, result: Result, run_id: str, token: int) -> bool:
    return db.execute(sql, (*result[1:], run_id, token)).rowcount == 1


def retry(db: sqlite3.Connection, now: float, again: Sequence[Again]) -> list[bool]:
    return [_put_back(db, now, one) for one in again]


def _put_back(db: sqlite3.Connection, now: float, again: Again) -> bool:
    lease, reason, error, delay, interrupted, isolation = again
    state = RunState.QUEUED if delay is None else RunState.RETRYING
    next_at = None if delay is None else now + delay
    values = (reason, error, next_at, not interrupted, interrupted, isolation, lease.run_id, lease.token)
    return db.execute(_AGAIN[state], values).rowcount == 1


def cancel(db: sqlite3.Connection, now: float, run_id: str) -> RunState | None:
    row = db.execute("SELECT state, token, attempt FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        return None
    code, token, attempt = row
    state = STATES[code]
    if state in WAITING:
        _end(db, _END_WAITING, _failed("cancelled", "cancelled before it started", now, now, attempt), run_id, token)
        return RunState.FAILED
    if state is RunState.RUNNING:
        db.execute(_STOP, (run_id,))
        return RunState.STOPPING
    return state


def mark_published(db: sqlite3.Connection, seqs: Sequence[int]) -> None:
    db.executemany("DELETE FROM unpublished WHERE seq = ?", [(seq,) for seq in seqs])


def reap(db: sqlite3.Connection, now: float, budget: int, limit: int) -> int:
    """Settle up to `limit` runs that are active though nobody carries them out; returns how many."""
    rows = db.execute(_ABANDONED, (limit,)).fetchall()
    for run_id, token, attempt, interruptions, on_interrupt, cancel_requested, started_at in rows:
        verdict = after_interruption(on_interrupt, interruptions + 1, budget, bool(cancel_requested))
        if verdict == "again":
            lease = (None, 0, 1, None, run_id, token)
            db.execute(_AGAIN[RunState.QUEUED], ("interrupted", None, *lease))
        else:
            error = f"the daemon died under attempt {attempt}, interruption {interruptions + 1} of this run"
            _end(db, _END_ACTIVE[RunState.FAILED], _failed(verdict, error, started_at, now, attempt), run_id, token)
    return len(rows)


def _failed(reason: str, error: str, started_at: float, completed_at: float, attempts: int) -> Result:
    return Result(RunState.FAILED, reason, b"null", error, started_at, completed_at, attempts)


def summarise(db: sqlite3.Connection) -> tuple[dict[RunState, int], float | None]:
    """Runs by state, and when the earliest scheduled or retrying run may start."""
    counts = {STATES[code]: runs for code, runs in db.execute("SELECT state, runs FROM counts")}
    (next_due,) = db.execute(f"SELECT min(next_at) FROM runs WHERE {DUE}").fetchone()  # noqa: S608
    return counts, next_due
