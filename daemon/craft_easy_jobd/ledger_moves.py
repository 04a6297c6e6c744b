"""The single steps that change the ledger: a run is added, ends, is put back. Operations are made of these."""

import sqlite3
from collections.abc import Container, Sequence

from msgspec.structs import astuple

from craft_easy_jobd.ledger import Result, RunSpec
from craft_easy_jobd.ledger_rows import RESULT, SPEC
from craft_easy_jobd.ledger_schema import CODES, LIVE, move, state_is
from craft_easy_jobd.states import ACTIVE, FINAL, WAITING, RunState
from craft_easy_jobd.turns import Turns

# Every value is bound; what is put into the text are our own column names and numbers.
_ADD = (
    f"INSERT INTO runs ({', '.join(SPEC)}, requested_at, state, next_at, turn, token, attempt, started_at) "  # noqa: S608
    f"VALUES ({', '.join('?' * len(SPEC))}, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id) DO NOTHING"
)
LEASED = "run_id = ? AND token = ?"
# A run began with its first attempt, whichever attempt ends it.
_SOURCES = {**dict.fromkeys(RESULT, "?"), "started_at": "coalesce(started_at, ?)"}
_RESULT_IS = ", ".join(("next_at = NULL", *(f"{name} = {source}" for name, source in _SOURCES.items())))
_END_ACTIVE = {state: move(state, _RESULT_IS, LEASED, among=ACTIVE) for state in FINAL}
_END_WAITING = move(RunState.FAILED, _RESULT_IS, LEASED, among=WAITING)
_REOPEN = move(
    RunState.QUEUED,
    "failures = 0, interruptions = 0, cancel_requested = 0, reason = NULL, error = NULL, result = NULL, "
    "completed_at = NULL",
    "run_id = ?",
    among=FINAL,
)

_TOTAL = "coalesce((SELECT {0} FROM log WHERE log.seq = runs.seq ORDER BY upto DESC LIMIT 1), 0) + ?"
LOG_ACTIVE = (
    f"INSERT INTO log SELECT seq, {_TOTAL.format('upto')}, {_TOTAL.format('warnings')}, ? FROM runs "  # noqa: S608
    f"WHERE {state_is(*ACTIVE)} AND run_id = ?"
)


def add(db: sqlite3.Connection, now: float, specs: Sequence[RunSpec], turns: Turns) -> int:
    """Add runs as queued or scheduled; returns how many were not there before."""
    return insert(db, now, numbered(specs, turns))


def numbered(specs: Sequence[RunSpec], turns: Turns) -> list[tuple[RunSpec, int]]:
    """The runs with the turns that they get."""
    return [(spec, turns.next(spec.priority, spec.tenant_id)) for spec in specs]


def insert(
    db: sqlite3.Connection, now: float, runs: Sequence[tuple[RunSpec, int]], started: Container[int] = ()
) -> int:
    """Add runs with their turns as queued or scheduled, those whose places are in `started` as running."""
    rows = []
    for place, (spec, turn) in enumerate(runs):
        state = state_at(now, spec)
        due = spec.not_before if state is RunState.SCHEDULED else None
        fate = (
            (CODES[RunState.RUNNING], None, turn, 1, 1, now)
            if place in started
            else (CODES[state], due, turn, 0, 0, None)
        )
        rows.append((*astuple(spec), now, *fate))
    return db.executemany(_ADD, rows).rowcount if rows else 0


def state_at(now: float, spec: RunSpec) -> RunState:
    return RunState.QUEUED if spec.not_before is None or spec.not_before <= now else RunState.SCHEDULED


def end(db: sqlite3.Connection, run_id: str, token: int, result: Result) -> bool:
    """End an active run; False: this token is not the last one, or it is not active."""
    return db.execute(_END_ACTIVE[result.state], (*result[1:], run_id, token)).rowcount == 1


def end_waiting(db: sqlite3.Connection, run_id: str, token: int, result: Result) -> bool:
    """As `end`, of a run that waits; it can only fail."""
    return db.execute(_END_WAITING, (*result[1:], run_id, token)).rowcount == 1


def reopen(db: sqlite3.Connection, run_id: str) -> bool:
    """Put a failed run back to queued, as if it had never been tried."""
    return db.execute(_REOPEN, (run_id,)).rowcount == 1


def waiting_turns(db: sqlite3.Connection) -> list[tuple[int, str | None, int, int, int | None]]:
    """Of each (priority, tenant) with runs that have not ended: the first turn, the last, the last one that began."""
    return db.execute(
        "SELECT priority, tenant_id, min(turn), max(turn), max(turn) FILTER (WHERE attempt > 0) "  # noqa: S608
        f"FROM runs WHERE {LIVE} GROUP BY priority, tenant_id"
    ).fetchall()


def failed(reason: str, error: str, started_at: float, completed_at: float, attempts: int) -> Result:
    return Result(RunState.FAILED, reason, b"null", error, started_at, completed_at, attempts)
