"""chain(): declare jobs that follow each other. Their order is pure arithmetic; nothing here runs a job."""

import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Literal

from craft_easy_jobs.errors import (
    DefinitionError,
    ParamsError,
    RequestError,
    TenantError,
    UnknownJobError,
    did_you_mean,
)

if TYPE_CHECKING:
    from craft_easy_jobs.definition import JobOptions

OnFailure = Literal["stop", "continue", "retry"]
ON_FAILURE = ("stop", "continue", "retry")


@dataclass
class ChainStep:
    """One job of a chain.

    Attributes:
        depends_on: names of jobs of the same chain that must succeed first.
        on_failure: `stop` ends the chain, `continue` goes on without this step, `retry` runs the step again.
        retries: how often `retry` does so, each time after `retry_delay_seconds`.
    """

    job: str
    params: dict[str, Any] = field(default_factory=dict)
    depends_on: list[str] = field(default_factory=list)
    on_failure: OnFailure = "stop"
    retries: int = 0
    retry_delay_seconds: int = 60


@dataclass(frozen=True)
class Chain:
    """A declared chain; `source` is the place of its declaration (`file:line`)."""

    name: str
    description: str
    steps: tuple[ChainStep, ...]
    source: str = field(default="", compare=False)


chains: dict[str, Chain] = {}


def chain(name: str, description: str = "", steps: Sequence[ChainStep] = ()) -> Chain:
    """Declare and register a chain; steps without `depends_on` may start at once.

    Raises:
        DefinitionError: a wrong type or value, a job twice, a dependency that is no step, a cycle, or a taken name.
    """
    _require(isinstance(name, str) and bool(name.strip()), f"chain: name must be a non-empty string, not {name!r}")
    where = f"chain {name!r}"
    _require(isinstance(description, str), f"{where}: description must be a string, not {description!r}")
    _require(isinstance(steps, list | tuple) and bool(steps), f"{where}: steps must be a list of ChainStep, not empty")
    for number, step in enumerate(steps, 1):
        _require(isinstance(step, ChainStep), f"{where}: step {number} must be a ChainStep, not {step!r}")
        _check_step(where, number, step)
    _check_dependencies(where, steps)
    # The caller's line tells a second chain of this name from the same module imported twice.
    caller = sys._getframe(1)
    return _register(Chain(name, description, tuple(steps), f"{caller.f_code.co_filename}:{caller.f_lineno}"))


def start_order(chain: Chain) -> list[str]:
    """Job names in an order that respects all dependencies; steps that are ready together keep their declared order."""
    return list(_sorter(chain.steps).static_order())


def unregistered(chain: Chain, registry: Container[str]) -> list[str]:
    """The steps' jobs that are not in the registry."""
    return [step.job for step in chain.steps if step.job not in registry]


def find_chain(name: str, declared: Mapping[str, Chain]) -> Chain:
    """The chain of this name.

    Raises:
        RequestError: there is none.
    """
    if name not in declared:
        raise RequestError("chain", f"unknown chain {name!r}; {did_you_mean(name, list(declared), 'registered')}")
    return declared[name]


def merged_params(params: Mapping[str, Any], step: ChainStep) -> dict[str, Any]:
    """The params of a step's run: the request's, overlaid by the step's own."""
    return {**params, **step.params}


def check_plan(
    chain: Chain,
    params: Mapping[str, Any],
    jobs: "Mapping[str, JobOptions]",
    check: Callable[[str, dict[str, Any]], None],
) -> None:
    """Refuse a chain that could not run to its end, before anything starts.

    Args:
        params: the request's.
        check: raises ParamsError or RequestError when a job, by its name, does not take these params.

    Raises:
        RequestError: its field names the step: `steps.JOB.job`, `steps.JOB.params.period`.
    """
    for step in chain.steps:
        with naming_step(step.job):
            if step.job not in jobs:
                raise RequestError("job", str(UnknownJobError(step.job, list(jobs))))
            check(step.job, merged_params(params, step))


@contextmanager
def naming_step(job: str) -> Iterator[None]:
    """Turn what is refused for a step of a chain into a RequestError whose field names the step."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"steps.{job}.{error.field}", error.problem) from None
    except ParamsError as error:
        first, *others = error.problems
        texts = [first.message, *(f"{problem.path}: {problem.message}" for problem in others)]
        raise RequestError(f"steps.{job}.{first.path}", "; ".join(texts)) from None
    except TenantError as error:
        raise RequestError(f"steps.{job}.tenant_id", str(error)) from None


def _register(new: Chain) -> Chain:
    earlier = chains.get(new.name)
    if earlier is not None and earlier.source != new.source:
        raise DefinitionError(
            f"chain {new.name!r} at {new.source} is already registered by {earlier.source}; names must be unique"
        )
    chains[new.name] = new
    return new


def _check_step(where: str, number: int, step: ChainStep) -> None:
    good_job = isinstance(step.job, str) and bool(step.job.strip())
    _require(good_job, f"{where}: job of step {number} must be a non-empty string, not {step.job!r}")
    at = f"{where}, step {step.job!r}"
    _require(isinstance(step.params, dict), f"{at}: params must be a dict, not {step.params!r}")
    names = isinstance(step.depends_on, list | tuple) and all(isinstance(name, str) for name in step.depends_on)
    _require(names, f"{at}: depends_on must be a list of job names, not {step.depends_on!r}")
    words = ", ".join(map(repr, ON_FAILURE))
    _require(step.on_failure in ON_FAILURE, f"{at}: on_failure must be one of {words}, not {step.on_failure!r}")
    _require(_is_count(step.retries), f"{at}: retries must be a whole number, at least 0, not {step.retries!r}")
    delay = step.retry_delay_seconds
    _require(_is_count(delay), f"{at}: retry_delay_seconds must be a whole number, at least 0, not {delay!r}")


def _check_dependencies(where: str, steps: Sequence[ChainStep]) -> None:
    jobs: set[str] = set()
    for step in steps:
        _require(step.job not in jobs, f"{where}: job {step.job!r} is a step twice; a chain runs each job once")
        jobs.add(step.job)
    for step in steps:
        _require(step.job not in step.depends_on, f"{where}: step {step.job!r} depends on itself")
        unknown = [repr(name) for name in step.depends_on if name not in jobs]
        _require(not unknown, f"{where}: step {step.job!r} depends on {', '.join(unknown)}, which is no step of it")
    try:
        _sorter(steps).prepare()
    except CycleError as error:
        raise DefinitionError(f"{where}: steps wait for each other: {' -> '.join(error.args[1])}") from None


def _sorter(steps: Sequence[ChainStep]) -> TopologicalSorter[str]:
    # Nodes first, edges after: ties are broken by the order in which nodes were added.
    sorter = TopologicalSorter[str]({step.job: () for step in steps})
    for step in steps:
        sorter.add(step.job, *step.depends_on)
    return sorter


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require(good: bool, problem: str) -> None:
    if not good:
        raise DefinitionError(problem)
