"""Each call of the supervisor on the durable path is its last one, or fails; recovery must make it good."""

import shutil
from collections import Counter, defaultdict
from itertools import chain, zip_longest

import pytest

from tests.faults.points import PARTS, Fault, Point, scene
from tests.faults.scale import TORTURE, chance, figures, side_by_side, whole

pytestmark = [whole, pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")]

SHORT_FORM = 20
SHORT_FAULTS = [Fault("KILL"), Fault("EIO"), Fault("ENOSPC")]
ALL_FAULTS = [*SHORT_FAULTS, Fault("EROFS"), Fault("EDQUOT"), Fault("ENOSPC", lasting=True)]

Case = tuple[Point, Fault]


def found(part: str) -> list[Point]:
    with scene() as life:
        return life.calls(part)


def spread(cases: list[Case], number: int) -> list[Case]:
    """As many cases, from all parts, calls and faults alike."""
    kinds: defaultdict[tuple[str, str, str], list[Case]] = defaultdict(list)
    chance("points").shuffle(cases)
    for point, fault in cases:
        kinds[point.part, point.call, fault.kind].append((point, fault))
    turns = chain.from_iterable(zip_longest(*kinds.values()))
    return [case for case in turns if case is not None][:number]


def tried(case: Case) -> tuple[list[str], bool]:
    with scene() as life:
        return life.wrong(*case)[:40], life.reached


def test_no_crash_point_loses_doubles_tears_or_leaves_anything() -> None:
    points = list(chain.from_iterable(side_by_side(found, list(PARTS))))
    cases = [(point, fault) for point in points for fault in (ALL_FAULTS if TORTURE else SHORT_FAULTS)]
    chosen = cases if TORTURE else spread(list(cases), SHORT_FORM)
    outcomes = side_by_side(tried, chosen)
    reached = sum(was_reached for _, was_reached in outcomes)
    bad = [wrong for wrong, _ in outcomes if wrong]
    kinds = Counter(fault.kind for _, fault in chosen)
    figures.append(f"crash points: {len(chosen)} of {len(cases)} {dict(kinds)}, {reached} reached, {len(bad)} wrong")
    assert not bad, "\n".join(chain.from_iterable(bad))
    assert reached >= len(chosen) / 2
