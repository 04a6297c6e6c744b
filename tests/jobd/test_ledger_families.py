"""Runs with children: fan-outs and chains, advanced in the transactions that make it due; fair turns."""

import json
from collections.abc import Callable
from typing import Any

from craft_easy_jobd.ledger import (
    Again,
    ChainPlan,
    FanOut,
    Lease,
    Ledger,
    PlannedStep,
    Result,
    RunSpec,
    encode_plan,
)
from craft_easy_jobd.states import RunState
from craft_easy_jobs.chaining import ChainStep
from tests.jobd import ledgers
from tests.jobd.ledgers import START, Clock, opened, spec

S = RunState
clock, make, ledger = ledgers.clock, ledgers.make, ledgers.ledger


def fan_out(run_id: str, *tenants: str, **fields: Any) -> RunSpec:
    plan = FanOut(RunSpec(run_id="", job="settle", params=b'{"a":1}'), list(tenants))
    return RunSpec(run_id=run_id, job="settle", kind="fan_out", isolation="none", plan=encode_plan(plan), **fields)


def chain(run_id: str, *steps: ChainStep, runs: dict[str, RunSpec] | None = None) -> RunSpec:
    planned = [PlannedStep(step, (runs or {}).get(step.job, RunSpec(run_id="", job=step.job))) for step in steps]
    plan = encode_plan(ChainPlan(planned))
    return RunSpec(run_id=run_id, job="month-end", kind="chain", isolation="none", plan=plan)


def good(value: Any = None) -> Result:
    return Result(S.COMPLETED, None, json.dumps(value).encode(), None, START, START + 1, 1)


def bad(reason: str = "exception") -> Result:
    return Result(S.FAILED, reason, b"null", "ValueError: no", START, START + 1, 1)


async def claimed(ledger: Ledger) -> dict[str, Lease]:
    return {lease.run_id: lease for lease in await ledger.claim(100)}


async def states(ledger: Ledger) -> dict[str, str]:
    return {run.spec.run_id: str(run.state) for run in await ledger.find()}


async def result(ledger: Ledger, run_id: str) -> tuple[RunState, str | None, Any]:
    run = await ledger.get(run_id)
    assert run is not None
    assert run.result is not None
    return run.state, run.reason, json.loads(run.result.result)


async def test_a_fan_out_has_a_child_for_each_tenant_and_ends_with_the_last(ledger: Ledger) -> None:
    await ledger.submit([fan_out("p", "a", "b", priority=3, requested_by="u", upstream=b'{"x":1}')])
    leases = await claimed(ledger)
    assert list(leases) == ["p.a", "p.b"]
    child = leases["p.a"].spec
    assert (child.tenant_id, child.parent_run_id, child.priority, child.requested_by) == ("a", "p", 3, "u")
    assert (child.params, child.upstream, child.kind) == (b'{"a":1}', b'{"x":1}', "job")
    await ledger.finish([(leases["p.a"], good())])
    assert (await states(ledger))["p"] == "running"
    await ledger.finish([(leases["p.b"], good())])
    state, reason, table = await result(ledger, "p")
    assert (state, reason, table["counts"]) == (S.COMPLETED, None, {"completed": 2, "failed": 0})
    assert table["tenants"]["a"] == {
        "status": "completed",
        "reason": None,
        "run_id": "p.a",
        "duration_seconds": 1.0,
    }
    assert [ended.run.spec.run_id for ended in await ledger.unpublished(limit=9)] == ["p", "p.a", "p.b"]


async def test_a_fan_out_fails_when_a_tenant_did(ledger: Ledger) -> None:
    await ledger.submit([fan_out("p", "a", "b")])
    leases = await claimed(ledger)
    await ledger.finish([(leases["p.a"], bad("timed_out")), (leases["p.b"], good())])
    state, reason, table = await result(ledger, "p")
    assert (state, reason) == (S.FAILED, "tenants_failed")
    assert table["tenants"]["a"]["reason"] == "timed_out"
    run = await ledger.get("p")
    assert run is not None
    assert run.result is not None
    assert run.result.error == "1 of 2 tenants failed: a"


