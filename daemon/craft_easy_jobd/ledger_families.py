"""Runs with children: a fan-out has one for each tenant, a chain one for each step that was started.

Everything here is done in the transaction that makes it due: a claim gives a queued parent its children, and the end of
a child advances its parent. So a crash neither skips nor repeats a child; and as their ids are derived, to do it again
when an operator retries the parent adds what is missing and nothing else.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from craft_easy_jobd.ledger import ChainPlan, Result, RunSpec, decode_chain, decode_fan_out
from craft_easy_jobd.ledger_moves import LOG_ACTIVE, add, end, end_waiting, failed, reopen
from craft_easy_jobd.ledger_rows import SPEC, spec_of
from craft_easy_jobd.ledger_schema import LIVE, STATES, move, state_is
from craft_easy_jobd.states import ACTIVE, FINAL, WAITING, RunState
from craft_easy_jobd.turns import Turns
from craft_easy_jobs.families import (
    Advance,
    Row,
    StepFacts,
    StepState,
    advance,
    chain_table,
    child_run_id,
    fan_out_table,
)
from craft_easy_jobs.model import timestamp

_QUEUED = (
    f"SELECT run_id FROM runs WHERE {LIVE} AND {state_is(RunState.QUEUED)} AND isolation = 'none' "  # noqa: S608
    "ORDER BY priority DESC, turn, seq LIMIT 100"
)
_BEGIN = move(
    RunState.RUNNING,
    "token = token + 1, attempt = attempt + 1, started_at = coalesce(started_at, ?)",
    "run_id = ?",
)
_PARENT = f"SELECT token, attempt, state, cancel_requested, started_at, {', '.join(SPEC)} FROM runs WHERE run_id = ?"  # noqa: S608
_CHILDREN = (
    "SELECT tenant_id, step, state, reason, run_id, token, attempt, round(completed_at - started_at, 6) AS seconds, "
    "error, result FROM runs WHERE parent_run_id = ? ORDER BY seq"
)
# What may run again of a parent. An earlier try of a step is over, whatever became of the later ones.
_FAILED_CHILDREN = (
    f"SELECT run_id FROM runs AS child WHERE parent_run_id = ? AND {state_is(RunState.FAILED)} "  # noqa: S608
    "AND NOT EXISTS (SELECT 1 FROM runs AS later WHERE later.parent_run_id = child.parent_run_id "
    "AND later.step = child.step AND later.seq > child.seq)"
)
# The reason of a child that was to start when its chain was stopped by another one; it is no try of its step.
_WITHDRAWN = "upstream_failed"
# So many failed ones are named in the error of a fan-out; the table in its result has them all.
_NAMED = 5


class Gone(NamedTuple):
    """A run that ended, as its parent's log tells of it; `name`: its tenant, or its step."""

    parent: str | None
    name: str
    state: RunState
    reason: str | None

    @classmethod
    def of(cls, spec: RunSpec, state: RunState, reason: str | None) -> "Gone":
        return cls(spec.parent_run_id, spec.step or spec.tenant_id or spec.run_id, state, reason)


class _Counts(NamedTuple):
    live: int
    total: int


class _Parent(NamedTuple):
    token: int
    attempt: int
    state: RunState
    cancel_requested: bool
    started_at: float
    spec: RunSpec


class _Child(NamedTuple):
    tenant_id: str | None
    step: str | None
    state: RunState
    reason: str | None
    run_id: str
    token: int
    attempt: int
    seconds: float | None
    error: str | None
    result: bytes


def expand(db: sqlite3.Connection, now: float, turns: Turns) -> None:
    """Begin parents that wait in the queue: their children wait there instead."""
    # A chain's first step may be a parent itself, and waits there by the end of a round.
    while begun := [run_id for (run_id,) in db.execute(_QUEUED).fetchall()]:
        _begin(db, now, turns, begun)


def _begin(db: sqlite3.Connection, now: float, turns: Turns, run_ids: Sequence[str]) -> None:
    for run_id in run_ids:
        db.execute(_BEGIN, (now, run_id))
        parent = _parent(db, run_id)
        if parent is not None and parent.spec.kind == "fan_out":
            _add_children(db, now, turns, run_id, _children_of(parent.spec))
            _count_live(db, run_id)
    advance_all(db, now, turns, (), also=run_ids)


