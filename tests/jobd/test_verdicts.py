"""What follows the end of an attempt."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from craft_easy_jobd.accounting import Used
from craft_easy_jobd.ledger import Again, Lease, Result, RunSpec
from craft_easy_jobd.states import RunState
from craft_easy_jobd.stopping import Cause
from craft_easy_jobd.verdicts import Ended, judge
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.wire import Outcome

OPTIONS = JobOptions(name="settlement", timeout_seconds=7, retries=2, retry_delay_seconds=8.0)
RETURNED = Outcome("r1", 3, "returned", result=b'{"n":1}')
OBEYED = Outcome("r1", 3, "returned", result=b"5", obeyed_stop=True)
RAISED = Outcome("r1", 3, "raised", error="ValueError: no rows", reason="exception")
CANCELLED = Outcome("r1", 3, "cancelled", obeyed_stop=True)


def verdict(
    outcome: Outcome | None,
    *,
    failures: int = 0,
    interruptions: int = 0,
    on_interrupt: Any = "retry",
    options: JobOptions = OPTIONS,
    share: float = 0.5,
    **facts: Any,
) -> Result | Again:
    spec = RunSpec(run_id="r1", job="settlement", on_interrupt=on_interrupt)
    ended = Ended(
        lease=Lease("r1", 3, failures + interruptions + 1, failures, interruptions, spec),
        options=options,
        outcome=outcome,
        cause=facts.get("cause"),
        cancel_asked=facts.get("cancel_asked", False),
        problem=facts.get("problem", "killed by SIGSEGV"),
        bystander=facts.get("bystander", False),
        started_at=100.0,
        completed_at=102.5,
        worker="w1",
        code_version="abc",
        used=facts.get("used", Used()),
        within_limit=facts.get("within_limit", False),
    )
    return judge(ended, budget=3, share=share)


@pytest.mark.parametrize(
    ("outcome", "facts", "expected"),
    [
        (RETURNED, {}, (RunState.COMPLETED, None)),
        (OBEYED, {}, (RunState.COMPLETED, "stopped")),
        (OBEYED, {"cancel_asked": True}, (RunState.COMPLETED, "stopped")),
        # The deadline and the return crossed each other: the job never saw the cancel.
        (RETURNED, {"cause": Cause.TIMED_OUT}, (RunState.COMPLETED, None)),
        # It swallowed the cancel and returned: it overran all the same.
        (OBEYED, {"cause": Cause.TIMED_OUT, "failures": 2}, (RunState.FAILED, "timed_out")),
        (OBEYED, {"cause": Cause.CANCELLED}, (RunState.FAILED, "cancelled")),
        (RAISED, {"failures": 2}, (RunState.FAILED, "exception")),
        (RAISED, {"cancel_asked": True}, (RunState.FAILED, "cancelled")),
        (CANCELLED, {"cause": Cause.TIMED_OUT, "failures": 2}, (RunState.FAILED, "timed_out")),
        (CANCELLED, {"cause": Cause.TIMED_OUT, "cancel_asked": True}, (RunState.FAILED, "timed_out")),
        (CANCELLED, {"cause": Cause.CANCELLED}, (RunState.FAILED, "cancelled")),
        (CANCELLED, {"cause": Cause.INTERRUPTED, "on_interrupt": "fail"}, (RunState.FAILED, "interrupted")),
        (CANCELLED, {"cause": Cause.INTERRUPTED, "cancel_asked": True}, (RunState.FAILED, "cancelled")),
        (None, {"cause": Cause.TIMED_OUT, "failures": 2}, (RunState.FAILED, "timed_out")),
        (None, {"interruptions": 3}, (RunState.FAILED, "worker_lost")),
        (None, {"on_interrupt": "fail"}, (RunState.FAILED, "worker_lost")),
        (None, {"bystander": True, "on_interrupt": "fail"}, (RunState.FAILED, "interrupted")),
        (None, {"cause": Cause.OUT_OF_MEMORY, "failures": 2}, (RunState.FAILED, "out_of_memory")),
        (None, {"cause": Cause.OUT_OF_MEMORY, "cancel_asked": True}, (RunState.FAILED, "out_of_memory")),
        # It returned while its worker was being killed.
        (RETURNED, {"cause": Cause.OUT_OF_MEMORY}, (RunState.COMPLETED, None)),
    ],
)
def test_a_result_ends_the_run(
    outcome: Outcome | None, facts: dict[str, Any], expected: tuple[RunState, str | None]
) -> None:
    result = verdict(outcome, **facts)
    assert isinstance(result, Result)
    assert (result.state, result.reason) == expected
    assert (result.error is None) == (result.state is RunState.COMPLETED)
    assert result.worker == "w1"
    assert result.started_at == 100.0
    assert result.completed_at == 102.5


def test_only_a_completed_run_has_a_value() -> None:
    completed = verdict(RETURNED)
    assert isinstance(completed, Result)
    assert completed.result == b'{"n":1}'
    cut = verdict(OBEYED, cause=Cause.CANCELLED)
    assert isinstance(cut, Result)
    assert cut.result == b"null"


@pytest.mark.parametrize("reason", ["unknown_job", "invalid_params", "result_invalid"])
def test_what_another_attempt_cannot_mend_is_not_retried(reason: str) -> None:
    result = verdict(Outcome("r1", 3, "raised", error="no", reason=reason))
    assert isinstance(result, Result)
    assert result.reason == reason


def test_a_failure_waits_longer_each_time() -> None:
    first, second = verdict(RAISED), verdict(RAISED, failures=1)
    assert isinstance(first, Again)
    assert isinstance(second, Again)
    assert (first.delay_seconds, second.delay_seconds) == (4.0, 8.0)
    assert not first.interrupted
    assert first.reason == "exception"


def test_a_timeout_is_retried_like_a_failure() -> None:
    again = verdict(CANCELLED, cause=Cause.TIMED_OUT)
    assert isinstance(again, Again)
    assert again.reason == "timed_out"
    assert again.error is not None
    assert "7 s" in again.error
    final_one = verdict(CANCELLED, cause=Cause.TIMED_OUT, options=replace(OPTIONS, retries=0))
    assert isinstance(final_one, Result)


def test_too_much_memory_is_retried_like_a_failure_and_says_what_to_do() -> None:
    limited = replace(OPTIONS, isolation="process", memory_limit_mb=64)
    used = Used(1.5, 80 * 1024**2)
    again = verdict(None, cause=Cause.OUT_OF_MEMORY, options=limited, used=used)
    assert isinstance(again, Again)
    assert (again.reason, again.delay_seconds, again.interrupted) == ("out_of_memory", 4.0, False)
    result = verdict(None, cause=Cause.OUT_OF_MEMORY, failures=2, options=limited, used=used)
    assert isinstance(result, Result)
    assert (result.cpu_seconds, result.peak_rss_bytes) == (1.5, 80 * 1024**2)
    assert result.error == (
        "out of memory; it used 80 MB with all that it started; it may use 64 MB: "
        "let it hold less at a time, or raise its memory_limit_mb"
    )


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, isolation="process", memory_limit_mb=64)])
def test_a_machine_without_memory_is_not_blamed_on_the_limit(options: JobOptions) -> None:
    facts = {"cause": Cause.OUT_OF_MEMORY, "failures": 2, "within_limit": True}
    result = verdict(None, options=options, **facts)
    assert isinstance(result, Result)
    assert result.error == (
        "out of memory: the kernel killed worker w1, for there was none left on the machine, or of what the service "
        "may use (MemoryMax=); let it hold less at a time, or give the machine or the service more"
    )


def test_of_what_worker_and_supervisor_saw_it_is_the_more() -> None:
    outcome = msgspec.structs.replace(RETURNED, cpu_seconds=0.25, peak_rss_bytes=50)
    for used, expected in ((Used(), (0.25, 50)), (Used(0.5, 40), (0.5, 50)), (Used(None, 60), (0.25, 60))):
        result = verdict(outcome, used=used)
        assert isinstance(result, Result)
        assert (result.cpu_seconds, result.peak_rss_bytes) == expected
    nothing = verdict(RETURNED)
    assert isinstance(nothing, Result)
    assert (nothing.cpu_seconds, nothing.peak_rss_bytes) == (None, None)


def test_an_interruption_costs_no_retry_and_no_delay() -> None:
    again = verdict(None, bystander=True, failures=2)
    assert isinstance(again, Again)
    assert again.interrupted
    assert again.delay_seconds is None
    assert again.isolation is None


def test_who_was_there_when_a_worker_died_runs_alone_next() -> None:
    again = verdict(None)
    assert isinstance(again, Again)
    assert (again.isolation, again.reason, again.error) == ("process", "worker_lost", "killed by SIGSEGV")


def test_a_drained_run_goes_back_to_the_queue() -> None:
    again = verdict(CANCELLED, cause=Cause.INTERRUPTED)
    assert isinstance(again, Again)
    assert again.interrupted
    assert again.delay_seconds is None
