"""How every ledger moves runs, whatever it is made of."""

import asyncio
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from craft_easy_jobd import sqlite_ledger
from craft_easy_jobd.interruptions import after_interruption
from craft_easy_jobd.ledger import Again, Cancelled, Lease, Ledger, LogChunk, RequestFile, Result, RunSpec, Slice
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.states import FINAL, TRANSITIONS, RunState
from tests.jobd import ledgers
from tests.jobd.ledgers import START, Clock, ended, opened, present, spec, started, state_of

S = RunState
clock, make, ledger = ledgers.clock, ledgers.make, ledgers.ledger


# -- submit


async def test_a_run_is_kept_as_it_was_admitted(ledger: Ledger, clock: Clock) -> None:
    full = RunSpec(
        run_id="full",
        job="Rechnung ü",
        params=b'{"n":1}',
        tenant_id="t1",
        scope="parent_tenant",
        priority=-5,
        not_before=START + 9.25,
        isolation="process",
        on_interrupt="fail",
        validate=False,
        requested_by="uid 1000",
        parent_run_id="parent",
    )
    await ledger.submit([full])
    run = await ledger.get("full")
    assert run is not None
    assert run.spec == full
    assert run.spec.validate is False
    assert (run.state, run.next_at, run.requested_at) == (S.SCHEDULED, START + 9.25, START)
    assert (run.attempt, run.token, run.result, run.published, run.log_count) == (0, 0, None, False, 0)
    clock.now = START + 10
    (lease,) = await ledger.claim(5, isolation="process")
    assert lease == Lease("full", 1, 1, 0, 0, full)


async def test_submit_is_idempotent_by_run_id(ledger: Ledger) -> None:
    assert await ledger.submit([spec("a", priority=1)]) == [("a", S.QUEUED, False)]
    await ledger.claim(1)
    again = await ledger.submit([spec("b"), spec("a", priority=2), spec("c"), spec("b"), spec("a")])
    assert again == [
        ("b", S.QUEUED, False),
        ("a", S.RUNNING, True),
        ("c", S.QUEUED, False),
        ("b", S.QUEUED, True),
        ("a", S.RUNNING, True),
    ]
    run = await ledger.get("a")
    assert run is not None
    assert run.spec.priority == 1
    assert present(ledger) == {S.RUNNING: 1, S.QUEUED: 2}
    assert await ledger.submit([]) == []


async def test_runs_start_by_being_submitted_when_nothing_waits(ledger: Ledger, clock: Clock) -> None:
    a, b, c = spec("a", tenant_id="t"), spec("b", priority=3), spec("c", isolation="process")
    later, d = spec("later", not_before=START + 9), spec("d")
    submitted, leases = await ledger.start([a, b, c, later, d], {"shared": 2, "process": 1})
    assert submitted == [
        ("a", S.RUNNING, False),
        ("b", S.RUNNING, False),
        ("c", S.RUNNING, False),
        ("later", S.SCHEDULED, False),
        ("d", S.QUEUED, False),
    ]
    assert leases == [Lease(each.run_id, 1, 1, 0, 0, each) for each in (b, a, c)]
    assert present(ledger) == {S.RUNNING: 3, S.SCHEDULED: 1, S.QUEUED: 1}
    run = await ledger.get("a")
    assert run is not None
    assert (run.token, run.attempt, run.started_at, run.requested_at) == (1, 1, START, START)
    assert await ledger.finish([(lease, ended()) for lease in leases]) == [True, True, True]
    assert [lease.run_id for lease in await ledger.claim(9)] == ["d"]


@pytest.mark.parametrize("state", [S.QUEUED, S.SCHEDULED, S.RETRYING])
@pytest.mark.parametrize("isolation", ["shared", "process", "none"])
async def test_nothing_overtakes_what_waits(ledger: Ledger, clock: Clock, state: RunState, isolation: str) -> None:
    if state is S.RETRYING:
        lease = await started(ledger, "old", isolation=isolation if isolation != "none" else "shared")
        await ledger.retry([Again(lease, "exception", None, delay_seconds=1.0)])
    else:
        await ledger.submit([spec("old", isolation=isolation, not_before=START + 1 if state is S.SCHEDULED else None)])
    clock.now = START + 1
    assert await ledger.start([spec("new", priority=9)], {"shared": 5}) == ([("new", S.QUEUED, False)], [])
    assert await state_of(ledger, "new") is S.QUEUED


