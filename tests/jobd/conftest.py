"""What tests of several parts of the daemon start from."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from craft_easy_jobd.containment import adopt_orphans
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from tests.jobd.ledgers import STARTED, opened


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    async with opened(SqliteLedger(tmp_path / "ledger.db", clock=lambda: STARTED)) as ledger:
        yield ledger


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def adopting() -> Iterator[None]:
    adopt_orphans()
    yield
    adopt_orphans(adopt=False)
