"""From a request to a run: what the catalogue of jobs makes of it, or why it is refused. Touches nothing."""

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec.structs import replace

from craft_easy_jobd.identity import Rights
from craft_easy_jobd.ledger import ChainPlan, FanOut, PlannedStep, RunSpec, encode_plan
from craft_easy_jobd.settings import Settings
from craft_easy_jobs.chaining import Chain, check_plan, merged_params, naming_step
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.errors import ParamsError, RequestError, TenantError, UnknownJobError
from craft_easy_jobs.model import Request
from craft_easy_jobs.tenants import TenantDirectory, concerning, fan_out, resolve
from craft_easy_jobs.wire import Catalogue as Announced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from craft_easy_jobs.params import ParamsValidator


class Catalogue:
    """The jobs and chains that the workers announced, with their params schemas compiled once, and the tenants.

    Raises:
        DefinitionError: a job's params_schema is no valid schema.
    """

    def __init__(self, announced: Announced, directory: TenantDirectory | None = None) -> None:
        self.jobs: Mapping[str, JobOptions] = {job.name: job for job in announced.jobs}
        self.chains: Mapping[str, Chain] = announced.chains
        self.directory = directory
        self.code_version = announced.code_version
        self._validators = _compile([job for job in announced.jobs if job.params_schema])

    def job(self, name: str) -> JobOptions:
        """The options of this job.

        Raises:
            RequestError: there is none of this name.
        """
        try:
            return self.jobs[name]
        except KeyError:
            raise RequestError("job", str(UnknownJobError(name, list(self.jobs)))) from None

    def check_params(self, job: str, params: dict[str, object]) -> None:
        """Compare params with the job's schema, if it has one.

        Raises:
            RequestError: names the first path that is wrong; its text has all of them.
        """
        try:
            if validator := self._validators.get(job):
                validator.check(params)
        except ParamsError as error:
            first, *others = error.problems
            texts = [first.message, *(f"{problem.path}: {problem.message}" for problem in others)]
            raise RequestError(first.path, "; ".join(texts)) from None


class Rules(NamedTuple):
    """What decides whether a request is taken, and what becomes of it."""

    settings: Settings
    rights: Rights
    catalogue: Catalogue


def _compile(jobs: list[JobOptions]) -> "dict[str, ParamsValidator]":
    if not jobs:
        return {}
    from craft_easy_jobs.params import compile_params

    return {job.name: compile_params(job.name, job.params_schema) for job in jobs}


def admit(request: Request, catalogue: Catalogue, *, run_id: str, requested_by: str | None) -> RunSpec:
    """The run that a request asks for: of a job, of a job for many tenants, or of a chain.

    Raises:
        RequestError: names the key of the request that is wrong.
    """
    facts = {
        "priority": request.priority,
        "not_before": None if request.not_before is None else request.not_before.timestamp(),
        "validate": request.validate,
        "requested_by": requested_by,
    }
    if request.chain is not None:
        spec = _chain_run(request, request.chain, catalogue)
    else:
        options = catalogue.job(request.job or "")
        if request.validate:
            catalogue.check_params(options.name, request.params)
        spec = _job_run(options, request.params, request.tenant_id, request.all_tenants, catalogue.directory)
    return replace(spec, run_id=run_id, **facts)


def _job_run(
    options: JobOptions,
    params: dict[str, Any],
    tenant_id: str | None,
    all_tenants: bool,
    directory: TenantDirectory | None,
) -> RunSpec:
    """A run of a job that has no id yet; a fan-out when the job is `per_tenant`."""
    spec = RunSpec(
        run_id="",
        job=options.name,
        params=_encode_params(params),
        tenant_id=tenant_id,
        scope=options.scope,
        isolation=options.isolation,
        on_interrupt=options.on_interrupt,
    )
    try:
        tenant_ids = fan_out(options, tenant_id, all_tenants, directory)
        below = [] if tenant_ids is not None else resolve(options, tenant_id, directory)
    except TenantError as error:
        raise RequestError("tenant_id", str(error)) from None
    if tenant_ids is not None:
        # A child is for its one tenant, whatever scope the tenants came from.
        plan = encode_plan(FanOut(replace(spec, scope="tenant"), tenant_ids))
        return replace(spec, kind="fan_out", isolation="none", plan=plan)
    return replace(spec, sub_tenant_ids=msgspec.json.encode(below)) if below else spec


def _chain_run(request: Request, name: str, catalogue: Catalogue) -> RunSpec:
    chain = catalogue.chains.get(name)
    if chain is None:
        known = ", ".join(sorted(catalogue.chains)) or "none"
        raise RequestError("chain", f"unknown chain {name!r}; registered: {known}")
    check_plan(chain, request.params, catalogue.jobs, catalogue.check_params if request.validate else _take_any)
    steps = []
    for step in chain.steps:
        options = catalogue.jobs[step.job]
        tenant_id, all_tenants = concerning(options, request.tenant_id, request.all_tenants)
        with naming_step(step.job):
            params = merged_params(request.params, step)
            steps.append(PlannedStep(step, _job_run(options, params, tenant_id, all_tenants, catalogue.directory)))
    return RunSpec(
        run_id="",
        job=chain.name,
        kind="chain",
        params=_encode_params(request.params),
        tenant_id=request.tenant_id,
        scope="system" if request.tenant_id is None else "tenant",
        isolation="none",
        plan=encode_plan(ChainPlan(steps)),
    )


def _take_any(job: str, params: dict[str, Any]) -> None:
    """Instead of a check: the request wants none."""


def _encode_params(params: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(params)
    except (ValueError, RecursionError) as error:
        raise RequestError("params", f"cannot be stored as JSON: {error}") from None
