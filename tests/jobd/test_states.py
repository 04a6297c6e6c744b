"""The states of a run, and the drawing of them."""

import re
from pathlib import Path

from craft_easy_jobd.states import ACTIVE, FINAL, TRANSITIONS, WAITING, RunState, sources

DRAWING = re.compile(r"^    (\w+) --> (\w+)$", re.MULTILINE)


def test_the_drawing_in_the_architecture_is_the_table() -> None:
    drawn = set(DRAWING.findall((Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()))
    assert drawn == {(str(state), str(target)) for state, targets in TRANSITIONS.items() for target in targets}


def test_every_state_is_in_exactly_one_set() -> None:
    assert sorted([*WAITING, *ACTIVE, *FINAL]) == sorted(RunState)


def test_only_a_claim_makes_a_run_active() -> None:
    assert sources(RunState.RUNNING) == {RunState.QUEUED}
    assert sources(RunState.STOPPING) == {RunState.RUNNING}


def test_a_completed_run_stays_completed() -> None:
    assert TRANSITIONS[RunState.COMPLETED] == frozenset()
