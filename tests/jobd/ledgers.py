"""The ledgers under test, and the runs that their tests are about."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from craft_easy_jobd.ledger import Lease, Ledger, Result, RunSpec
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.states import RunState

START = 1_700_000_000.0
# With a fraction that a result must show.
STARTED = 1_770_000_000.25


class Clock:
    """Unix seconds that move only when a test says so."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


# A second implementation is one more line; all that is asked of a ledger is asked of it as well.
IMPLEMENTATIONS: dict[str, Callable[[Path, Clock], Ledger]] = {
    "sqlite": lambda folder, clock: SqliteLedger(folder / "ledger.db", clock=clock),
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Callable[[], Ledger]:
    """Ledgers on one and the same store."""
    return lambda: request.param(tmp_path, clock)


L = TypeVar("L", bound=Ledger)


@asynccontextmanager
async def opened(ledger: L) -> AsyncIterator[L]:
    """Closed whatever happens: an open ledger keeps its process alive."""
    try:
        await ledger.open()
        yield ledger
    finally:
        await ledger.close()


@pytest.fixture
async def ledger(make: Callable[[], Ledger]) -> AsyncIterator[Ledger]:
    async with opened(make()) as ledger:
        yield ledger


def spec(run_id: str, **fields: object) -> RunSpec:
    return RunSpec(run_id=run_id, job="settle", **fields)  # type: ignore[arg-type]


def ended(state: RunState = RunState.COMPLETED, reason: str | None = None, attempts: int = 1) -> Result:
    return Result(state, reason, b'{"processed":42}', None, START, START + 2, attempts, 0.5, 1 << 20, "w1", "v1")


async def started(ledger: Ledger, run_id: str = "a", **fields: object) -> Lease:
    await ledger.submit([spec(run_id, **fields)])
    (lease,) = await ledger.claim(1, isolation=fields.get("isolation", "shared"))  # type: ignore[arg-type]
    return lease


async def state_of(ledger: Ledger, run_id: str) -> RunState:
    run = await ledger.get(run_id)
    assert run is not None
    return run.state


def present(ledger: Ledger) -> dict[RunState, int]:
    assert set(ledger.counts) == set(RunState)
    return {state: runs for state, runs in ledger.counts.items() if runs}
