"""Fan-outs and chains as decisions: a brute-force model says what chains must do; ids of children never meet."""

import re
from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from craft_easy_jobs.chaining import ChainStep
from craft_easy_jobs.families import Advance, StepFacts, advance, chain_table, child_run_id, fan_out_table, withdrawn
from craft_easy_jobs.model import RUN_ID_PATTERN

POLICIES = ("stop", "continue", "retry")


class Scenario(NamedTuple):
    """A chain and its fate: outcomes of each step's tries, who ends first, how many end at once, when a stop comes.

    `delay`: for so many turns a try that may start waits for its time or for a slot.
    """

    steps: list[ChainStep]
    outcomes: dict[str, list[bool]]
    delay: dict[str, list[int]]
    speed: dict[str, int]
    batch: int
    stop_after: int | None


class Story(NamedTuple):
    starts: list[str]
    completed: set[str]
    failed: set[str]
    skipped: set[str]
    ended: str | None


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    names = [f"s{number}" for number in range(draw(st.integers(1, 7)))]
    steps = [
        ChainStep(
            name,
            depends_on=[earlier for earlier in names[:index] if draw(st.booleans())],
            on_failure=draw(st.sampled_from(POLICIES)),  # type: ignore[arg-type]
            retries=draw(st.integers(0, 2)),
        )
        for index, name in enumerate(names)
    ]
    often = st.sampled_from([True, True, True, False])
    return Scenario(
        draw(st.permutations(steps)),
        {name: draw(st.lists(often, min_size=3, max_size=3)) for name in names},
        {name: draw(st.lists(st.integers(0, 2), min_size=3, max_size=3)) for name in names},
        dict(zip(names, draw(st.permutations(range(len(names)))), strict=True)),
        draw(st.integers(1, 3)),
        draw(st.none() | st.integers(0, 8)),
    )


def told(scenario: Scenario) -> Story:
    """What `advance` makes of it, driven as a runner drives it."""
    steps, outcomes, delay, speed, batch, stop_after = scenario
    facts: dict[str, StepFacts] = {}
    starts: list[str] = []
    patience: dict[str, int] = {}
    for turn in range(100):
        stopping = stop_after is not None and turn >= stop_after
        moves = advance(steps, facts, stopping=stopping)
        for job in [*moves.start, *moves.again]:
            facts[job] = StepFacts("due", facts[job].tries + 1 if job in facts else 1)
            patience[job] = delay[job][facts[job].tries - 1]
        for job in moves.withdraw:
            facts[job] = withdrawn(facts[job])
        for job in moves.skip:
            facts[job] = StepFacts("skipped", 0)
        due = sorted(job for job, fact in facts.items() if fact.state == "due")
        for job in due:
            if patience[job] == 0:
                facts[job] = facts[job]._replace(state="running")
                starts.append(job)
            patience[job] -= 1
        running = [job for job, fact in facts.items() if fact.state == "running"]
        assert (moves.ended is None) == bool(due or running)
        if moves.ended:
            assert advance(steps, facts, stopping=stopping) == Advance([], [], [], [], moves.ended)
            by_state: dict[str, set[str]] = {"completed": set(), "failed": set(), "skipped": set()}
            for job, fact in facts.items():
                by_state[fact.state].add(job)
            return Story(starts, *by_state.values(), moves.ended)
        for job in sorted(running, key=speed.__getitem__)[:batch]:
            tries = facts[job].tries
            facts[job] = StepFacts("completed" if outcomes[job][tries - 1] else "failed", tries)
    raise AssertionError("the chain does not end")


def modelled(scenario: Scenario) -> Story:
    """The rules of a chain in the words of the issue, without any of the product's code."""
    steps, outcomes, delay, speed, batch, stop_after = scenario
    policy = {step.job: step.on_failure for step in steps}
    starts: list[str] = []
    over: dict[str, bool] = {}
    running: list[str] = []
    soon: dict[str, int] = {}
    repeat: list[str] = []
    broken, turn = False, 0
    while True:
        stopped = stop_after is not None and turn >= stop_after
        if not broken and not stopped:
            for step in steps:
                free = all(over.get(name) or (name in over and policy[name] == "continue") for name in step.depends_on)
                if step.job not in [*starts, *soon] and free:
                    soon[step.job] = delay[step.job][0]
            soon.update({job: delay[job][starts.count(job)] for job in repeat})
        else:
            # Nothing more begins: what was to be tried again has failed, what was never tried is passed over.
            over.update({job: False for job in [*repeat, *soon] if job in starts})
            soon.clear()
        begin = sorted(job for job, turns in soon.items() if turns == 0)
        soon = {job: turns - 1 for job, turns in soon.items() if turns > 0}
        starts += begin
        running += begin
        if not running and not soon:
            break
        turn += 1
        running.sort(key=lambda job: speed[job])
        ending, running = running[:batch], running[batch:]
        fates = {job: outcomes[job][starts.count(job) - 1] for job in ending}
        left = {step.job: step.retries + 1 - starts.count(step.job) for step in steps}
        repeat = [step.job for step in steps if fates.get(step.job) is False and policy[step.job] == "retry"]
        repeat = [job for job in repeat if left[job] > 0]
        for job, good in fates.items():
            if job not in repeat:
                over[job] = good
                broken = broken or (not good and policy[job] != "continue")
    completed = {job for job, good in over.items() if good}
    never = {step.job for step in steps} - set(starts)
    return Story(starts, completed, set(over) - completed, never, "failed" if broken or stopped else "completed")


