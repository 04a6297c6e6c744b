"""What comes through of a storm."""

import pytest

from craft_easy_jobs import thinning
from craft_easy_jobs.thinning import Thinning


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(thinning.time, "monotonic", lambda: now[0])
    return now


def test_a_burst_comes_through_and_then_the_rate(clock: list[float]) -> None:
    storm = Thinning(rate=5)
    assert sum(storm.passes() for _ in range(200)) == 50
    assert storm.told() == 150
    for _ in range(3):
        clock[0] += 1.0
        assert sum(storm.passes() for _ in range(200)) == 5
    assert (storm.left_out, storm.told(), storm.left_out) == (585, 585, 0)


def test_quiet_fills_the_burst_again_and_no_further(clock: list[float]) -> None:
    storm = Thinning(rate=5)
    assert sum(storm.passes() for _ in range(51)) == 50
    clock[0] += 1000.0
    assert sum(storm.passes() for _ in range(200)) == 50