async def test_who_waits_for_a_later_time_keeps_nobody_from_starting(ledger: Ledger) -> None:
    await ledger.submit([spec("old", not_before=START + 1)])
    _, leases = await ledger.start([spec("new")], {"shared": 5})
    assert [lease.run_id for lease in leases] == ["new"]


async def test_a_duplicate_does_not_start(ledger: Ledger) -> None:
    await started(ledger, "a")
    submitted, leases = await ledger.start([spec("b"), spec("a"), spec("b"), spec("c")], {"shared": 9})
    assert submitted == [
        ("b", S.RUNNING, False),
        ("a", S.RUNNING, True),
        ("b", S.RUNNING, True),
        ("c", S.RUNNING, False),
    ]
    assert [lease.run_id for lease in leases] == ["b", "c"]


async def test_started_and_claimed_runs_take_the_same_turns(tmp_path: Path, clock: Clock) -> None:
    """What starts by being submitted is what a claim right after it would have given out, then and later."""
    dice = random.Random(7)
    names = itertools.count()
    paths = [tmp_path / "started", tmp_path / "claimed"]
    async with opened(SqliteLedger(paths[0], clock=clock)) as one, opened(SqliteLedger(paths[1], clock=clock)) as two:
        for _ in range(150):
            specs = [
                spec(f"r{next(names)}", tenant_id=dice.choice("abc"), priority=dice.randint(0, 1))
                for _ in range(dice.randint(0, 6))
            ]
            room = dice.randint(1, 5)
            _, leases = await one.start(specs, {"shared": room})
            leases += await one.claim(room - len(leases))
            both = await asyncio.gather(two.submit(specs), two.claim(room))
            assert leases == both[1]
            if dice.random() < 0.5:
                for ledger in (one, two):
                    await ledger.finish([(lease, ended()) for lease in leases])


async def test_a_run_that_comes_back_after_a_restart_stands_before_newer_ones(make: Callable[[], Ledger]) -> None:
    async with opened(make()) as ledger:
        await ledger.submit([spec("a"), spec("b")])
        await ledger.claim(2)
    async with opened(make()) as ledger:
        await ledger.submit([spec("newer")])
        await ledger.reap(budget=3)
        assert [lease.run_id for lease in await ledger.claim(3)] == ["a", "b", "newer"]


async def test_the_files_of_new_runs_are_kept_in_mind_until_they_are_let_go(make: Callable[[], Ledger]) -> None:
    a, b, c = (RequestFile(run_id, number, 10 * number) for number, run_id in enumerate("abc", 1))
    async with opened(make()) as ledger:
        await ledger.submit([spec("b")])
        await ledger.submit([spec("a"), spec("b")], came_in=Slice(1, [a, b]))
        await ledger.submit([spec("a")], came_in=Slice(2, [a]))
        await ledger.submit([spec("c")], came_in=Slice(3, [c]))
    async with opened(make()) as ledger:
        assert await ledger.slices() == [Slice(1, [a]), Slice(3, [c])]
        await ledger.let_go(named=[1], gone=[])
        assert await ledger.slices() == [Slice(1, [a], named=True), Slice(3, [c])]
        await ledger.let_go(named=[3], gone=[1])
        assert await ledger.slices() == [Slice(3, [c], named=True)]


async def test_an_operation_that_cannot_be_carried_out_fails_alone(ledger: Ledger) -> None:
    good = ledger.submit([spec("good")])
    bad = ledger.submit([spec("half"), spec("bad", requested_by="lone surrogate \ud800")])
    after = ledger.submit([spec("after")])
    with pytest.raises(UnicodeEncodeError):
        await bad
    assert [(await future)[0].state for future in (good, after)] == [S.QUEUED, S.QUEUED]
    assert await ledger.get("half") is None
    assert present(ledger) == {S.QUEUED: 2}