async def test_the_log_of_a_parent_tells_of_its_children(ledger: Ledger) -> None:
    await ledger.submit([fan_out("p", "a", "b", "c")])
    leases = await claimed(ledger)
    await ledger.finish([(leases["p.a"], good())])
    await ledger.finish([(leases["p.b"], bad("timed_out"))])
    await ledger.finish([(leases["p.c"], bad("cancelled"))])
    entries, count = await ledger.read_log("p")
    assert [(entry["level"], entry["message"], entry["percentage"]) for entry in json.loads(entries)] == [
        ("progress", "a completed", 33),
        ("warning", "b failed (timed_out)", None),
        ("warning", "c failed (cancelled)", None),
    ]
    run = await ledger.get("p")
    assert run is not None
    assert (count, run.log_count, run.warnings) == (3, 3, 2)


async def test_a_fan_out_over_nobody_is_completed(ledger: Ledger) -> None:
    await ledger.submit([fan_out("p")])
    await claimed(ledger)
    assert (await result(ledger, "p"))[:2] == (S.COMPLETED, None)


async def test_a_crash_changes_nothing(make: Callable[[], Ledger]) -> None:
    async with opened(make()) as ledger:
        await ledger.submit([fan_out("p", "a", "b")])
        leases = await claimed(ledger)
        await ledger.finish([(leases["p.a"], good())])
    async with opened(make()) as ledger:
        assert await ledger.reap(budget=3) == 1, "a parent is carried out by nobody"
        leases = await claimed(ledger)
        assert list(leases) == ["p.b"]
        await ledger.finish([(leases["p.b"], good())])
        assert (await result(ledger, "p"))[0] is S.COMPLETED


async def test_reaping_the_last_child_ends_the_parent(ledger: Ledger) -> None:
    await ledger.submit([fan_out("p", "a")])
    await claimed(ledger)
    for _ in range(4):
        assert await ledger.reap(budget=3) == 1
        await claimed(ledger)
    assert (await result(ledger, "p"))[:2] == (S.FAILED, "tenants_failed")


async def test_cancel_of_a_parent_cancels_its_children(ledger: Ledger) -> None:
    await ledger.submit([fan_out("p", "a", "b", "c")])
    (lease,) = await ledger.claim(1)
    cancelled = await ledger.cancel("p")
    assert cancelled == (S.STOPPING, ["p.a"])
    assert await states(ledger) == {"p": "stopping", "p.a": "stopping", "p.b": "failed", "p.c": "failed"}
    await ledger.finish([(lease, bad("cancelled"))])
    state, reason, table = await result(ledger, "p")
    assert (state, reason, table["counts"]["failed"]) == (S.FAILED, "cancelled", 3)


async def test_retry_runs_the_failed_tenants_again_and_no_other(ledger: Ledger) -> None:
    await ledger.submit([fan_out("p", "a", "b", "c")])
    leases = await claimed(ledger)
    await ledger.finish([(leases["p.a"], bad()), (leases["p.b"], good()), (leases["p.c"], bad())])
    await ledger.mark_published([ended.run.end for ended in await ledger.unpublished(limit=9)])
    assert await ledger.rerun("p") is S.QUEUED
    again = await claimed(ledger)
    assert list(again) == ["p.a", "p.c"]
    assert (await states(ledger))["p"] == "running"
    await ledger.finish([(lease, good()) for lease in again.values()])
    assert (await result(ledger, "p"))[0] is S.COMPLETED
    published = [ended.run.spec.run_id for ended in await ledger.unpublished(limit=9)]
    assert published == ["p", "p.a", "p.c"], "their results are written anew"


async def test_retry_of_one_child_reopens_its_parent(ledger: Ledger) -> None:
    await ledger.submit([fan_out("p", "a", "b")])
    leases = await claimed(ledger)
    await ledger.finish([(leases["p.a"], bad()), (leases["p.b"], bad())])
    assert await ledger.rerun("p.a") is S.QUEUED
    again = await claimed(ledger)
    await ledger.finish([(again["p.a"], good())])
    state, _, table = await result(ledger, "p")
    assert (state, table["counts"]) == (S.FAILED, {"completed": 1, "failed": 1})


async def test_what_did_not_fail_is_not_retried(ledger: Ledger) -> None:
    await ledger.submit([spec("a")])
    leases = await claimed(ledger)
    await ledger.finish([(leases["a"], good())])
    assert await ledger.rerun("a") is S.COMPLETED
    assert await ledger.rerun("nobody") is None


