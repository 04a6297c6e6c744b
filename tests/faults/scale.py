"""How much of the fault suite is run, from which seed, and what came of it.

Environment: CRAFT_EASY_FAULTS=torture runs all of it; CRAFT_EASY_FAULTS_SEED=NUMBER repeats the choices of an earlier
run. Both forms print the seed. Several processes that share the tests have one seed: they inherit it.
"""

import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

T = TypeVar("T")
R = TypeVar("R")

TORTURE = os.environ.get("CRAFT_EASY_FAULTS") == "torture"
SEED = int(os.environ.get("CRAFT_EASY_FAULTS_SEED") or random.SystemRandom().randrange(2**32))
os.environ["CRAFT_EASY_FAULTS_SEED"] = str(SEED)
# Daemons side by side: a fault test waits for disks and ends of processes half of its time.
LANES = max(2, os.cpu_count() or 2) + 1

# What a test wants to be said at the end of the run, and under which name its report carries it.
figures: list[str] = []
FIGURE = "fault figure"

whole = pytest.mark.timeout(7200 if TORTURE else 90)


def scaled(short: int, torture: int) -> int:
    """How many of something."""
    return torture if TORTURE else short


def chance(name: str) -> random.Random:
    """The choices of one part of the suite: the same for the same seed, whatever else runs."""
    return random.Random(f"{SEED} {name}")


def side_by_side(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """What `work` returns for each item, in their order."""
    with ThreadPoolExecutor(LANES) as threads:
        return list(threads.map(work, items))
