"""An alarm rings at its time: not before, and not a second late because a timer was early."""

import asyncio
import time

import pytest

from craft_easy_jobd import alarm as alarm_module
from craft_easy_jobd.alarm import Alarm


class Wall:
    """A wall clock that is behind the loop's clock by `behind` seconds."""

    behind = 0.0

    def time(self) -> float:
        return time.time() - self.behind


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(alarm_module, "time", wall)
    return wall


async def rung_at(alarm_set: float, wall: Wall, *, falls_behind: float = 0.0) -> float:
    """How long after its time an alarm rang."""
    rang = asyncio.Event()
    alarm = Alarm(rang.set)
    due = wall.time() + alarm_set
    alarm.set(due)
    wall.behind += falls_behind
    await asyncio.wait_for(rang.wait(), 20)
    return wall.time() - due


@pytest.mark.parametrize("after", [-5.0, 0.0, 0.0004, 0.0317, 0.2])
async def test_it_rings_when_its_time_has_come(wall: Wall, after: float) -> None:
    assert await rung_at(after, wall) >= 0


@pytest.mark.parametrize("early", [0.0003, 0.0009, 0.05])
async def test_a_timer_that_is_early_is_set_again(wall: Wall, early: float) -> None:
    assert await rung_at(0.1, wall, falls_behind=early) >= 0


async def test_it_rings_once_for_the_last_time_that_it_was_set_to(wall: Wall) -> None:
    rings: list[float] = []
    alarm = Alarm(lambda: rings.append(wall.time()))
    now = wall.time()
    for due in (now + 30, now + 0.05, now + 0.05, None, now + 0.1):
        alarm.set(due)
    last = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, last.set)
    await asyncio.wait_for(last.wait(), 20)
    assert len(rings) == 1
    assert rings[0] >= now + 0.1


async def test_it_rings_once_for_the_same_time_until_it_is_looked_at_again(wall: Wall) -> None:
    """Who has no room for what is due sets it again and again, and must not be rung all the time."""
    rings = 0

    def ring() -> None:
        nonlocal rings
        rings += 1
        alarm.set(due)

    alarm = Alarm(ring)
    due = wall.time() + 0.05
    for expected in (1, 2):
        alarm.set(None)
        alarm.set(due)
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, over.set)
        await asyncio.wait_for(over.wait(), 20)
        assert rings == expected