async def test_an_end_that_was_retried_meanwhile_is_not_marked_as_published(ledger: Ledger) -> None:
    await ledger.submit([spec("a")])
    leases = await claimed(ledger)
    await ledger.finish([(leases["a"], bad())])
    first = [ended.run.end for ended in await ledger.unpublished(limit=9)]
    await ledger.rerun("a")
    assert await ledger.unpublished(limit=9) == []
    leases = await claimed(ledger)
    await ledger.finish([(leases["a"], good())])
    await ledger.mark_published(first)
    (second,) = await ledger.unpublished(limit=9)
    assert second.run.state is S.COMPLETED


async def test_a_chain_goes_step_by_step_and_hands_results_on(ledger: Ledger) -> None:
    await ledger.submit([chain("c", ChainStep("one"), ChainStep("two"), ChainStep("three", depends_on=["one", "two"]))])
    leases = await claimed(ledger)
    assert sorted(leases) == ["c.one", "c.two"]
    await ledger.finish([(leases["c.one"], good({"n": 1}))])
    assert await claimed(ledger) == {}
    await ledger.finish([(leases["c.two"], good([2]))])
    leases = await claimed(ledger)
    assert list(leases) == ["c.three"]
    assert json.loads(leases["c.three"].spec.upstream or b"") == {"one": {"n": 1}, "two": [2]}
    assert (leases["c.three"].spec.step, leases["c.three"].spec.parent_run_id) == ("three", "c")
    await ledger.finish([(leases["c.three"], good())])
    state, reason, table = await result(ledger, "c")
    assert (state, reason, list(table["steps"])) == (S.COMPLETED, None, ["one", "two", "three"])


async def test_branches_that_end_in_one_commit_start_what_follows_once(ledger: Ledger) -> None:
    await ledger.submit([chain("c", ChainStep("a"), ChainStep("b"), ChainStep("end", depends_on=["a", "b"]))])
    leases = await claimed(ledger)
    await ledger.finish([(lease, good()) for lease in leases.values()])
    assert list(await claimed(ledger)) == ["c.end"]


async def test_a_failed_step_stops_the_chain_and_skips_the_rest(ledger: Ledger) -> None:
    await ledger.submit([chain("c", ChainStep("one"), ChainStep("two", depends_on=["one"]), ChainStep("side"))])
    leases = await claimed(ledger)
    await ledger.finish([(leases["c.one"], bad())])
    assert (await states(ledger))["c"] == "running", "what runs may finish"
    await ledger.finish([(leases["c.side"], good())])
    state, reason, table = await result(ledger, "c")
    assert (state, reason) == (S.FAILED, "step_failed")
    assert table["steps"]["two"] == {
        "status": "skipped",
        "reason": "upstream_failed",
        "run_id": None,
        "duration_seconds": None,
    }
    assert table["steps"]["side"]["status"] == "completed"


async def test_continue_goes_on_and_the_chain_is_completed(ledger: Ledger) -> None:
    await ledger.submit([chain("c", ChainStep("one", on_failure="continue"), ChainStep("two", depends_on=["one"]))])
    leases = await claimed(ledger)
    await ledger.finish([(leases["c.one"], bad())])
    leases = await claimed(ledger)
    assert json.loads(leases["c.two"].spec.upstream or b"") == {}
    await ledger.finish([(leases["c.two"], good())])
    assert (await result(ledger, "c"))[:2] == (S.COMPLETED, None)


async def test_retry_runs_a_step_again_after_its_delay_then_stops(ledger: Ledger, clock: Clock) -> None:
    await ledger.submit([chain("c", ChainStep("one", on_failure="retry", retries=1, retry_delay_seconds=30))])
    leases = await claimed(ledger)
    await ledger.finish([(leases["c.one"], bad())])
    assert await claimed(ledger) == {}
    assert ledger.next_due == START + 30
    clock.now += 30
    (lease,) = (await claimed(ledger)).values()
    assert (lease.spec.step, lease.run_id != "c.one") == ("one", True)
    await ledger.finish([(lease, bad())])
    assert (await result(ledger, "c"))[:2] == (S.FAILED, "step_failed")


