"""Every error that users of the library may meet: one root, few leaves, facts in fields."""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_NAMES = 20


class CraftEasyJobsError(Exception):
    """Root of all errors of this project; its text names what was wrong, where, and what to do next."""


def did_you_mean(name: str, known: Sequence[str], what: str) -> str:
    """The known name that is meant perhaps, else all of them (the first 20) after the word `what`."""
    import difflib

    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {close[0]!r}?"
    shown = sorted(known)[:MAX_NAMES]
    return f"{what}: {', '.join(shown) or 'none'}{', ...' if len(known) > MAX_NAMES else ''}"


class DefinitionError(CraftEasyJobsError):
    """A job or a chain is declared wrongly; raised when its module is imported."""


class LoadError(CraftEasyJobsError):
    """A module that should register jobs cannot be imported.

    Attributes:
        module: the name as given by `--jobs`, the settings or the entry point.
    """

    def __init__(self, module: str, problem: str) -> None:
        super().__init__(f"jobs module {module!r}: {problem}")
        self.module = module


class UnknownJobError(CraftEasyJobsError, KeyError):
    """No job of this name is registered; a KeyError as well, since the registry is a mapping.

    Attributes:
        job: the name that was asked for.
    """

    def __init__(self, job: str, known: Sequence[str]) -> None:
        super().__init__(f"unknown job {job!r}; {did_you_mean(job, known, 'registered')}")
        self.job = job

    # KeyError's own would put the sentence in quotes.
    __str__ = Exception.__str__


@dataclass(frozen=True)
class ParamProblem:
    """One way in which params miss their schema: where (`params.customer.id`) and what."""

    path: str
    message: str


class ParamsError(CraftEasyJobsError):
    """Params do not match the job's `params_schema`.

    Attributes:
        job: the job's name.
        problems: every mismatch, sorted by path.
    """

    def __init__(self, job: str, problems: Sequence[ParamProblem]) -> None:
        super().__init__(f"job {job!r}: " + "; ".join(f"{p.path}: {p.message}" for p in problems))
        self.job = job
        self.problems = tuple(problems)


class TenantError(CraftEasyJobsError):
    """A tenant directory is wrong, or a run asks for tenants that it does not offer.

    Attributes:
        tenant_id: the tenant in question; None when it is not about one.
    """

    def __init__(self, tenant_id: str | None, problem: str) -> None:
        super().__init__(problem if tenant_id is None else f"tenant {tenant_id!r}: {problem}")
        self.tenant_id = tenant_id


class RequestError(CraftEasyJobsError):
    """A request is refused at admission.

    Attributes:
        field: the key of the request that is wrong, dotted; empty when it is the request as a whole.
        problem: what is wrong with it and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


class CredentialError(CraftEasyJobsError):
    """A credential cannot be had.

    Attributes:
        name: the name that was asked for.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"credential {name!r}: {problem}")
        self.name = name


class ResultValueError(CraftEasyJobsError):
    """A job returned a value that JSON cannot hold.

    Attributes:
        path: where in the value, such as `result.rows[3].amount`.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class DaemonUnavailableError(CraftEasyJobsError):
    """Nobody answers on the control socket.

    Attributes:
        socket: the path that was tried.
    """

    def __init__(self, socket: str, problem: str) -> None:
        super().__init__(f"no daemon answers on {socket} ({problem}); start one: craft-easy-jobd serve")
        self.socket = socket


class ApiError(CraftEasyJobsError):
    """The daemon refused a call.

    Attributes:
        status: the HTTP status code.
        field: the key of the request that is wrong, or an empty string.
    """

    def __init__(self, status: int, problem: str, field: str = "") -> None:
        super().__init__(problem)
        self.status = status
        self.field = field