def advance_all(
    db: sqlite3.Connection, now: float, turns: Turns, gone: Iterable[Gone], *, also: Iterable[str] = ()
) -> None:
    """Do what follows from the end of children, for their parents and those above them; look at `also` in any case."""
    due: dict[str, list[Gone]] = {run_id: [] for run_id in also}
    for child in gone:
        if child.parent is not None:
            due.setdefault(child.parent, []).append(child)
    while due:
        run_id, children = due.popitem()
        counts = _count_down(db, run_id, len(children))
        _tell(db, now, run_id, children, counts)
        if counts and counts.live > 0:
            continue
        parent = _parent(db, run_id)
        if parent is None or parent.state not in ACTIVE:
            continue
        result = _advance(db, now, turns, parent)
        if result is not None and end(db, run_id, parent.token, result) and parent.spec.parent_run_id:
            gone_too = Gone.of(parent.spec, result.state, result.reason)
            due.setdefault(parent.spec.parent_run_id, []).append(gone_too)


def live_children(db: sqlite3.Connection, run_id: str) -> list[str]:
    sql = f"SELECT run_id FROM runs WHERE parent_run_id = ? AND {LIVE}"  # noqa: S608
    return [child for (child,) in db.execute(sql, (run_id,))]


def failed_children(db: sqlite3.Connection, run_id: str) -> list[str]:
    """Of a step that was tried several times, the last one."""
    return [child for (child,) in db.execute(_FAILED_CHILDREN, (run_id,))]


