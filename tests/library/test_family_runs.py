"""JobRunner with tenants and chains: children, their tables, stops."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobs import JobResult, JobRunner
from craft_easy_jobs.errors import ParamsError, RequestError, TenantError
from craft_easy_jobs.model import LogEntry, decode_result, encode_result
from craft_easy_jobs.tenants import TenantDirectory
from tests.library.family_jobs import TENANTS

DIRECTORY = TenantDirectory(TENANTS)


async def run(name: str, **options: Any) -> JobResult:
    return await JobRunner(tenants=DIRECTORY).run(name, run_id="r", validate=True, **options)


async def run_chain(name: str, **options: Any) -> JobResult:
    return await JobRunner(tenants=DIRECTORY).run_chain(name, run_id="r", validate=True, **options)


def statuses(result: JobResult) -> dict[str, tuple[str, str | None]]:
    """(status, reason) of each tenant or step."""
    rows = result.result.get("tenants") or result.result["steps"]
    return {name: (row["status"], row["reason"]) for name, row in rows.items()}


async def test_each_tenant_has_a_run_of_its_own() -> None:
    children: list[JobResult] = []
    said: list[LogEntry] = []
    result = await run(
        "settle",
        all_tenants=True,
        params={"period": "2026-03", "bad": ["north"]},
        concurrency=1,
        on_child=children.append,
        emit=said.append,
    )
    assert [child.run_id for child in children] == ["r.group", "r.north", "r.south"]
    assert [(child.status, child.attempts) for child in children] == [("completed", 1), ("failed", 2), ("completed", 1)]
    assert children[0].result == {"tenants": ["group"], "attempt": 1}
    assert {(child.parent_run_id, child.scope) for child in children} == {("r", "tenant")}
    assert [entry["message"] for entry in children[0].logs] == ["settling 2026-03"]
    assert (result.status, result.reason, result.run_id, result.attempts) == ("failed", "tenants_failed", "r", 1)
    assert str(result.error).startswith(
        "1 of 3 tenants failed: north failed (exception): ValueError: no rows for north (family_jobs.py:"
    )
    assert result.result["counts"] == {"completed": 2, "failed": 1}
    assert result.result["tenants"]["north"] == {
        "status": "failed",
        "reason": "exception",
        "run_id": "r.north",
        "duration_seconds": children[1].duration_seconds,
    }
    assert [entry["message"].split(" in ")[0] for entry in said[:2]] == ["group: settling 2026-03", "group completed"]
    assert [entry["level"] for entry in result.logs] == ["info", "error", "info"]
    assert decode_result(encode_result(result)) == result


async def test_all_are_well_when_each_is() -> None:
    result = await run("settle", tenant_id="north")
    assert (result.status, result.reason, result.error, result.tenant_id) == ("completed", None, None, "north")
    assert statuses(result) == {"north": ("completed", None)}
    result = await run("settle", tenant_id="group", scope="parent_tenant")
    assert list(result.result["tenants"]) == ["group", "north", "south"]


@pytest.mark.parametrize("side_by_side", [1, 2, 3])
async def test_tenants_run_side_by_side_within_the_limit(side_by_side: int, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    children: list[JobResult] = []
    params = {"folder": str(here), "side_by_side": side_by_side}
    result = await run("crowd", params=params, concurrency=side_by_side, on_child=children.append)
    assert (result.status, result.result["counts"]) == ("completed", {"completed": 3, "failed": 0})
    assert max(child.result for child in children) == side_by_side


async def test_what_cannot_run_is_refused_before_anything_starts() -> None:
    with pytest.raises(TenantError, match="give a tenant_id, or ask for all_tenants"):
        await run("settle")
    with pytest.raises(TenantError, match="did you mean 'north'"):
        await run("settle", tenant_id="nord")
    with pytest.raises(TenantError, match="'off': is not active"):
        await run("settle", tenant_id="off")
    with pytest.raises(ParamsError):
        await run("settle", tenant_id="north", params={"period": 3})
    with pytest.raises(ValueError, match="concurrency must be at least 1, not 0"):
        await run("settle", tenant_id="north", concurrency=0)


async def test_a_single_run_has_the_tenants_below() -> None:
    result = await run("rollup", tenant_id="group")
    assert result.result["tenants"] == ["group", "north", "south"]


async def stopped_at_ready(ready: int, stop: str, *, chain: str | None = None, **options: Any) -> JobResult:
    """The result of a run that is asked to stop, or cut, at its nth READY line."""
    runner = JobRunner(tenants=DIRECTORY)
    seen = 0

    def emit(entry: LogEntry) -> None:
        nonlocal seen
        seen += entry["message"].endswith("READY")
        if seen == ready and entry["message"].endswith("READY"):
            getattr(runner, stop)()

    if chain:
        return await runner.run_chain(chain, run_id="r", emit=emit, **options)
    return await runner.run("wait-each", run_id="r", all_tenants=True, emit=emit, **options)


async def test_a_stop_reaches_all_that_run_and_starts_no_more() -> None:
    result = await stopped_at_ready(2, "request_stop", concurrency=2)
    assert (result.status, result.reason) == ("failed", "cancelled")
    assert statuses(result) == {
        "group": ("completed", "stopped"),
        "north": ("completed", "stopped"),
        "south": ("failed", "cancelled"),
    }
    assert result.result["tenants"]["south"]["run_id"] == "r.south"
    assert result.error == "1 of 3 tenants failed: none of these was started"


async def test_a_stop_that_all_obey_is_a_completed_run() -> None:
    result = await stopped_at_ready(3, "request_stop")
    assert (result.status, result.reason, result.error) == ("completed", "stopped", None)
    assert set(statuses(result).values()) == {("completed", "stopped")}


async def test_a_cut_ends_all_that_run() -> None:
    result = await stopped_at_ready(2, "cut", concurrency=2, params={"deaf": True})
    assert (result.status, result.reason) == ("failed", "cancelled")
    assert set(statuses(result).values()) == {("failed", "cancelled")}


async def test_a_blocked_loop_is_told_once_for_all_that_wait_for_it() -> None:
    """Each watchdog fires 1.7 s after its attempt began, two of them while the loop is blocked."""
    told: list[JobResult] = []
    runner = JobRunner(tenants=DIRECTORY, on_stuck=told.append)
    task = asyncio.create_task(runner.run("block-each", all_tenants=True, params={"seconds": 2.5}))
    await asyncio.wait({task}, timeout=0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [result] = told
    assert (result.status, result.reason, result.result["counts"]) == (
        "failed",
        "tenants_failed",
        {"completed": 1, "failed": 2},
    )


async def test_the_steps_of_a_chain_follow_each_other() -> None:
    children: list[JobResult] = []
    result = await run_chain("diamond", params={"amount": 2, "x": 1}, on_child=children.append)
    assert (result.job_name, result.status, result.reason, result.error) == ("diamond", "completed", None, None)
    assert (result.scope, result.params) == ("system", {"amount": 2, "x": 1})
    assert statuses(result) == dict.fromkeys(["first", "left", "right", "last"], ("completed", None))
    first, *branches, last = children
    assert (first.run_id, first.params, first.result) == ("r.first", {"amount": 1, "x": 1}, "first after ")
    assert last.result in ("last after first, left, right", "last after first, right, left")
    assert last.params == {"amount": 2, "x": 1}
    assert {child.parent_run_id for child in children} == {"r"}
    assert {child.job_name for child in branches} == {"left", "right"}


async def test_a_failure_stops_the_chain() -> None:
    result = await run_chain("diamond", params={"fail": "left"})
    assert (result.status, result.reason) == ("failed", "step_failed")
    assert statuses(result) == {
        "first": ("completed", None),
        "left": ("failed", "exception"),
        "right": ("completed", None),
        "last": ("skipped", "upstream_failed"),
    }
    assert result.result["steps"]["last"] == {
        "status": "skipped",
        "reason": "upstream_failed",
        "run_id": None,
        "duration_seconds": None,
    }
    assert str(result.error).startswith("left failed (exception): ValueError: left has no rows (family_jobs.py:")
    assert str(result.error).endswith("; skipped: last")


async def test_a_chain_goes_on_without_a_step_that_may_fail() -> None:
    children: list[JobResult] = []
    result = await run_chain("lenient", params={"fail": "first"}, on_child=children.append)
    assert (result.status, result.reason, result.error, result.warnings) == ("completed", None, None, 1)
    assert statuses(result) == {"first": ("failed", "exception"), "last": ("completed", None)}
    assert children[1].result == "last after "


async def test_a_step_is_run_again(tmp_path: Path) -> None:
    children: list[JobResult] = []
    result = await run_chain("stubborn", params={"file": str(tmp_path / "count")}, on_child=children.append)
    assert (result.status, statuses(result)) == ("completed", {"third-time": ("completed", None)})
    assert [child.status for child in children] == ["failed", "failed", "completed"]
    assert len({child.run_id for child in children}) == 3
    assert result.result["steps"]["third-time"]["run_id"] == children[-1].run_id
    assert "third-time starts again in 0 s" in [entry["message"] for entry in result.logs]


async def test_a_stop_interrupts_the_wait_for_the_next_try(tmp_path: Path) -> None:
    runner = JobRunner()

    def emit(entry: LogEntry) -> None:
        if "starts again in 3600 s" in entry["message"]:
            runner.request_stop()

    result = await runner.run_chain("patient", params={"file": str(tmp_path / "count")}, emit=emit)
    assert (result.status, result.reason) == ("failed", "cancelled")
    assert statuses(result) == {"third-time": ("failed", "exception")}


async def test_a_step_that_stops_the_chain_ends_the_wait_for_the_next_try_of_another(tmp_path: Path) -> None:
    go, count = tmp_path / "go", tmp_path / "count"

    def emit(entry: LogEntry) -> None:
        if "starts again in 3600 s" in entry["message"]:
            go.touch()

    result = await run_chain("broken-meanwhile", params={"go": str(go), "file": str(count)}, emit=emit)
    assert (result.status, result.reason) == ("failed", "step_failed")
    assert statuses(result) == {"third-time": ("failed", "exception"), "breaks-later": ("failed", "exception")}
    assert count.read_text() == "x", "it was not tried again"


async def test_a_step_fans_out_inside_the_chain() -> None:
    said: list[LogEntry] = []
    result = await run_chain("mixed", all_tenants=False, tenant_id="group", emit=said.append)
    assert statuses(result) == {"settle": ("completed", None), "rollup": ("completed", None)}
    assert "settle: group: settling None" in [entry["message"] for entry in said]
    children: list[JobResult] = []
    await run_chain("mixed", tenant_id="group", on_child=children.append)
    assert [child.run_id for child in children] == ["r.settle.group", "r.settle", "r.rollup"]
    assert children[2].result["tenants"] == ["group", "north", "south"]
    assert children[2].result["upstream"] == {"settle": children[1].result}


async def test_a_stop_of_a_chain_skips_what_has_not_started() -> None:
    result = await stopped_at_ready(1, "request_stop", chain="waiting")
    assert (result.status, result.reason, result.error) == ("failed", "cancelled", "skipped: last")
    assert statuses(result) == {"waits": ("completed", "stopped"), "last": ("skipped", "upstream_failed")}


@pytest.mark.parametrize(
    ("name", "options", "field", "told"),
    [
        ("diamnd", {}, "chain", "unknown chain 'diamnd'; did you mean 'diamond'?"),
        ("diamond", {"params": {"amount": "x"}}, "steps.left.params.amount", "'x' is not of type 'integer'"),
        ("mixed", {}, "steps.settle.tenant_id", "give a tenant_id, or ask for all_tenants"),
        ("mixed", {"all_tenants": True}, "steps.rollup.tenant_id", "give the tenant_id of the parent"),
        ("mixed", {"tenant_id": "off"}, "steps.settle.tenant_id", "tenant 'off': is not active"),
    ],
)
async def test_a_chain_that_cannot_run_is_refused(name: str, options: Any, field: str, told: str) -> None:
    said: list[LogEntry] = []
    with pytest.raises(RequestError) as caught:
        await run_chain(name, emit=said.append, **options)
    assert caught.value.field == field
    assert told in caught.value.problem
    assert not said


async def test_all_tenants_are_for_chains_with_a_step_for_each() -> None:
    with pytest.raises(TenantError, match="no step that is per_tenant"):
        await run_chain("diamond", all_tenants=True)