async def test_a_caller_that_gives_up_disturbs_nobody(ledger: Ledger) -> None:
    gone = asyncio.ensure_future(ledger.submit([spec("a")]))
    other = ledger.submit([spec("b")])
    gone.cancel()
    await other
    assert present(ledger) == {S.QUEUED: 2}


# -- claim


async def test_highest_priority_first_then_oldest(ledger: Ledger) -> None:
    await ledger.submit([spec("a"), spec("b", priority=5), spec("c"), spec("d", priority=5), spec("e", priority=-1)])
    assert [lease.run_id for lease in await ledger.claim(3)] == ["b", "d", "a"]
    assert await ledger.claim(0) == []
    assert [lease.run_id for lease in await ledger.claim(9)] == ["c", "e"]
    assert await ledger.claim(9) == []


async def test_each_isolation_has_its_own_queue(ledger: Ledger) -> None:
    await ledger.submit([spec("a", isolation="process"), spec("b")])
    assert [lease.run_id for lease in await ledger.claim(9)] == ["b"]
    assert [lease.run_id for lease in await ledger.claim(9, isolation="process")] == ["a"]


async def test_admitted_and_claimed_in_one_turn(ledger: Ledger) -> None:
    submitted, claimed = ledger.submit([spec("a")]), ledger.claim(1)
    assert [lease.run_id for lease in await claimed] == ["a"]
    assert await submitted == [("a", S.QUEUED, False)]


async def test_a_scheduled_run_starts_when_its_time_has_come(ledger: Ledger, clock: Clock) -> None:
    await ledger.submit([spec("late", not_before=START + 20), spec("soon", not_before=START + 10), spec("now")])
    assert ledger.next_due == START + 10
    assert [lease.run_id for lease in await ledger.claim(9)] == ["now"]
    clock.now = START + 10
    assert [lease.run_id for lease in await ledger.claim(9)] == ["soon"]
    assert ledger.next_due == START + 20
    assert present(ledger) == {S.RUNNING: 2, S.SCHEDULED: 1}
    clock.now = START + 21
    await ledger.claim(9)
    assert ledger.next_due is None
    run = await ledger.get("soon")
    assert run is not None
    assert (run.next_at, run.started_at) == (None, START + 10)


# -- finish, retry and their fences


async def test_finish_keeps_the_result(ledger: Ledger) -> None:
    lease = await started(ledger)
    result = ended(S.FAILED, "exception")._replace(error="ValueError: no")
    assert await ledger.finish([(lease, result)]) == [True]
    run = await ledger.get("a")
    assert run is not None
    assert run.result == result
    assert (run.state, run.reason, run.published) == (S.FAILED, "exception", False)
    assert present(ledger) == {S.FAILED: 1}


async def test_a_run_ends_once(ledger: Ledger) -> None:
    lease = await started(ledger)
    late = ended(S.FAILED, "timed_out")
    assert await ledger.finish([(lease, ended()), (lease, late)]) == [True, False]
    assert await ledger.finish([(lease, late)]) == [False]
    assert await state_of(ledger, "a") is S.COMPLETED
    assert len(await ledger.unpublished(limit=9)) == 1


async def test_successors_come_in_with_the_finish_and_not_without_it(ledger: Ledger) -> None:
    lease = await started(ledger)
    assert await ledger.finish([(lease, ended())], then=[spec("b", parent_run_id="a")]) == [True]
    assert await state_of(ledger, "b") is S.QUEUED
    assert await ledger.finish([(lease, ended())], then=[spec("c")]) == [False]
    assert await ledger.get("c") is None
    (other,) = await ledger.claim(1)
    assert await ledger.finish([(lease, ended()), (other, ended())], then=[spec("d")]) == [False, True]
    assert await state_of(ledger, "d") is S.QUEUED


