"""How records become rows and rows become records: by place, for a name looked up per column costs more than SQLite."""

from collections.abc import Sequence
from typing import Any

from craft_easy_jobd.ledger import Lease, Result, Run, RunSpec
from craft_easy_jobd.ledger_schema import LIVE, STATES
from craft_easy_jobd.states import FINAL

# The columns of a spec have the names of its fields, those of a result too but for `attempt`.
SPEC = RunSpec.__struct_fields__
LEASE = ("token", "attempt", "failures", "interruptions")
RESULT = tuple("attempt" if name == "attempts" else name for name in Result._fields if name != "state")

_OWN = ("reason", "attempt", "failures", "interruptions", "token", "cancel_requested", "requested_at", "next_at")
_LAST_CHUNK = "(SELECT {} FROM log WHERE log.seq = runs.seq ORDER BY upto DESC LIMIT 1)"
_LOGGED = (f"coalesce({_LAST_CHUNK.format('warnings')}, 0)", f"coalesce({_LAST_CHUNK.format('upto')}, 0)")
_PUBLISHED = f"(NOT {LIVE} AND NOT EXISTS (SELECT 1 FROM unpublished WHERE unpublished.seq = runs.seq))"  # noqa: S608
_ROW = ("seq", "state", *SPEC, *RESULT, *_OWN, "started_at")
_SPEC_AT = slice(2, 2 + len(SPEC))
_RESULT_AT = slice(_SPEC_AT.stop, _SPEC_AT.stop + len(RESULT))
_OWN_AT = slice(_RESULT_AT.stop, None)
_VALIDATE_AT = SPEC.index("validate")
_CANCEL_REQUESTED_AT = Run.__struct_fields__.index("cancel_requested")

_COLUMNS = ", ".join(f"runs.{name}" for name in _ROW)
SELECT_RUNS = f"SELECT {', '.join((_COLUMNS, *_LOGGED, _PUBLISHED))} FROM runs"  # noqa: S608
# The log of these is read in any case, so its totals are too. The parameter is a JSON array of their numbers.
SELECT_ENDED = f"SELECT {_COLUMNS} FROM runs WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq"  # noqa: S608


def spec_of(values: Sequence[Any]) -> RunSpec:
    """From the values of the SPEC columns."""
    fields = list(values)
    fields[_VALIDATE_AT] = bool(fields[_VALIDATE_AT])
    return RunSpec(*fields)


def lease_of(values: Sequence[Any]) -> Lease:
    """From the values of the LEASE and SPEC columns."""
    token, attempt, failures, interruptions, *rest = values
    spec = spec_of(rest)
    return Lease(spec.run_id, token, attempt, failures, interruptions, spec)


def run_of(row: Sequence[Any]) -> Run:
    """From a row of SELECT_RUNS."""
    *values, warnings, log_count, published = row
    return ended_run(values, warnings, log_count, published=bool(published))


def ended_run(row: Sequence[Any], warnings: int, log_count: int, *, published: bool = False) -> Run:
    """From a row of SELECT_ENDED, and what its log says."""
    state = STATES[row[1]]
    result = Result(state, *row[_RESULT_AT]) if state in FINAL else None
    fields = [row[0], spec_of(row[_SPEC_AT]), state, *row[_OWN_AT], result, warnings, log_count, published]
    fields[_CANCEL_REQUESTED_AT] = bool(fields[_CANCEL_REQUESTED_AT])
    return Run(*fields)
