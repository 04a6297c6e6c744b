"""What follows when an attempt has ended: the run's result, or another attempt. Pure."""

from typing import NamedTuple, TypeVar

from craft_easy_jobd.accounting import NOT_SEEN, Used
from craft_easy_jobd.interruptions import after_interruption
from craft_easy_jobd.ledger import Again, Lease, Result
from craft_easy_jobd.states import RunState
from craft_easy_jobd.stopping import Cause
from craft_easy_jobs.definition import Isolation, JobOptions
from craft_easy_jobs.wire import Outcome

N = TypeVar("N", int, float)

# Another attempt cannot mend these.
_HOPELESS = frozenset({"unknown_job", "invalid_params", "result_invalid"})


class Ended(NamedTuple):
    """The facts of an attempt that is over.

    Attributes:
        outcome: what the worker said; None when it died.
        cause: why the attempt was being cut, None when it was not.
        cancel_asked: an operator asked the run to stop.
        problem: how the worker died.
        bystander: the worker was killed for another run's sake.
        stuck: the worker was killed and is still there.
        used: by the worker with all that it started, as seen from outside; the worker's own figures are in the outcome.
        within_limit: the kernel killed the worker though it used no more than its job may.
        started_at, completed_at: Unix seconds.
    """

    lease: Lease
    options: JobOptions
    outcome: Outcome | None
    cause: Cause | None
    cancel_asked: bool
    problem: str
    bystander: bool
    started_at: float
    completed_at: float
    worker: str
    code_version: str | None
    stuck: bool = False
    used: Used = NOT_SEEN
    within_limit: bool = False


def judge(ended: Ended, *, budget: int, share: float) -> Result | Again:
    """Decide: a Result ends the run, an Again puts it back.

    Args:
        budget: interruptions after which a run is given up.
        share: a random number in [0, 1), for the jitter of the delay.
    """
    outcome = ended.outcome
    # A cut that crossed an outcome on its way never reached the job.
    untouched = outcome is not None and not outcome.obeyed_stop
    if ended.cause is not None and not untouched:
        return _cut(ended, ended.cause, budget, share)
    if outcome is None:
        return _interrupted(ended, "interrupted" if ended.bystander else "worker_lost", ended.problem, budget)
    if outcome.kind == "returned":
        return _result(ended, RunState.COMPLETED, "stopped" if outcome.obeyed_stop else None, None)
    if ended.cancel_asked:
        return _result(ended, RunState.FAILED, "cancelled", outcome.error)
    return _failed(ended, outcome.reason or "exception", outcome.error, share)


def _cut(ended: Ended, cause: Cause, budget: int, share: float) -> Result | Again:
    hangs = f"; {ended.problem}" if ended.stuck else ""
    match cause:
        case Cause.TIMED_OUT if ended.cancel_asked:
            return _result(ended, RunState.FAILED, cause, _timed_out(ended) + hangs)
        case Cause.TIMED_OUT:
            return _failed(ended, cause, _timed_out(ended) + hangs, share)
        case Cause.CANCELLED:
            return _result(ended, RunState.FAILED, cause, "cancelled by force" + hangs)
        case Cause.OUT_OF_MEMORY if ended.cancel_asked:
            return _result(ended, RunState.FAILED, cause, _out_of_memory(ended) + hangs)
        case Cause.OUT_OF_MEMORY:
            return _failed(ended, cause, _out_of_memory(ended) + hangs, share)
        case Cause.INTERRUPTED:
            return _interrupted(ended, cause, "the daemon was stopped while it ran" + hangs, budget)


def _timed_out(ended: Ended) -> str:
    return f"timed out after {ended.options.timeout_seconds} s (timeout_seconds of the job)"


def _out_of_memory(ended: Ended) -> str:
    """What was used, what the limit is, and what to do."""
    peak = ended.used.peak_bytes
    used = "" if peak is None else f"; it used {peak / 1024**2:.0f} MB with all that it started"
    limit = ended.options.memory_limit_mb
    if limit is not None and not ended.within_limit:
        return f"out of memory{used}; it may use {limit} MB: let it hold less at a time, or raise its memory_limit_mb"
    where = "there was none left on the machine, or of what the service may use (MemoryMax=)"
    return (
        f"out of memory: the kernel killed worker {ended.worker}, for {where}{used}; "
        "let it hold less at a time, or give the machine or the service more"
    )


def _failed(ended: Ended, reason: str, error: str | None, share: float) -> Result | Again:
    failures = ended.lease.failures + 1
    if reason in _HOPELESS or failures > ended.options.retries:
        return _result(ended, RunState.FAILED, reason, error)
    return Again(ended.lease, reason, error, delay_seconds=ended.options.backoff_seconds(failures, share))


def _interrupted(ended: Ended, reason: str, error: str, budget: int) -> Result | Again:
    interruptions = ended.lease.interruptions + 1
    match after_interruption(ended.lease.spec.on_interrupt, interruptions, budget, ended.cancel_asked):
        case "cancelled":
            return _result(ended, RunState.FAILED, "cancelled", error)
        case "interrupted":
            return _result(ended, RunState.FAILED, reason, f"{error} (interruption {interruptions})")
        case "again":
            # Whoever was there when a worker died may be who kills workers: the next attempt is alone.
            alone: Isolation | None = "process" if reason == "worker_lost" else None
            return Again(ended.lease, reason, error, interrupted=True, isolation=alone)


def _result(ended: Ended, state: RunState, reason: str | None, error: str | None) -> Result:
    outcome = ended.outcome
    return Result(
        state=state,
        reason=reason,
        result=outcome.result if outcome is not None and state is RunState.COMPLETED else b"null",
        error=error,
        started_at=ended.started_at,
        completed_at=ended.completed_at,
        attempts=ended.lease.attempt,
        cpu_seconds=_most(ended.used.cpu_seconds, outcome.cpu_seconds if outcome else None),
        peak_rss_bytes=_most(ended.used.peak_bytes, outcome.peak_rss_bytes if outcome else None),
        worker=ended.worker,
        code_version=ended.code_version,
    )


def _most(outside: N | None, inside: N | None) -> N | None:
    """Each way of looking may miss something, none makes something up."""
    if outside is None or inside is None:
        return inside if outside is None else outside
    return max(outside, inside)