@settings(max_examples=1000, deadline=None)
@given(scenarios())
def test_chains_do_what_the_model_does(scenario: Scenario) -> None:
    assert told(scenario) == modelled(scenario)


def facts(**states: Any) -> dict[str, StepFacts]:
    return {job: StepFacts(state, 0 if state in ("waiting", "skipped") else 1) for job, state in states.items()}


MONTH_END = [
    ChainStep("settlement"),
    ChainStep("invoicing", depends_on=["settlement"]),
    ChainStep("reporting", depends_on=["invoicing"], on_failure="continue"),
    ChainStep("archive", depends_on=["reporting"], on_failure="retry", retries=1),
]


@pytest.mark.parametrize(
    ("states", "moves"),
    [
        ({}, Advance(["settlement"], [], [], [], None)),
        ({"settlement": "running"}, Advance([], [], [], [], None)),
        ({"settlement": "completed"}, Advance(["invoicing"], [], [], [], None)),
        ({"settlement": "failed"}, Advance([], [], [], ["invoicing", "reporting", "archive"], "failed")),
        (
            {"settlement": "completed", "invoicing": "completed", "reporting": "failed"},
            Advance(["archive"], [], [], [], None),
        ),
        (
            {"settlement": "completed", "invoicing": "completed", "reporting": "failed", "archive": "failed"},
            Advance([], ["archive"], [], [], None),
        ),
        (
            {"settlement": "completed", "invoicing": "completed", "reporting": "failed", "archive": "completed"},
            Advance([], [], [], [], "completed"),
        ),
    ],
)
def test_the_moves_of_a_month_end(states: dict[str, str], moves: Advance) -> None:
    assert advance(MONTH_END, facts(**states)) == moves


def test_a_stop_lets_what_runs_finish_and_skips_the_rest() -> None:
    moves = advance(MONTH_END, facts(settlement="running"), stopping=True)
    assert moves == Advance([], [], [], ["invoicing", "reporting", "archive"], None)
    assert advance(MONTH_END, facts(settlement="completed"), stopping=True).ended == "failed"


def test_what_has_not_begun_when_a_step_stops_the_chain_is_withdrawn() -> None:
    steps = [ChainStep("side", on_failure="retry", retries=2), ChainStep("first"), ChainStep("slow")]
    known = {"side": StepFacts("due", 2), "first": StepFacts("failed", 1), "slow": StepFacts("due", 1)}
    moves = advance(steps, known)
    assert moves == Advance([], [], ["side", "slow"], [], "failed")
    assert [withdrawn(known[job]) for job in moves.withdraw] == [StepFacts("failed", 1), StepFacts("skipped", 0)]


# Short texts of few letters, that hashing and joining could confuse, and all others.
PARTS = st.text("ab.0_", max_size=4) | st.text() | st.text("0123456789abcdef", min_size=16, max_size=16)
PARENTS = st.from_regex(RUN_ID_PATTERN, fullmatch=True) | st.text("ab", min_size=105, max_size=128)


@settings(max_examples=500, deadline=None)
@given(PARENTS, PARTS)
def test_a_childs_id_is_a_run_id_and_always_the_same(parent: str, part: str) -> None:
    child = child_run_id(parent, part)
    assert re.match(RUN_ID_PATTERN, child)
    assert child == child_run_id(parent, part)


@settings(max_examples=500, deadline=None)
@given(PARENTS, PARTS, PARTS)
@example("run", "é", child_run_id("run", "é").rpartition(".")[2])
def test_two_children_never_have_one_id(parent: str, one: str, other: str) -> None:
    assert (child_run_id(parent, one) == child_run_id(parent, other)) == (one == other)


def test_ids_are_readable_where_they_can_be() -> None:
    assert child_run_id("run-1", "acme_2") == "run-1.acme_2"
    assert re.fullmatch(r"run-1\.[0-9a-f]{16}", child_run_id("run-1", "acme corp"))
    # Otherwise the step `a.b` would be taken for the tenant `b` of the step `a`.
    assert child_run_id(child_run_id("run-1", "a"), "b") != child_run_id("run-1", "a.b")
    long = "x" * 126
    assert child_run_id(long + "1", "a") != child_run_id(long + "2", "a")


def test_ten_thousand_tenants_have_ten_thousand_ids() -> None:
    ids = Counter(child_run_id("x" * 128, f"tenant {number}") for number in range(10_000))
    assert len(ids) == 10_000


def test_the_tables_of_results() -> None:
    rows = [("b", "completed", None, "r.b", 1.5), ("a", "failed", "timed_out", "r.a", 2.0)]
    assert fan_out_table(rows) == {
        "counts": {"completed": 1, "failed": 1},
        "tenants": {
            "b": {"status": "completed", "reason": None, "run_id": "r.b", "duration_seconds": 1.5},
            "a": {"status": "failed", "reason": "timed_out", "run_id": "r.a", "duration_seconds": 2.0},
        },
    }
    assert fan_out_table([]) == {"counts": {"completed": 0, "failed": 0}, "tenants": {}}
    assert chain_table([("x", "skipped", "upstream_failed", None, None)]) == {
        "steps": {"x": {"status": "skipped", "reason": "upstream_failed", "run_id": None, "duration_seconds": None}}
    }
