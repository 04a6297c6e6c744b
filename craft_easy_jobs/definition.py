"""The @job decorator, what it registers, and the registry."""

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from craft_easy_jobs.errors import DefinitionError, UnknownJobError
from craft_easy_jobs.scopes import SCOPES, Scope

if TYPE_CHECKING:
    from craft_easy_jobs.context import JobContext

JobFunction = Callable[["JobContext"], Awaitable[Any]]
F = TypeVar("F", bound=JobFunction)

Isolation = Literal["shared", "process"]
OnInterrupt = Literal["retry", "fail"]

ISOLATIONS = ("shared", "process")
ON_INTERRUPT = ("retry", "fail")

MAX_RETRY_DELAY_SECONDS = 3600.0
# A worker uses most of it before its first job.
LEAST_MEMORY_MB = 32


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What is declared of a job, without its function: all that the daemon knows of it.

    Attributes:
        timeout_seconds: limit of one attempt, from its dispatch.
        retries: attempts after the first failed one; interruptions do not count.
        isolation: `shared`: an asyncio task beside others in a worker; `process`: a worker of its own.
        on_interrupt: what follows when the daemon or a worker died under the run: `retry` or `fail`.
        grace_seconds: time between the cancel of an attempt and the kill of its worker.
        retry_delay_seconds: base of the exponential backoff between attempts.
        memory_limit_mb: most memory of an attempt's worker with all that it starts, in MiB, the modules of the jobs
            too. The daemon ends an attempt above it with the reason `out_of_memory`; None: no limit of its own.
    """

    name: str
    description: str = ""
    timeout_seconds: int = 300
    retries: int = 0
    per_tenant: bool = False
    scope: Scope = "tenant"
    params_schema: dict[str, Any] = field(default_factory=dict)
    isolation: Isolation = "shared"
    on_interrupt: OnInterrupt = "retry"
    grace_seconds: float = 10.0
    retry_delay_seconds: float = 1.0
    memory_limit_mb: int | None = None

    @property
    def memory_limit_bytes(self) -> int | None:
        return None if self.memory_limit_mb is None else self.memory_limit_mb * 1024**2

    def backoff_seconds(self, failures: int, share: float) -> float:
        """Delay before the next attempt: exponential with full jitter.

        Args:
            failures: failed attempts so far, from 1.
            share: a random number in [0, 1).
        """
        return share * min(MAX_RETRY_DELAY_SECONDS, self.retry_delay_seconds * 2.0 ** min(failures - 1, 32))


@dataclass(frozen=True, slots=True)
class JobDefinition:
    """A registered job: its options and its function, with the place of its source (`file:line`)."""

    options: JobOptions
    function: JobFunction
    source: str

    @property
    def name(self) -> str:
        return self.options.name


class Registry(Mapping[str, JobDefinition]):
    """The jobs by name, in the order of their registration."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobDefinition] = {}

    def add(self, definition: JobDefinition) -> None:
        """Register a job.

        Raises:
            DefinitionError: another function has this name.
        """
        earlier = self._jobs.get(definition.name)
        # A module that is imported twice (as __main__ and by its name) declares the same job, not a second one.
        if earlier is not None and earlier.source != definition.source:
            raise DefinitionError(
                f"job {definition.name!r} at {definition.source} is already registered by {earlier.source}; "
                "names must be unique"
            )
        self._jobs[definition.name] = definition

    def __getitem__(self, name: str) -> JobDefinition:
        """The job of this name.

        Raises:
            UnknownJobError: there is none; a KeyError would not say which are.
        """
        try:
            return self._jobs[name]
        except KeyError:
            raise UnknownJobError(name, list(self._jobs)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._jobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def clear(self) -> None:
        self._jobs.clear()


registry = Registry()


def job(
    name: str,
    description: str = "",
    timeout_seconds: int = 300,
    retries: int = 0,
    per_tenant: bool = False,
    scope: Scope = "tenant",
    params_schema: dict[str, Any] | None = None,
    *,
    isolation: Isolation | None = None,
    on_interrupt: OnInterrupt = "retry",
    grace_seconds: float = 10.0,
    retry_delay_seconds: float = 1.0,
    memory_limit_mb: int | None = None,
) -> Callable[[F], F]:
    """Register an async function that takes a JobContext as a job; the function itself stays as it is.

    The first seven parameters are the specification's; the meaning of the others is at JobOptions. `isolation` is
    `shared` unless said otherwise; a job with a `memory_limit_mb` has a worker of its own.

    Raises:
        DefinitionError: an option has a wrong type or value, the function is not async or takes something else than
            one context, or the name is taken.
    """
    if callable(name):
        raise DefinitionError("@job needs a name: write @job(name=...) above the function")
    options = JobOptions(
        name=name,
        description=description,
        timeout_seconds=timeout_seconds,
        retries=retries,
        per_tenant=per_tenant,
        scope=scope,
        params_schema={} if params_schema is None else params_schema,
        isolation=isolation if isolation is not None else "shared" if memory_limit_mb is None else "process",
        on_interrupt=on_interrupt,
        grace_seconds=grace_seconds,
        retry_delay_seconds=retry_delay_seconds,
        memory_limit_mb=memory_limit_mb,
    )
    _check_options(options)

    def register(function: F) -> F:
        source = _check_function(options.name, function)
        registry.add(JobDefinition(options, function, source))
        return function

    return register


def _check_options(options: JobOptions) -> None:
    """Refuse what is wrong, naming job and option."""
    if not isinstance(options.name, str) or not options.name.strip():
        raise DefinitionError(f"@job: name must be a non-empty string, not {options.name!r}")
    for option in fields(JobOptions):
        value = getattr(options, option.name)
        if problem := _RULES[option.name](value):
            raise DefinitionError(f"job {options.name!r}: {option.name} must be {problem}, not {value!r}")
    if options.memory_limit_mb is not None and options.isolation != "process":
        raise DefinitionError(
            f"job {options.name!r}: memory_limit_mb needs a worker of its own; leave isolation out, or say 'process'"
        )
    if options.params_schema:
        from craft_easy_jobs.params import check_schema

        check_schema(options.name, options.params_schema)


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a string"


def _whole(lowest: int) -> Callable[[Any], str | None]:
    def rule(value: Any) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= lowest
        return None if good else f"a whole number, at least {lowest}"

    return rule


def _seconds(value: Any) -> str | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    return None if good else "a number of seconds, at least 0"


def _megabytes(value: Any) -> str | None:
    if value is None:
        return None
    wrong = _whole(LEAST_MEMORY_MB)(value)
    return wrong and f"{wrong} (megabytes; a worker uses most of that before its first job), or None"


def _one_of(words: tuple[str, ...]) -> Callable[[Any], str | None]:
    return lambda value: None if value in words else "one of " + ", ".join(map(repr, words))


_RULES: dict[str, Callable[[Any], str | None]] = {
    "name": _text,
    "description": _text,
    "timeout_seconds": _whole(1),
    "retries": _whole(0),
    "per_tenant": lambda value: None if isinstance(value, bool) else "True or False",
    "scope": _one_of(SCOPES),
    "params_schema": lambda value: None if isinstance(value, dict) else "a dict",
    "isolation": _one_of(ISOLATIONS),
    "on_interrupt": _one_of(ON_INTERRUPT),
    "grace_seconds": _seconds,
    "retry_delay_seconds": _seconds,
    "memory_limit_mb": _megabytes,
}


def _check_function(name: str, function: Any) -> str:
    """The place of the function's source; refuses what cannot be a job."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    source = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
    if not inspect.iscoroutinefunction(function):
        raise DefinitionError(f"job {name!r} at {source} must be an async function: async def f(ctx: JobContext)")
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise DefinitionError(f"job {name!r} at {source} must take exactly one argument, ctx: {error}") from None
    return source