async def test_a_step_that_stops_the_chain_withdraws_the_next_try_of_another(ledger: Ledger, clock: Clock) -> None:
    again = ChainStep("one", on_failure="retry", retries=2, retry_delay_seconds=30)
    await ledger.submit([chain("c", again, ChainStep("two"), ChainStep("slow"))])
    leases = await claimed(ledger)
    await ledger.finish([(leases["c.one"], bad())])
    await ledger.finish([(leases["c.two"], bad("timed_out"))])
    assert (await states(ledger))["c"] == "running", "what runs may finish"
    clock.now += 30
    assert await claimed(ledger) == {}
    await ledger.finish([(leases["c.slow"], good())])
    state, reason, table = await result(ledger, "c")
    assert (state, reason) == (S.FAILED, "step_failed")
    rows = {name: (row["status"], row["reason"], row["run_id"]) for name, row in table["steps"].items()}
    assert rows == {
        "one": ("failed", "exception", "c.one"),
        "two": ("failed", "timed_out", "c.two"),
        "slow": ("completed", None, "c.slow"),
    }
    ended = {run.run.spec.run_id: run.run for run in await ledger.unpublished(limit=9)}
    (withdrawn,) = ended.keys() - {"c", "c.one", "c.two", "c.slow"}
    assert (ended[withdrawn].state, ended[withdrawn].reason) == (S.FAILED, "upstream_failed")


async def test_when_what_stopped_the_chain_is_retried_what_was_withdrawn_starts_anew(
    ledger: Ledger, clock: Clock
) -> None:
    again = ChainStep("one", on_failure="retry", retries=1, retry_delay_seconds=30)
    await ledger.submit([chain("c", again, ChainStep("two"), ChainStep("never"))])
    begun = {lease.run_id: lease for lease in await ledger.claim(2)}
    await ledger.finish([(begun["c.one"], bad())])
    await ledger.finish([(begun["c.two"], bad())])
    assert (await result(ledger, "c"))[:2] == (S.FAILED, "step_failed")
    assert await ledger.rerun("c.two") is S.QUEUED
    leases = await claimed(ledger)
    assert sorted(lease.spec.step or "" for lease in leases.values()) == ["never", "two"]
    clock.now += 30
    leases |= await claimed(ledger)
    assert sorted(lease.spec.step or "" for lease in leases.values()) == ["never", "one", "two"]
    await ledger.finish([(lease, good()) for lease in leases.values()])
    state, _, table = await result(ledger, "c")
    assert (state, {row["status"] for row in table["steps"].values()}) == (S.COMPLETED, {"completed"})


async def test_a_step_that_stops_the_chain_withdraws_one_that_waits_for_a_slot(ledger: Ledger) -> None:
    settle = fan_out("", "a", "b")
    steps = [ChainStep(name) for name in ("one", "retrying", "side", "settle")]
    await ledger.submit([chain("c", *steps, runs={"settle": settle})])
    begun = {lease.run_id: lease for lease in await ledger.claim(4)}
    assert sorted(begun) == ["c.one", "c.retrying", "c.settle.a", "c.settle.b"]
    await ledger.retry([Again(begun.pop(name), "exception", "ValueError: no") for name in ("c.retrying", "c.settle.b")])
    await ledger.finish([(begun.pop("c.one"), bad())])
    assert (await states(ledger))["c.side"] == "failed"
    # What has begun goes on: a job between its attempts, and a step with tenants.
    again = await claimed(ledger)
    assert sorted(again) == ["c.retrying", "c.settle.b"]
    await ledger.finish([(lease, good()) for lease in [*begun.values(), *again.values()]])
    _, _, table = await result(ledger, "c")
    assert table["steps"]["side"] == {
        "status": "skipped",
        "reason": "upstream_failed",
        "run_id": None,
        "duration_seconds": None,
    }
    await ledger.rerun("c")
    assert sorted(await claimed(ledger)) == ["c.one", "c.side"]


async def test_retry_of_a_chain_leaves_earlier_tries_of_a_step_alone(ledger: Ledger, clock: Clock) -> None:
    again = ChainStep("one", on_failure="retry", retries=1, retry_delay_seconds=30)
    await ledger.submit([chain("c", again, ChainStep("two", depends_on=["one"]))])
    await ledger.finish([(lease, bad()) for lease in (await claimed(ledger)).values()])
    clock.now += 30
    await ledger.finish([(lease, good()) for lease in (await claimed(ledger)).values()])
    await ledger.finish([(lease, bad()) for lease in (await claimed(ledger)).values()])
    assert await ledger.rerun("c") is S.QUEUED
    assert list(await claimed(ledger)) == ["c.two"]


