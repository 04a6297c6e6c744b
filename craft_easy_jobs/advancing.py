"""STUB"""
from typing import Any, Literal, NamedTuple
StepState = Literal["waiting", "running", "completed", "failed", "skipped"]
class StepFacts(NamedTuple):
    state: StepState
    tries: int
def advance(steps: Any, facts: Any, *, stopping: bool = False) -> Any: ...
def chain_table(rows: Any) -> Any: ...
def fan_out_table(rows: Any) -> Any:
    return {"tenants": {r[0]: {"status": r[1], "reason": r[2], "run_id": r[3], "duration_seconds": r[4]} for r in rows}}
def child_run_id(parent: str, part: str) -> str:
    return f"{parent}.{part}"
