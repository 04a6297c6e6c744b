"""How records become rows and rows become records."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from craft_easy_jobd.ledger import Lease, Result, Run, RunSpec
from craft_easy_jobd.ledger_schema import LIVE, STATES
from craft_easy_jobd.states import FINAL, RunState

# The columns of a spec have the names of its fields, those of a result too but for `attempt`.
SPEC = RunSpec.__struct_fields__
LEASE = ("token", "attempt", "failures", "interruptions")
RESULT = tuple("attempt" if name == "attempts" else name for name in Result._fields if name != "state")

_OWN = ("state", "reason", *LEASE, "cancel_requested", "requested_at", "next_at", "started_at")
_LAST_CHUNK = "(SELECT {} FROM log WHERE log.seq = runs.seq ORDER BY upto DESC LIMIT 1)"
_COLUMNS = (
    "runs.seq AS seq",
    *dict.fromkeys((*SPEC, *_OWN, *RESULT)),
    f"{_LAST_CHUNK.format('upto')} AS log_count",
    f"{_LAST_CHUNK.format('warnings')} AS warnings",
    f"(NOT {LIVE} AND runs.seq NOT IN (SELECT seq FROM unpublished)) AS published",  # noqa: S608
)
SELECT_RUNS = f"SELECT {', '.join(_COLUMNS)} FROM runs"  # noqa: S608


def spec_of(values: Sequence[Any]) -> RunSpec:
    """From the values of the SPEC columns."""
    fields = dict(zip(SPEC, values, strict=True))
    fields["validate"] = bool(fields["validate"])
    return RunSpec(**fields)


def lease_of(values: Sequence[Any]) -> Lease:
    """From the values of the LEASE and SPEC columns."""
    token, attempt, failures, interruptions, *rest = values
    spec = spec_of(rest)
    return Lease(spec.run_id, token, attempt, failures, interruptions, spec)


def run_of(row: sqlite3.Row) -> Run:
    """From a row of SELECT_RUNS."""
    state = STATES[row["state"]]
    return Run(
        seq=row["seq"],
        spec=spec_of([row[name] for name in SPEC]),
        state=state,
        reason=row["reason"],
        attempt=row["attempt"],
        failures=row["failures"],
        interruptions=row["interruptions"],
        token=row["token"],
        cancel_requested=bool(row["cancel_requested"]),
        requested_at=row["requested_at"],
        next_at=row["next_at"],
        started_at=row["started_at"],
        result=_result_of(state, row),
        warnings=row["warnings"] or 0,
        log_count=row["log_count"] or 0,
        published=bool(row["published"]),
    )


def _result_of(state: RunState, row: sqlite3.Row) -> Result | None:
    return Result(state, *(row[name] for name in RESULT)) if state in FINAL else None
