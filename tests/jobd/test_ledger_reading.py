"""What every ledger tells of its runs, and that it keeps them."""

import asyncio
import json
from collections.abc import Callable

import pytest

from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.ledger import Again, Ledger, LogChunk, RunSpec
from craft_easy_jobd.states import RunState
from tests.jobd import ledgers
from tests.jobd.ledgers import START, ended, opened, spec, started

S = RunState
clock, make, ledger = ledgers.clock, ledgers.make, ledgers.ledger


# -- log


async def test_the_log_of_all_attempts_in_order(ledger: Ledger) -> None:
    first = await started(ledger)
    chunks = [
        LogChunk("a", 1, b'{"n":1},{"n":2}', 2, 1),
        LogChunk("a", 1, b'{"n":3}', 1, 0),
        LogChunk("a", 1, b"", 0, 0),
    ]
    await ledger.log(chunks)
    await ledger.retry([Again(first, "exception", None)])
    await ledger.claim(1)
    await ledger.log([LogChunk("a", 2, b'{"n":4},{"n":5}', 2, 2), LogChunk("nobody", 1, b'{"n":9}', 1, 0)])
    run = await ledger.get("a")
    assert run is not None
    assert (run.log_count, run.warnings) == (5, 3)

    async def numbers(after: int = 0, limit: int = 1000) -> tuple[list[int], int]:
        entries, upto = await ledger.read_log("a", after=after, limit=limit)
        return [entry["n"] for entry in json.loads(entries)], upto

    assert await numbers() == ([1, 2, 3, 4, 5], 5)
    assert await numbers(limit=1) == ([1, 2], 2)
    assert await numbers(after=2, limit=2) == ([3, 4, 5], 5)
    assert await numbers(after=1, limit=2) == ([2, 3], 3)
    assert await numbers(after=4) == ([5], 5)
    assert await numbers(after=5) == ([], 5)
    assert await ledger.read_log("nobody") == (b"[]", 0)


async def test_a_log_ends_with_its_attempt(ledger: Ledger) -> None:
    """What came after the end would be missing from the result file."""
    lease = await started(ledger)
    await ledger.finish([(lease, ended())])
    await ledger.log([LogChunk("a", lease.token, b'{"n":1}', 1, 0)])
    assert await ledger.read_log("a") == (b"[]", 0)


# -- find


async def test_find_filters_and_pages(ledger: Ledger) -> None:
    for n in range(10):
        fields = {"tenant_id": f"t{n % 2}", "parent_run_id": "p" if n > 7 else None}
        await ledger.submit([RunSpec(run_id=f"r{n}", job=f"j{n % 3}", **fields)])  # type: ignore[arg-type]
    await ledger.finish(
        [(lease, ended(S.FAILED if lease.run_id == "r1" else S.COMPLETED)) for lease in await ledger.claim(4)]
    )
    await ledger.claim(1)

    async def names(**wanted: object) -> list[str]:
        return [run.spec.run_id for run in await ledger.find(**wanted)]  # type: ignore[arg-type]

    assert await names() == [f"r{n}" for n in range(9, -1, -1)]
    assert await names(job="j0") == ["r9", "r6", "r3", "r0"]
    assert await names(tenant="t1", limit=2) == ["r9", "r7"]
    assert await names(parent="p") == ["r9", "r8"]
    assert await names(states=[S.FAILED]) == ["r1"]
    assert await names(states=[S.FAILED, S.RUNNING]) == ["r4", "r1"]
    assert await names(states=[S.QUEUED], job="j1") == ["r7"]
    assert await names(job="none") == []
    assert await names(limit=0) == []
    page = await ledger.find(limit=4)
    assert await names(after=page[-1].seq, limit=3) == ["r5", "r4", "r3"]
    assert await ledger.get("none") is None


# -- publishing


async def test_what_has_ended_is_unpublished_until_it_is_marked(ledger: Ledger) -> None:
    await ledger.submit([spec("a"), spec("b"), spec("c")])
    leases = await ledger.claim(2)
    await ledger.log([LogChunk("a", 1, b'{"n":1}', 1, 0), LogChunk("a", 1, b'{"n":2}', 1, 0)])
    await ledger.finish([(lease, ended()) for lease in reversed(leases)])
    a, b = await ledger.unpublished(limit=9)
    assert (a.run.spec.run_id, a.logs, a.run.result) == ("a", b'[{"n":1},{"n":2}]', ended())
    assert (b.run.spec.run_id, b.logs) == ("b", b"[]")
    assert [one.run.seq for one in await ledger.unpublished(limit=1)] == [a.run.seq]
    await ledger.mark_published([a.run.end])
    await ledger.mark_published([a.run.end])
    assert [one.run.seq for one in await ledger.unpublished(limit=9)] == [b.run.seq]
    run = await ledger.get("a")
    assert run is not None
    assert run.published is True


# -- open and close


async def test_everything_is_there_after_close_and_open(make: Callable[[], Ledger]) -> None:
    async with opened(make()) as first:
        await started(first, "a")
        await first.log([LogChunk("a", 1, b'{"n":1}', 1, 1)])
        before = await first.get("a")
        closing = first.submit([spec("b", not_before=START + 7), spec("c")])
    assert len(await closing) == 2
    async with opened(make()) as second:
        assert (second.counts, second.next_due) == (first.counts, START + 7)
        assert await second.get("a") == before
        assert await second.read_log("a") == (b'[{"n":1}]', 1)
        assert [lease.run_id for lease in await second.claim(1)] == ["c"]


async def test_a_closed_ledger_says_so(make: Callable[[], Ledger]) -> None:
    ledger = make()
    await ledger.close()
    ledger = make()
    await ledger.open()
    await asyncio.gather(ledger.close(), ledger.close())
    await ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        await ledger.submit([spec("a")])
    with pytest.raises(LedgerError, match="closed"):
        await ledger.get("a")