async def test_a_step_may_fan_out(ledger: Ledger) -> None:
    settle = fan_out("", "a", "b")
    await ledger.submit(
        [chain("c", ChainStep("settle"), ChainStep("two", depends_on=["settle"]), runs={"settle": settle})]
    )
    leases = await claimed(ledger)
    assert sorted(leases) == ["c.settle.a", "c.settle.b"]
    await ledger.finish([(lease, good()) for lease in leases.values()])
    leases = await claimed(ledger)
    assert list(leases) == ["c.two"]
    upstream = json.loads(leases["c.two"].spec.upstream or b"")
    assert upstream["settle"]["counts"] == {"completed": 2, "failed": 0}


async def test_cancel_of_a_chain_stops_what_runs_and_skips_the_rest(ledger: Ledger) -> None:
    settle = fan_out("", "a", "b")
    await ledger.submit(
        [chain("c", ChainStep("settle"), ChainStep("two", depends_on=["settle"]), runs={"settle": settle})]
    )
    (lease,) = await ledger.claim(1)
    assert await ledger.cancel("c") == (S.STOPPING, ["c.settle.a"])
    await ledger.finish([(lease, good())])
    state, reason, table = await result(ledger, "c")
    assert (state, reason, table["steps"]["two"]["status"]) == (S.FAILED, "cancelled", "skipped")


async def test_retry_of_a_chain_resumes_at_the_failed_step(ledger: Ledger) -> None:
    await ledger.submit(
        [chain("c", ChainStep("one"), ChainStep("two", depends_on=["one"]), ChainStep("three", depends_on=["two"]))]
    )
    leases = await claimed(ledger)
    await ledger.finish([(leases["c.one"], good(1))])
    leases = await claimed(ledger)
    await ledger.finish([(leases["c.two"], bad())])
    assert await ledger.rerun("c") is S.QUEUED
    leases = await claimed(ledger)
    assert list(leases) == ["c.two"]
    await ledger.finish([(leases["c.two"], good(2))])
    leases = await claimed(ledger)
    assert json.loads(leases["c.three"].spec.upstream or b"") == {"one": 1, "two": 2}
    await ledger.finish([(leases["c.three"], good())])
    assert (await result(ledger, "c"))[0] is S.COMPLETED


async def test_tenants_take_turns_within_a_priority(make: Callable[[], Ledger]) -> None:
    async with opened(make()) as ledger:
        await ledger.submit([spec(f"many{n}", tenant_id="many") for n in range(5)])
        assert [lease.run_id for lease in await ledger.claim(2)] == ["many0", "many1"]
        await ledger.submit([spec("few0", tenant_id="few"), spec("few1", tenant_id="few")])
        assert [lease.run_id for lease in await ledger.claim(2)] == ["few0", "many2"]
    async with opened(make()) as ledger:
        await ledger.submit([spec("urgent", tenant_id="many", priority=1), spec("new", tenant_id="new")])
        order = [lease.run_id for lease in await ledger.claim(9)]
        assert order[0] == "urgent"
        assert set(order) == {"urgent", "few1", "many3", "many4", "new"}
        assert order.index("new") < order.index("many4")


async def test_turns_of_runs_that_wait_for_their_time_are_remembered(make: Callable[[], Ledger], clock: Clock) -> None:
    """Else what comes after a restart would overtake an older run of the same tenant, or all of another's."""
    async with opened(make()) as ledger:
        await ledger.submit([spec(f"many{n}", tenant_id="many") for n in range(3)])
        *ended, last = await ledger.claim(3)
        await ledger.finish([(lease, good()) for lease in ended])
        await ledger.retry([Again(last, "exception", None, 10.0)])
    async with opened(make()) as ledger:
        await ledger.submit([spec("many3", tenant_id="many"), *(spec(f"new{n}", tenant_id="new") for n in range(3))])
        clock.now += 10
        assert [lease.run_id for lease in await ledger.claim(9)] == ["many2", "new0", "many3", "new1", "new2"]


async def test_an_id_that_a_stranger_took_costs_no_tenant(ledger: Ledger) -> None:
    await ledger.submit([spec("p.a"), fan_out("p", "a", "b")])
    leases = await claimed(ledger)
    children = {lease.spec.tenant_id: lease for lease in leases.values() if lease.spec.parent_run_id == "p"}
    assert sorted(children) == ["a", "b"]
    await ledger.finish([(children["a"], good()), (children["b"], bad())])
    await ledger.rerun("p")
    again = await claimed(ledger)
    assert [lease.spec.tenant_id for lease in again.values()] == ["b"]
    await ledger.finish([(lease, good()) for lease in again.values()])
    state, _, table = await result(ledger, "p")
    assert (state, table["counts"]["completed"]) == (S.COMPLETED, 2)
