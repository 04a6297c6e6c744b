"""JobRunner: what comes out of every way in which a job can go."""

import asyncio
import os
import signal
import threading
import uuid
from typing import Any

import pytest

from craft_easy_jobs import JobResult, JobRunner
from craft_easy_jobs.errors import ParamsError, TenantError, UnknownJobError
from craft_easy_jobs.model import LogEntry, decode_result, encode_result
from tests.library import runner_jobs


async def run(name: str, **options: Any) -> JobResult:
    return await JobRunner().run(name, **options)


def messages(result: JobResult) -> list[str]:
    return [entry["message"] for entry in result.logs]


async def test_a_result_has_all_that_was_asked_and_said() -> None:
    said: list[LogEntry] = []
    result = await run(
        "talkative", params={"a": 1}, tenant_id="t1", scope="parent_tenant", sub_tenant_ids=["t2"], emit=said.append
    )
    assert (result.job_name, result.status, result.reason, result.error) == ("talkative", "completed", None, None)
    assert (result.params, result.tenant_id, result.scope, result.attempts) == ({"a": 1}, "t1", "parent_tenant", 1)
    assert result.logs == said
    assert result.warnings == 2
    assert uuid.UUID(result.run_id).version == 7
    assert result.completed_at is not None
    assert result.completed_at >= result.started_at
    assert result.duration_seconds is not None
    assert decode_result(encode_result(result)) == result


@pytest.mark.parametrize(
    ("options", "tenants", "scope"),
    [
        ({"tenant_id": "a"}, ["a"], "tenant"),
        ({}, [], "tenant"),
        ({"tenant_id": "a", "scope": "parent_tenant", "sub_tenant_ids": ["b", "c"]}, ["a", "b", "c"], "parent_tenant"),
        ({"scope": "system"}, [], "system"),
    ],
)
async def test_the_context_has_the_tenants_of_the_scope(options: Any, tenants: list[str], scope: str) -> None:
    result = await run("echo", run_id="mine", **options)
    assert (result.result["tenants"], result.result["scope"], result.result["run_id"]) == (tenants, scope, "mine")


async def test_a_run_needs_the_tenant_of_its_scope_and_no_other() -> None:
    with pytest.raises(TenantError, match="scope 'parent_tenant'; give the tenant_id of the parent"):
        await run("echo", scope="parent_tenant")
    with pytest.raises(TenantError, match="scope 'system' and no tenant; leave the tenant_id out"):
        await run("echo", scope="system", tenant_id="a")


async def test_a_failure_is_told_with_its_place() -> None:
    result = await run("fails")
    line = runner_jobs.fails.__code__.co_firstlineno + 2
    assert (result.status, result.reason) == ("failed", "exception")
    assert result.error == f"ValueError: no rows in table (runner_jobs.py:{line})"


async def test_a_failed_attempt_is_tried_again_with_the_params_as_given() -> None:
    given: dict[str, Any] = {}
    result = await run("flaky", params=given)
    assert (result.status, result.result, result.attempts, result.warnings) == ("completed", 3, 3, 2)
    assert [text for text in messages(result) if "sees" in text] == [f"attempt {n} sees 1" for n in (1, 2, 3)]
    assert messages(result)[1].startswith("attempt 1 of 3 failed: ConnectionError: hung up (runner_jobs.py:")
    assert messages(result)[1].endswith("; next in 0.0 s")
    assert given == result.params == {}


async def test_the_last_failure_is_the_results() -> None:
    result = await run("never-well")
    assert (result.status, result.attempts) == ("failed", 2)
    assert str(result.error).startswith("ConnectionError: hung up 2")


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("exit", "SystemExit: 4 (runner_jobs.py"),
        ("interrupt", "KeyboardInterrupt (runner_jobs.py"),
        ("broken", "BrokenStr (runner_jobs.py"),
        ("cancel", "CancelledError: the job cancelled itself"),
    ],
)
async def test_whatever_a_job_raises_is_its_failure(what: str, error: str) -> None:
    result = await run("raises", params={"what": what})
    assert (result.status, result.reason) == ("failed", "exception")
    assert str(result.error).startswith(error)


async def test_a_value_that_json_cannot_hold_is_a_failure() -> None:
    for what, error in [("nan", "result.a[0]: nan"), ("set", "result: JSON cannot hold a set")]:
        result = await run("returns", params={"what": what})
        assert (result.status, result.reason, result.result) == ("failed", "result_invalid", None)
        assert result.attempts == 1
        assert str(result.error).startswith(error)
    assert (await run("returns", params={"what": "tuple"})).result == (1, 2)
    assert str(2**80).encode() in encode_result(await run("returns", params={"what": "big"}))