async def test_retry_counts_failures_and_interruptions(ledger: Ledger, clock: Clock) -> None:
    first = await started(ledger)
    assert await ledger.retry([Again(first, "exception", "boom", delay_seconds=5)]) == [True]
    run = await ledger.get("a")
    assert run is not None
    assert (run.state, run.reason, run.failures, run.next_at) == (S.RETRYING, "exception", 1, START + 5)
    assert ledger.next_due == START + 5
    assert await ledger.claim(1) == []
    clock.now += 5
    (second,) = await ledger.claim(1)
    assert (second.token, second.attempt, second.failures, second.interruptions) == (2, 2, 1, 0)
    assert await ledger.retry([Again(second, "worker_lost", None, interrupted=True, isolation="process")]) == [True]
    assert await ledger.claim(1) == []
    (third,) = await ledger.claim(1, isolation="process")
    assert (third.attempt, third.failures, third.interruptions, third.spec.isolation) == (3, 1, 1, "process")
    run = await ledger.get("a")
    assert run is not None
    assert (run.started_at, run.reason) == (START, "worker_lost")
    clock.now += 60
    assert await ledger.finish([(third, ended()._replace(started_at=clock.now))]) == [True]
    run = await ledger.get("a")
    assert run is not None
    assert run.result is not None
    assert run.result.started_at == START, "a run began with its first attempt"


async def test_what_is_said_with_an_old_token_is_refused(ledger: Ledger) -> None:
    old = await started(ledger)
    await ledger.retry([Again(old, "exception", None)])
    (new,) = await ledger.claim(1)
    assert new.token > old.token
    assert await ledger.finish([(old, ended())]) == [False]
    assert await ledger.retry([Again(old, "exception", None)]) == [False]
    await ledger.log([LogChunk("a", old.token, b'{"n":1}', 1, 0)])
    run = await ledger.get("a")
    assert run is not None
    assert (run.state, run.failures, run.log_count) == (S.RUNNING, 1, 0)
    assert await ledger.finish([(new, ended(attempts=2))]) == [True]


async def test_a_lease_ends_with_its_attempt(ledger: Ledger) -> None:
    lease = await started(ledger)
    await ledger.retry([Again(lease, "exception", None, delay_seconds=60)])
    assert await ledger.retry([Again(lease, "exception", None)]) == [False]
    assert await ledger.finish([(lease, ended(S.FAILED, "exception"))]) == [False]
    assert await state_of(ledger, "a") is S.RETRYING


# -- cancel


async def test_cancel_ends_what_waits(ledger: Ledger, clock: Clock) -> None:
    again = await started(ledger, "again")
    await ledger.retry([Again(again, "exception", "boom", delay_seconds=60)])
    await ledger.submit([spec("queued"), spec("scheduled", not_before=START + 60)])
    clock.now += 1
    now = START + 1
    for run_id, began, attempts in (("queued", now, 0), ("scheduled", now, 0), ("again", START, 1)):
        assert await ledger.cancel(run_id) == Cancelled(S.FAILED, [])
        run = await ledger.get(run_id)
        assert run is not None
        error = "cancelled before it started"
        assert run.result == Result(S.FAILED, "cancelled", b"null", error, began, now, attempts)
    assert ledger.next_due is None
    assert len(await ledger.unpublished(limit=9)) == 3


async def test_cancel_marks_what_is_active_and_leaves_what_has_ended(ledger: Ledger) -> None:
    lease = await started(ledger)
    assert await ledger.cancel("a") == Cancelled(S.STOPPING, ["a"])
    assert await ledger.cancel("a") == Cancelled(S.STOPPING, ["a"])
    run = await ledger.get("a")
    assert run is not None
    assert run.cancel_requested is True
    assert await ledger.finish([(lease, ended(reason="stopped"))]) == [True]
    assert await ledger.cancel("a") == Cancelled(S.COMPLETED, [])
    assert await ledger.cancel("nobody") is None
    assert present(ledger) == {S.COMPLETED: 1}


# -- the law


async def _into(ledger: Ledger, state: RunState, clock: Clock) -> Lease:
    """A run in this state, and the lease that it had or could have."""
    at = START + 60 if state is S.SCHEDULED else None
    await ledger.submit([spec("a", not_before=at)])
    if state in (S.SCHEDULED, S.QUEUED):
        return Lease("a", 0, 1, 0, 0, spec("a"))
    (lease,) = await ledger.claim(1)
    if state is S.STOPPING:
        await ledger.cancel("a")
    elif state is S.RETRYING:
        await ledger.retry([Again(lease, "exception", None, delay_seconds=60)])
    elif state in FINAL:
        await ledger.finish([(lease, ended(state))])
    return lease


