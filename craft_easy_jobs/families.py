"""Runs with children, as pure decisions: a fan-out has a child per tenant, a chain one per step."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from craft_easy_jobs.chaining import ChainStep

StepState = Literal["waiting", "due", "running", "completed", "failed", "skipped"]

MAX_RUN_ID_LENGTH = 128
_HASH_DIGITS = 16
# No dot: `run.a.b` is always the child b of the child a of run.
_PLAIN_PART = re.compile(r"[A-Za-z0-9_-]+")
_LIKE_A_HASH = re.compile(rf"[0-9a-f]{{{_HASH_DIGITS}}}")


class StepFacts(NamedTuple):
    """Where a step is. `due`: it was told to start, and its run waits for its time or a slot.

    `tries`: how often it was told to start so far.
    """

    state: StepState
    tries: int


class Advance(NamedTuple):
    """What is to be done with a chain now.

    `start`, and `again`, failed steps to run once more after their `retry_delay_seconds`: from now on these are due, or
    running. `withdraw`: due ones that are not to begin; they are what `withdrawn` says.
    """

    start: list[str]
    again: list[str]
    withdraw: list[str]
    skip: list[str]
    ended: Literal["completed", "failed"] | None


class Row(NamedTuple):
    """A child as its parent's result shows it; `name`: its tenant, or the job of its step."""

    name: str
    status: str
    reason: str | None
    run_id: str | None
    duration_seconds: float | None


_NOT_STARTED = StepFacts("waiting", 0)


def advance(steps: Sequence[ChainStep], facts: Mapping[str, StepFacts], *, stopping: bool = False) -> Advance:
    """The next moves of a chain.

    A step starts when all that it depends on have completed, or failed with `continue`. Any other failure that is not
    retried, and a stop, let what runs finish and start nothing more.

    Args:
        facts: by job name; a step that is missing waits.
    """
    known = {step.job: facts.get(step.job, _NOT_STARTED) for step in steps}
    waiting = [step for step in steps if known[step.job].state == "waiting"]
    failed = [step for step in steps if known[step.job].state == "failed"]
    due = [step.job for step in steps if known[step.job].state == "due"]
    halted = stopping or any(_halts(step, known[step.job]) for step in steps)
    again = [] if halted else [step.job for step in failed if _may_repeat(step, known[step.job])]
    passed = {step.job for step in failed if step.on_failure == "continue"}
    passed |= {job for job, fact in known.items() if fact.state == "completed"}
    start = [] if halted else [step.job for step in waiting if passed.issuperset(step.depends_on)]
    withdraw = due if halted else []
    busy = start or again or due != withdraw or any(fact.state == "running" for fact in known.values())
    ended: Literal["completed", "failed"] = "failed" if halted else "completed"
    return Advance(start, again, withdraw, [step.job for step in waiting] if halted else [], None if busy else ended)


def withdrawn(fact: StepFacts) -> StepFacts:
    """Where a due step is when it is not to begin: where its last try left it."""
    return StepFacts("failed" if fact.tries > 1 else "skipped", fact.tries - 1)


def child_run_id(parent_run_id: str, part: str) -> str:
    """The id of a run's child, the same each time: `RUN.PART`, or with a hash for a part that an id cannot hold."""
    plain = f"{parent_run_id}.{part}"
    # A part that looks like a hash gets one itself, so that it is never taken for another part's.
    if len(plain) <= MAX_RUN_ID_LENGTH and _PLAIN_PART.fullmatch(part) and not _LIKE_A_HASH.fullmatch(part):
        return plain
    # Of the whole, since long parents are cut.
    digest = sha256(f"{parent_run_id}\0{part}".encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    return f"{parent_run_id[: MAX_RUN_ID_LENGTH - _HASH_DIGITS - 1]}.{digest}"


def fan_out_table(rows: Iterable[tuple[str, str, str | None, str | None, float | None]]) -> dict[str, Any]:
    """The result of a fan-out: `counts` of children by status, and a row for each tenant."""
    tenants = _by_name(rows)
    statuses = Counter(row["status"] for row in tenants.values())
    return {"counts": {"completed": 0, "failed": 0, **statuses}, "tenants": tenants}


def chain_table(rows: Iterable[tuple[str, str, str | None, str | None, float | None]]) -> dict[str, Any]:
    """The result of a chain: a row for each step; one that never started is `skipped`."""
    return {"steps": _by_name(rows)}


def _by_name(rows: Iterable[tuple[str, str, str | None, str | None, float | None]]) -> dict[str, dict[str, Any]]:
    keys = Row._fields[1:]
    return {name: dict(zip(keys, facts, strict=True)) for name, *facts in rows}


def _may_repeat(step: ChainStep, fact: StepFacts) -> bool:
    return step.on_failure == "retry" and fact.tries <= step.retries


def _halts(step: ChainStep, fact: StepFacts) -> bool:
    if fact.state == "failed":
        return step.on_failure != "continue" and not _may_repeat(step, fact)
    return fact.state == "skipped"