async def test_an_attempt_is_cut_at_its_deadline() -> None:
    result = await run("overruns")
    assert (result.status, result.reason, result.error) == ("failed", "timed_out", "timed out after 1 s")
    assert messages(result) == ["cleaned up, stop asked: True"]


async def test_a_timed_out_attempt_is_tried_again() -> None:
    result = await run("overruns-once")
    assert (result.status, result.result, result.attempts) == ("completed", 2, 2)
    assert messages(result)[0].startswith("attempt 1 of 2 failed: timed out after 1 s; next in")


async def test_a_job_that_refuses_to_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    others = asyncio.all_tasks()
    try:
        result = await run("refuses")
    finally:
        monkeypatch.setenv("LET_GO", "1")
        await asyncio.wait(asyncio.all_tasks() - others)
    assert (result.status, result.reason, result.attempts) == ("failed", "timed_out", 1)
    assert result.error == "timed out after 1 s and did not end within 0.2 s of that"


async def test_validation_is_for_those_who_ask() -> None:
    assert (await run("echo", params={"period": 3})).status == "completed"
    with pytest.raises(ParamsError, match=r"params\.period: 3 is not of type 'string'"):
        await run("echo", params={"period": 3}, validate=True)
    with pytest.raises(UnknownJobError, match="did you mean 'flaky'"):
        await run("flakey")


async def stopped(name: str, stop: str) -> JobResult:
    """The result of a run that is asked to stop, or cut, at its READY line."""
    runner = JobRunner()

    def emit(entry: LogEntry) -> None:
        if entry["message"] == "READY":
            getattr(runner, stop)()

    return await runner.run(name, emit=emit)


@pytest.mark.parametrize(
    ("name", "stop", "status", "reason", "error"),
    [
        ("polls", "request_stop", "completed", "stopped", None),
        ("stops-badly", "request_stop", "failed", "exception", "RuntimeError: half a file"),
        ("deaf", "cut", "failed", "cancelled", "cancelled"),
        ("retries-later", "request_stop", "failed", "exception", "ConnectionError: hung up"),
    ],
)
async def test_a_stop_ends_the_run(name: str, stop: str, status: str, reason: str, error: str | None) -> None:
    result = await stopped(name, stop)
    assert (result.status, result.reason, result.attempts) == (status, reason, 1)
    assert str(result.error).startswith(str(error))


async def test_a_stop_interrupts_the_wait_for_the_next_attempt() -> None:
    runner = JobRunner()

    def emit(entry: LogEntry) -> None:
        if "next in" in entry["message"]:
            threading.Thread(target=runner.request_stop).start()

    result = await runner.run("retries-later", emit=emit)
    assert (result.status, result.reason, result.attempts) == ("failed", "cancelled", 1)
    assert str(result.error).startswith("cancelled before attempt 2; the last one: ConnectionError: hung up")


async def test_a_runner_can_be_stopped_before_and_after() -> None:
    runner = JobRunner()
    runner.request_stop()
    assert (await runner.run("flaky")).status == "completed"
    runner.cut()
    assert (await runner.run("flaky")).status == "completed"


async def test_cancelling_the_caller_cancels_the_attempt() -> None:
    said: list[LogEntry] = []
    ready = asyncio.Event()

    def emit(entry: LogEntry) -> None:
        said.append(entry)
        ready.set()

    task = asyncio.create_task(run("deaf", emit=emit))
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_run_sync_takes_signals_and_gives_the_handlers_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    counts: list[int] = []

    def emit(entry: LogEntry) -> None:
        if entry["message"] == "READY":
            os.kill(os.getpid(), signal.SIGTERM)

    result = JobRunner().run_sync("polls", emit=emit, on_signal=counts.append)
    assert (result.status, result.reason, result.result) == ("completed", "stopped", "obeyed")
    assert counts == [1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_second_signal_cuts() -> None:
    def emit(entry: LogEntry) -> None:
        if entry["message"] == "READY":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    result = JobRunner().run_sync("deaf", emit=emit)
    assert (result.status, result.reason, result.attempts) == ("failed", "cancelled", 1)


def test_run_sync_works_in_any_thread_and_sweeps_what_the_job_left() -> None:
    results: list[JobResult] = []
    said: list[LogEntry] = []
    thread = threading.Thread(target=lambda: results.append(JobRunner().run_sync("leaves-a-task", emit=said.append)))
    thread.start()
    thread.join(timeout=30)
    assert [result.status for result in results] == ["completed"]
    assert [entry["message"] for entry in said] == ["swept"]
