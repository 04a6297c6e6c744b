"""From what was asked for to a run that can be carried out, or why it is refused; nothing has started yet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from craft_easy_jobs.chaining import Chain, ChainStep, check_plan, merged_params, naming_step
from craft_easy_jobs.credentials import Folder
from craft_easy_jobs.definition import JobDefinition, JobOptions
from craft_easy_jobs.errors import TenantError
from craft_easy_jobs.families import child_run_id
from craft_easy_jobs.family_runs import ChainRun, FanOutRun
from craft_easy_jobs.model import JobResult, LogEntry
from craft_easy_jobs.running import Run, UnderWay
from craft_easy_jobs.scopes import Scope
from craft_easy_jobs.tenants import TenantDirectory, concerning, fan_out, resolve

CONCURRENCY = 4


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked for besides the job or chain; see RunOptions."""

    run_id: str
    params: dict[str, Any]
    tenant_id: str | None = None
    all_tenants: bool = False
    scope: Scope | None = None
    sub_tenant_ids: Sequence[str] = ()
    concurrency: int = CONCURRENCY
    validate: bool = False
    emit: Callable[[LogEntry], None] | None = None
    on_child: Callable[[JobResult], None] | None = None
    on_stuck: Callable[[JobResult], None] | None = None
    parent_run_id: str | None = None
    upstream: dict[str, Any] = field(default_factory=dict)
    credentials: Folder | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {self.concurrency}")


def check_params(options: JobOptions, params: dict[str, Any]) -> None:
    """Compare params with the job's schema.

    Raises:
        ParamsError: with every mismatch.
    """
    if options.params_schema:
        from craft_easy_jobs.params import compile_params

        compile_params(options.name, options.params_schema).check(params)


def prepare_job(definition: JobDefinition, order: Order, directory: TenantDirectory | None) -> UnderWay:
    """A run of one job, or a fan-out if it is `per_tenant`.

    Raises:
        TenantError: the job cannot run for the tenants asked for.
    """
    options = replace(definition.options, scope=order.scope or definition.options.scope)
    tenant_ids = fan_out(options, order.tenant_id, order.all_tenants, directory)
    if tenant_ids is None:
        below = resolve(options, order.tenant_id, directory)
        return _single(definition, options.scope, order, order.sub_tenant_ids or below)

    def child(tenant_id: str) -> UnderWay:
        run_id = child_run_id(order.run_id, tenant_id)
        # Each is for one tenant, whatever the scope was that they were found by.
        return _single(
            definition, "tenant", replace(order, run_id=run_id, tenant_id=tenant_id, parent_run_id=order.run_id)
        )

    return FanOutRun(
        name=definition.name,
        run_id=order.run_id,
        params=order.params,
        tenant_id=order.tenant_id,
        scope=options.scope,
        grace_seconds=options.grace_seconds,
        parent_run_id=order.parent_run_id,
        emit=order.emit,
        on_stuck=order.on_stuck,
        on_child=order.on_child,
        tenant_ids=tenant_ids,
        concurrency=order.concurrency,
        make=child,
    )


def prepare_chain(
    chain: Chain, registry: Mapping[str, JobDefinition], order: Order, directory: TenantDirectory | None
) -> UnderWay:
    """A run of a chain.

    Raises:
        RequestError: its field names the step that could not run.
        TenantError: all tenants are asked for, but no step is for each of them.
    """
    jobs = {definition.name: definition.options for definition in registry.values()}
    _check_chain(chain, jobs, order)
    make = partial(_prepare_step, registry, order, directory)
    for step in chain.steps:
        with naming_step(step.job):
            make(step, order.run_id, {})
    return ChainRun(
        name=chain.name,
        run_id=order.run_id,
        params=order.params,
        tenant_id=order.tenant_id,
        scope="system" if order.tenant_id is None else "tenant",
        grace_seconds=max(jobs[step.job].grace_seconds for step in chain.steps),
        emit=order.emit,
        on_stuck=order.on_stuck,
        on_child=order.on_child,
        steps=chain.steps,
        make=make,
    )


def _check_chain(chain: Chain, jobs: Mapping[str, JobOptions], order: Order) -> None:
    def check(job: str, params: dict[str, Any]) -> None:
        if order.validate:
            check_params(jobs[job], params)

    check_plan(chain, order.params, jobs, check)
    if order.all_tenants and not any(jobs[step.job].per_tenant for step in chain.steps):
        raise TenantError(None, f"chain {chain.name!r} has no step that is per_tenant; leave all_tenants out")


def _prepare_step(
    registry: Mapping[str, JobDefinition],
    order: Order,
    directory: TenantDirectory | None,
    step: ChainStep,
    run_id: str,
    upstream: dict[str, Any],
) -> UnderWay:
    definition = registry[step.job]
    tenant_id, all_tenants = concerning(definition.options, order.tenant_id, order.all_tenants)
    step_order = replace(
        order,
        run_id=run_id,
        params=merged_params(order.params, step),
        tenant_id=tenant_id,
        all_tenants=all_tenants,
        parent_run_id=order.run_id,
        upstream=upstream,
    )
    return prepare_job(definition, step_order, directory)


def _single(definition: JobDefinition, scope: Scope, order: Order, sub_tenant_ids: Sequence[str] = ()) -> Run:
    return Run(
        name=definition.name,
        run_id=order.run_id,
        params=order.params,
        tenant_id=order.tenant_id,
        scope=scope,
        grace_seconds=definition.options.grace_seconds,
        parent_run_id=order.parent_run_id,
        emit=order.emit,
        on_stuck=order.on_stuck,
        definition=definition,
        sub_tenant_ids=sub_tenant_ids,
        upstream=order.upstream,
        credentials=order.credentials,
    )