OPERATIONS: dict[str, Callable[[Ledger, Lease], object]] = {
    "submit": lambda ledger, lease: ledger.submit([spec("a")]),
    "claim": lambda ledger, lease: ledger.claim(1),
    "complete": lambda ledger, lease: ledger.finish([(lease, ended())]),
    "fail": lambda ledger, lease: ledger.finish([(lease, ended(S.FAILED))]),
    "requeue": lambda ledger, lease: ledger.retry([Again(lease, "exception", None)]),
    "delay": lambda ledger, lease: ledger.retry([Again(lease, "exception", None, delay_seconds=1)]),
    "cancel": lambda ledger, lease: ledger.cancel("a"),
    "reap": lambda ledger, lease: ledger.reap(budget=3),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("state", [state for state in RunState if state is not S.HELD])
async def test_no_operation_moves_a_run_against_the_table(
    ledger: Ledger, clock: Clock, state: RunState, operation: str
) -> None:
    lease = await _into(ledger, state, clock)
    assert await state_of(ledger, "a") is state
    await OPERATIONS[operation](ledger, lease)  # type: ignore[misc]
    after = await state_of(ledger, "a")
    assert after is state or after in TRANSITIONS[state]
    assert present(ledger) == {after: 1}


# -- reap


@pytest.mark.parametrize(
    ("on_interrupt", "interruptions", "cancel_requested", "verdict"),
    [
        ("retry", 1, False, "again"),
        ("retry", 3, False, "again"),
        ("retry", 4, False, "interrupted"),
        ("fail", 1, False, "interrupted"),
        ("retry", 1, True, "cancelled"),
        ("fail", 9, True, "cancelled"),
    ],
)
def test_after_interruption(on_interrupt, interruptions, cancel_requested, verdict) -> None:  # type: ignore[no-untyped-def]
    assert after_interruption(on_interrupt, interruptions, 3, cancel_requested) == verdict


async def test_reap_settles_what_a_dead_owner_left(ledger: Ledger, clock: Clock) -> None:
    await ledger.submit([spec("again"), spec("once", on_interrupt="fail"), spec("stopped"), spec("ended")])
    leases = {lease.run_id: lease for lease in await ledger.claim(9)}
    await ledger.submit([spec("queued")])
    await ledger.cancel("stopped")
    await ledger.finish([(leases["ended"], ended())])
    clock.now += 30
    assert await ledger.reap(budget=3) == 3
    again, once, stopped = [await ledger.get(run_id) for run_id in ("again", "once", "stopped")]
    assert again is not None
    assert once is not None
    assert stopped is not None
    assert (again.state, again.reason, again.interruptions, again.failures) == (S.QUEUED, "interrupted", 1, 0)
    assert (once.state, once.reason) == (S.FAILED, "interrupted")
    assert (stopped.state, stopped.reason) == (S.FAILED, "cancelled")
    assert once.result is not None
    assert (once.result.started_at, once.result.completed_at, once.result.attempts) == (START, START + 30, 1)
    assert await ledger.finish([(leases["again"], ended())]) == [False]
    assert await ledger.reap(budget=3) == 0


async def test_the_interruption_after_the_budget_fails_the_run(ledger: Ledger) -> None:
    await ledger.submit([spec("a")])
    for _ in range(3):
        await ledger.claim(1)
        assert await ledger.reap(budget=3) == 1
        assert await state_of(ledger, "a") is S.QUEUED
    await ledger.claim(1)
    await ledger.reap(budget=3)
    run = await ledger.get("a")
    assert run is not None
    assert (run.state, run.reason, run.attempt) == (S.FAILED, "interrupted", 4)


async def test_reap_goes_on_until_nothing_is_left(ledger: Ledger) -> None:
    many = sqlite_ledger.REAP_BATCH * 2 + 1
    await ledger.submit([spec(f"r{n}") for n in range(many)])
    await ledger.claim(many)
    assert await ledger.reap(budget=3) == many
    assert present(ledger) == {S.QUEUED: many}
