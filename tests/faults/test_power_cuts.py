"""The power goes while requests come in and results go out; what was acknowledged before is there after it."""

import pytest

from tests.faults.book import workplace
from tests.faults.mounts import disk, require_mounts
from tests.faults.power import PowerCuts
from tests.faults.scale import LANES, figures, scaled, side_by_side, whole

pytestmark = [whole, pytest.mark.usefixtures("_mounts")]

CUTS = scaled(20, 500)


@pytest.fixture(scope="module")
def _mounts() -> None:
    require_mounts()


def cut_again_and_again(number: int) -> tuple[int, list[str]]:
    with disk(64) as made, workplace() as notes:
        cuts = PowerCuts(number, made, notes)
        try:
            for _ in range(CUTS // LANES + 1):
                if wrong := cuts.cycle():
                    return len(cuts.book.owed), wrong
            return len(cuts.book.owed), cuts.settle()
        finally:
            cuts.close()


def test_power_cuts_lose_double_and_tear_nothing() -> None:
    outcomes = side_by_side(cut_again_and_again, range(LANES))
    owed = sum(requests for requests, _ in outcomes)
    wrong = [each for _, lane_wrong in outcomes for each in lane_wrong]
    cuts = LANES * (CUTS // LANES + 1)
    figures.append(f"power cuts: {cuts}, {owed} requests acknowledged before them, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)
