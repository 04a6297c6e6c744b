"""From a request to a run: what the catalogue of jobs makes of it, or why it is refused. Touches nothing."""

from typing import TYPE_CHECKING

import msgspec
from uuid_utils.compat import uuid7

from craft_easy_jobd.ledger import RunSpec
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.errors import ParamsError, RequestError, UnknownJobError
from craft_easy_jobs.model import Request
from craft_easy_jobs.wire import Catalogue as Announced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from craft_easy_jobs.params import ParamsValidator


class Catalogue:
    """The jobs and chains that the workers announced, with their params schemas compiled once; never changes.

    Raises:
        DefinitionError: a job's params_schema is no valid schema.
    """

    def __init__(self, announced: Announced) -> None:
        self.jobs: Mapping[str, JobOptions] = {job.name: job for job in announced.jobs}
        self.chains: Mapping[str, list[str]] = announced.chains
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


def _compile(jobs: list[JobOptions]) -> "dict[str, ParamsValidator]":
    if not jobs:
        return {}
    from craft_easy_jobs.params import compile_params

    return {job.name: compile_params(job.name, job.params_schema) for job in jobs}


def new_run_id() -> str:
    """A UUIDv7: ids made one after the other sort in that order."""
    return str(uuid7())


def admit(request: Request, catalogue: Catalogue, *, run_id: str, requested_by: str | None) -> RunSpec:
    """The run that a request asks for.

    Raises:
        RequestError: names the key of the request that is wrong.
    """
    if request.job is None:
        raise RequestError("chain", "this version does not run chains yet; request the jobs of its steps one by one")
    if request.all_tenants:
        raise RequestError("all_tenants", "this version does not run for all tenants yet; request one run per tenant")
    options = catalogue.job(request.job)
    if options.scope == "system" and request.tenant_id is not None:
        raise RequestError("tenant_id", f"job {options.name!r} has the scope 'system' and no tenant; leave it out")
    if request.validate:
        catalogue.check_params(options.name, request.params)
    return RunSpec(
        run_id=run_id,
        job=options.name,
        params=_encode_params(request.params),
        tenant_id=request.tenant_id,
        scope=options.scope,
        priority=request.priority,
        not_before=None if request.not_before is None else request.not_before.timestamp(),
        isolation=options.isolation,
        on_interrupt=options.on_interrupt,
        validate=request.validate,
        requested_by=requested_by,
    )


def _encode_params(params: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(params)
    except (ValueError, RecursionError) as error:
        raise RequestError("params", f"cannot be stored as JSON: {error}") from None
