"""chain(): what it registers, what it refuses, and the order of its steps."""

from typing import Any

import pytest

from craft_easy_jobs import Chain, ChainStep, chain
from craft_easy_jobs.chaining import chains, start_order, unregistered
from craft_easy_jobs.errors import DefinitionError

pytestmark = pytest.mark.usefixtures("fresh_registry")


def steps(**needs: str) -> list[ChainStep]:
    """`steps(a="", b="a")`: b depends on a."""
    return [ChainStep(job=job, depends_on=names.split()) for job, names in needs.items()]


def test_a_step_has_the_specified_defaults() -> None:
    step = ChainStep("a")
    assert (step.job, step.params, step.depends_on) == ("a", {}, [])
    assert (step.on_failure, step.retries, step.retry_delay_seconds) == ("stop", 0, 60)
    assert ChainStep("a").params is not step.params


def test_a_chain_is_registered() -> None:
    made = chain("close", "Month end", steps(a="", b="a"))
    assert isinstance(made, Chain)
    assert (made.name, made.description, [step.job for step in made.steps]) == ("close", "Month end", ["a", "b"])
    assert chains == {"close": made}
    assert made.source.startswith(__file__)


@pytest.mark.parametrize(
    ("needs", "order"),
    [
        ({"a": "", "b": "a", "c": "b"}, ["a", "b", "c"]),
        ({"c": "b", "b": "a", "a": ""}, ["a", "b", "c"]),
        ({"x": "", "c": "", "a": "c"}, ["x", "c", "a"]),
        ({"a": "c", "b": "", "c": ""}, ["b", "c", "a"]),
        ({"last": "b c", "c": "a", "b": "a", "a": ""}, ["a", "c", "b", "last"]),
    ],
)
def test_steps_start_in_order_of_dependencies_and_declaration(needs: dict[str, str], order: list[str]) -> None:
    assert start_order(chain("c", steps=steps(**needs))) == order


def test_steps_without_a_registered_job_are_found() -> None:
    assert unregistered(chain("c", steps=steps(a="", b="a", d="")), {"b": 1}) == ["a", "d"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (steps(a="b"), "chain 'c': step 'a' depends on 'b', which is no step of it"),
        (steps(a="", b="x a y"), "step 'b' depends on 'x', 'y', which"),
        (steps(a="a"), "step 'a' depends on itself"),
        ([ChainStep("a"), ChainStep("a")], "job 'a' is a step twice"),
        (steps(a="b", b="a"), "steps wait for each other: "),
        ([], "steps must be a list of ChainStep, not empty"),
        ("a", "steps must be a list of ChainStep"),
        (["a"], "step 1 must be a ChainStep, not 'a'"),
        ([ChainStep("")], "job of step 1 must be a non-empty string"),
        ([ChainStep("a", params=[])], "step 'a': params must be a dict"),  # type: ignore[arg-type]
        ([ChainStep("a", depends_on="b")], "depends_on must be a list of job names"),  # type: ignore[arg-type]
        ([ChainStep("a", on_failure="ignore")], "on_failure must be one of 'stop', 'continue', 'retry', not 'ignore'"),  # type: ignore[arg-type]
        ([ChainStep("a", retries=-1)], "retries must be a whole number"),
        ([ChainStep("a", retries=True)], "retries must be a whole number"),
        ([ChainStep("a", retry_delay_seconds=0.5)], "retry_delay_seconds must be a whole number"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_chain_is_refused(given: Any, told: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        chain("c", steps=given)
    assert str(caught.value).startswith("chain 'c'")
    assert told in str(caught.value)
    assert not chains


def test_a_cycle_is_named() -> None:
    with pytest.raises(
        DefinitionError, match=r"wait for each other: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)$"
    ):
        chain("c", steps=steps(start="", a="c", b="a", c="b"))


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_a_chain_needs_a_name(name: Any) -> None:
    with pytest.raises(DefinitionError, match="chain: name must be a non-empty string"):
        chain(name, steps=steps(a=""))


def test_a_name_is_given_once_but_may_be_imported_twice() -> None:
    for _ in range(2):
        chain("c", steps=steps(a=""))
    with pytest.raises(DefinitionError, match=r"chain 'c' at .*:\d+ is already registered by .*:\d+; names must be"):
        chain("c", steps=steps(a=""))


def test_a_description_is_text() -> None:
    with pytest.raises(DefinitionError, match="description must be a string, not 3"):
        chain("c", 3, steps(a=""))  # type: ignore[arg-type]