def reopen_parents(db: sqlite3.Connection, run_id: str) -> None:
    """A run was put back: those above it are not at their end any more."""
    row = db.execute("SELECT parent_run_id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    while row and row[0]:
        (parent,) = row
        if not reopen(db, parent) and db.execute("SELECT 1 FROM fan_outs WHERE run_id = ?", (parent,)).fetchone():
            _count_live(db, parent)
        row = db.execute("SELECT parent_run_id FROM runs WHERE run_id = ?", (parent,)).fetchone()


def _parent(db: sqlite3.Connection, run_id: str) -> _Parent | None:
    row = db.execute(_PARENT, (run_id,)).fetchone()
    if row is None:
        return None
    token, attempt, code, cancel_requested, started_at, *spec = row
    return _Parent(token, attempt, STATES[code], bool(cancel_requested), started_at, spec_of(spec))


def _children_of(spec: RunSpec) -> list[RunSpec]:
    plan = decode_fan_out(spec.plan or b"")
    return [
        _child(spec, plan.child, part=tenant_id, tenant_id=tenant_id, upstream=spec.upstream)
        for tenant_id in plan.tenant_ids
    ]


def _add_children(db: sqlite3.Connection, now: float, turns: Turns, parent: str, specs: Sequence[RunSpec]) -> None:
    """Add those that are not there yet; one whose id a stranger has, for anybody may choose it, gets another."""
    if add(db, now, specs, turns) == len(specs):
        return
    owner = "SELECT parent_run_id FROM runs WHERE run_id = ?"
    taken = [spec for spec in specs if db.execute(owner, (spec.run_id,)).fetchone()[0] != parent]
    add(db, now, [replace(spec, run_id=child_run_id(parent, f"{spec.run_id} taken")) for spec in taken], turns)


def _child(parent: RunSpec, template: RunSpec, *, part: str, **facts: Any) -> RunSpec:
    return replace(
        template,
        run_id=child_run_id(parent.run_id, part),
        parent_run_id=parent.run_id,
        priority=parent.priority,
        requested_by=parent.requested_by,
        **facts,
    )


def _count_live(db: sqlite3.Connection, run_id: str) -> None:
    counts = f"SELECT ?1, count(*) FILTER (WHERE {LIVE}), count(*) FROM runs WHERE parent_run_id = ?1"  # noqa: S608
    db.execute(f"INSERT OR REPLACE INTO fan_outs {counts}", (run_id,))


def _count_down(db: sqlite3.Connection, run_id: str, ended: int) -> _Counts | None:
    """Of a fan-out; while some of its children have not ended, nothing else needs to be read of it."""
    row = db.execute(
        "UPDATE fan_outs SET live = live - ? WHERE run_id = ? RETURNING live, total", (ended, run_id)
    ).fetchone()
    return row and _Counts(*row)


def _tell(db: sqlite3.Connection, now: float, run_id: str, children: Sequence[Gone], counts: _Counts | None) -> None:
    """Write into the parent's log which children ended; of a fan-out with how far it is."""
    if not children:
        return
    percentage = (counts.total - counts.live) * 100 // counts.total if counts else None
    moment = timestamp(now)
    entries = [
        {
            "timestamp": moment,
            "level": "progress" if child.state is RunState.COMPLETED else "warning",
            "message": f"{child.name} {child.state}" + (f" ({child.reason})" if child.reason else ""),
            "percentage": percentage if child.state is RunState.COMPLETED else None,
        }
        for child in children
    ]
    warnings = sum(child.state is not RunState.COMPLETED for child in children)
    db.execute(LOG_ACTIVE, (len(entries), warnings, msgspec.json.encode(entries)[1:-1], run_id))


def _advance(db: sqlite3.Connection, now: float, turns: Turns, parent: _Parent) -> Result | None:
    """The parent's result if it is at its end."""
    rows = db.execute(_CHILDREN, (parent.spec.run_id,)).fetchall()
    children = [_Child(tenant_id, step, STATES[code], *rest) for tenant_id, step, code, *rest in rows]
    if parent.spec.kind == "fan_out":
        return _fan_out_result(now, parent, children)
    return _advance_chain(db, now, turns, parent, children)


def _fan_out_result(now: float, parent: _Parent, children: Sequence[_Child]) -> Result:
    table = fan_out_table(
        Row(child.tenant_id or "", str(child.state), child.reason, child.run_id, child.seconds) for child in children
    )
    failed = [child.tenant_id or "" for child in children if child.state is not RunState.COMPLETED]
    named = ", ".join(failed[:_NAMED]) + (", ..." if len(failed) > _NAMED else "")
    error = f"{len(failed)} of {len(children)} tenants failed: {named}" if failed else None
    return _result(now, parent, table, "tenants_failed", error)


def _advance_chain(
    db: sqlite3.Connection, now: float, turns: Turns, parent: _Parent, children: Sequence[_Child]
) -> Result | None:
    plan = decode_chain(parent.spec.plan or b"")
    tried = [child for child in children if child.reason != _WITHDRAWN]
    last = _last_of_each(tried)
    tries = {job: sum(child.step == job for child in tried) for job in last}
    facts = {job: StepFacts(_step_state(child), tries[job]) for job, child in last.items()}
    moves = advance([planned.step for planned in plan.steps], facts, stopping=parent.cancel_requested)
    gone = [last[job] for job in moves.withdraw]
    _withdraw(db, now, gone)
    last = _last_of_each(child for child in tried if child not in gone)
    specs = _next_runs(now, parent, plan, moves, children)
    _add_children(db, now, turns, parent.spec.run_id, specs)
    return _chain_result(now, parent, plan, last) if moves.ended and not specs else None


def _withdraw(db: sqlite3.Connection, now: float, children: Iterable[_Child]) -> None:
    for child in children:
        result = failed(_WITHDRAWN, "another step stopped the chain before this run started", now, now, 0)
        end_waiting(db, child.run_id, child.token, result)


def _next_runs(
    now: float, parent: _Parent, plan: ChainPlan, moves: Advance, children: Sequence[_Child]
) -> list[RunSpec]:
    planned = {each.step.job: each for each in plan.steps}
    earlier = Counter(child.step for child in children)
    done = {child.step or "": child.result for child in children if child.state is RunState.COMPLETED}
    upstream = msgspec.json.encode({job: msgspec.Raw(result) for job, result in done.items()})

    def run(job: str, **facts: Any) -> RunSpec:
        # A space keeps it apart from the step whose name is the same but for it.
        part = f"{job} {earlier[job] + 1}" if earlier[job] else job
        return _child(parent.spec, planned[job].run, part=part, step=job, upstream=upstream, **facts)

    again = [run(job, not_before=now + planned[job].step.retry_delay_seconds) for job in moves.again]
    return [*map(run, moves.start), *again]


def _last_of_each(children: Iterable[_Child]) -> dict[str, _Child]:
    """The last try of each step."""
    return {child.step or "": child for child in children}


def _step_state(child: _Child) -> StepState:
    if child.state not in FINAL:
        return "due" if child.state in WAITING and child.attempt == 0 else "running"
    return "completed" if child.state is RunState.COMPLETED else "failed"


def _chain_result(now: float, parent: _Parent, plan: ChainPlan, last: Mapping[str, _Child]) -> Result:
    rows: list[Row] = []
    problem = None
    for planned in plan.steps:
        job = planned.step.job
        child = last.get(job)
        if child is None:
            rows.append(Row(job, "skipped", "upstream_failed", None, None))
            continue
        rows.append(Row(job, str(child.state), child.reason, child.run_id, child.seconds))
        if child.state is RunState.FAILED and planned.step.on_failure != "continue":
            problem = problem or f"step {job!r} failed ({child.reason}): {child.error}"
    if problem is None and any(row.status == "skipped" for row in rows):
        problem = "steps were skipped"
    return _result(now, parent, chain_table(rows), "step_failed", problem)


def _result(now: float, parent: _Parent, table: Any, reason: str, error: str | None) -> Result:
    if parent.cancel_requested:
        reason = "cancelled" if error else "stopped"
    state = RunState.FAILED if error else RunState.COMPLETED
    return Result(
        state,
        reason if error or parent.cancel_requested else None,
        msgspec.json.encode(table),
        error,
        parent.started_at,
        now,
        parent.attempt,
    )
