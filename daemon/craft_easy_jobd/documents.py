"""The JSON shapes of the control API: what it takes and what it answers."""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, TypeVar, get_origin

import msgspec

from craft_easy_jobd.ledger import Kind, Run, decode_chain
from craft_easy_jobd.states import RunState
from craft_easy_jobd.status import DaemonState
from craft_easy_jobs.chaining import Chain, ChainStep
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.errors import ApiError, RequestError
from craft_easy_jobs.model import timestamp
from craft_easy_jobs.scopes import Scope
from craft_easy_jobs.tenants import TenantDirectory

MAX_WAIT_SECONDS = 60
MAX_PAGE = 1000

Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
# What the ledger can number: SQLite's integers.
Cursor = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

Query = TypeVar("Query", bound=msgspec.Struct)
Body = TypeVar("Body")


class RunDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A run. Times are RFC 3339 in UTC; `params` and `result` are the JSON values that were given and returned.

    `job` of a chain's run is the chain's name, and `steps` are its steps as they were admitted; null for other kinds.
    `step`: the step of the chain above that this run is.
    """

    run_id: str
    kind: Kind
    job: str
    step: str | None
    state: RunState
    reason: str | None
    tenant_id: str | None
    scope: Scope
    priority: int
    attempt: int
    failures: int
    interruptions: int
    cancel_requested: bool
    requested_at: Time
    requested_by: str | None
    next_at: Time | None
    started_at: Time | None
    completed_at: Time | None
    duration_seconds: float | None
    params: msgspec.Raw
    result: msgspec.Raw
    error: str | None
    warnings: int
    log_count: int
    parent_run_id: str | None
    steps: list[ChainStep] | None
    published: bool


class RunsPage(msgspec.Struct, frozen=True):
    """Runs, newest first. `next`: give it as `after` for the next page; null on the last one."""

    runs: list[RunDocument]
    next: int | None


class JobsPage(msgspec.Struct, frozen=True):
    """The catalogue, sorted by name."""

    jobs: list[JobOptions]


class TenantDocument(msgspec.Struct, frozen=True):
    """A tenant; `depth` is 0 at a root."""

    id: str
    depth: int
    parent: str | None
    active: bool
    name: str


class TenantsPage(msgspec.Struct, frozen=True):
    """The tenant directory as a tree: each tenant comes before those below it, siblings are sorted by id."""

    tenants: list[TenantDocument]


class ChainDocument(msgspec.Struct, frozen=True):
    """A chain as it was declared."""

    name: str
    description: str
    steps: list[ChainStep]


class ChainsPage(msgspec.Struct, frozen=True):
    """The chains, sorted by name."""

    chains: list[ChainDocument]


class Reloaded(msgspec.Struct, frozen=True):
    """What is in force after a reload: workers of this generation take the attempts from now on."""

    generation: int
    code_version: str | None
    jobs: int


class Accepted(msgspec.Struct, frozen=True):
    """The run is in the ledger; `state` is what it is in now."""

    run_id: str
    state: RunState


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a call was refused (RFC 9457). `field`: the key of the request that is wrong."""

    title: str
    status: int
    detail: str
    field: str = ""
    type: str = msgspec.field(default_factory=lambda: "about:blank")


class Stopping(msgspec.Struct, frozen=True):
    """The daemon's state and the rung of its stop ladder."""

    state: DaemonState
    ladder: int


class CancelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`force`: do not leave it to the job; cancel it, and after its grace time kill its worker."""

    force: bool = False


class RunsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which runs; `state` may be given several times."""

    state: list[RunState] = []
    job: str | None = None
    tenant: str | None = None
    parent: str | None = None
    after: Cursor | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = 100


class RunQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`wait`: answer when the run is final, at the latest after so many seconds."""

    wait: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_SECONDS)] = 0.0


class LogsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`after`: how many entries to pass over; `follow`: go on until the run is final."""

    after: Cursor = 0
    follow: bool = False


def run_document(run: Run) -> RunDocument:
    """The run as the API shows it."""
    spec, result = run.spec, run.result
    started_at = result.started_at if result else run.started_at
    return RunDocument(
        run_id=spec.run_id,
        kind=spec.kind,
        job=spec.job,
        step=spec.step,
        state=run.state,
        reason=run.reason,
        tenant_id=spec.tenant_id,
        scope=spec.scope,
        priority=spec.priority,
        attempt=run.attempt,
        failures=run.failures,
        interruptions=run.interruptions,
        cancel_requested=run.cancel_requested,
        requested_at=_time(run.requested_at),
        requested_by=spec.requested_by,
        next_at=None if run.next_at is None else _time(run.next_at),
        started_at=None if started_at is None else _time(started_at),
        completed_at=_time(result.completed_at) if result else None,
        duration_seconds=round(result.completed_at - result.started_at, 6) if result else None,
        params=msgspec.Raw(spec.params),
        result=msgspec.Raw(result.result if result else b"null"),
        error=result.error if result else None,
        warnings=run.warnings,
        log_count=run.log_count,
        parent_run_id=spec.parent_run_id,
        steps=[planned.step for planned in decode_chain(spec.plan or b"").steps] if spec.kind == "chain" else None,
        published=run.published,
    )


def tenants_page(directory: TenantDirectory) -> TenantsPage:
    """The directory as the API shows it."""
    return TenantsPage(
        [
            TenantDocument(tenant.id, depth, tenant.parent, tenant.active, tenant.name)
            for depth, tenant in directory.tree()
        ]
    )


def chains_page(chains: Sequence[Chain]) -> ChainsPage:
    """The chains as the API shows them: where the author's file lies is left out."""
    return ChainsPage([ChainDocument(chain.name, chain.description, list(chain.steps)) for chain in chains])


def problem(error: ApiError | RequestError) -> Problem:
    """The refusal as the API shows it; JSON that does not parse is 400, a request that is wrong in itself is 422."""
    status = error.status if isinstance(error, ApiError) else 400 if error.field == "json" else 422
    return Problem(HTTPStatus(status).phrase, status, str(error), error.field)


def _time(seconds: float) -> str:
    return timestamp(seconds)


def read_query(kind: type[Query], values: Iterable[tuple[str, str]]) -> Query:
    """Query parameters as the struct `kind`.

    Raises:
        ApiError: 400; names the parameter that is unknown, wrong, or given twice where one is taken.
    """
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    given: dict[str, Any] = {}
    for name, value in values:
        if name not in types:
            raise ApiError(400, f"unknown parameter {name!r}; known: {', '.join(types) or 'none'}", name)
        if get_origin(types[name]) is list:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise ApiError(400, f"{name}: given twice", name)
        else:
            given[name] = value
    return kind(**{name: _read_parameter(name, types[name], value) for name, value in given.items()})


def _read_parameter(name: str, kind: Any, value: str | list[str]) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"{name}: {_plain(error)}", name) from None


def read_body(kind: type[Body], data: bytes) -> Body:
    """A JSON body as the struct `kind`; no body at all is an empty object.

    Raises:
        ApiError: 400 when it is no JSON, 422 when it is not what the call takes.
    """
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise ApiError(422, _plain(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"this is not JSON: {error}") from None


def _plain(error: Exception) -> str:
    return str(error).replace("`", "'")
