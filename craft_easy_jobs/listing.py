"""Jobs, chains and tenants as `craft-easy-job` shows them: for people and for programs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from craft_easy_jobs.chaining import Chain, start_order, unregistered
from craft_easy_jobs.definition import JobOptions, Registry
from craft_easy_jobs.errors import DefinitionError
from craft_easy_jobs.params import compile_params, full_schema, properties_of
from craft_easy_jobs.tenants import TenantDirectory
from craft_easy_jobs.terminal import clean

_SHOWN = ("enum", "const", "pattern", "format", "minimum", "maximum", "minLength", "maxLength", "default")


def as_document(jobs: Iterable[JobOptions], chains: Mapping[str, Chain]) -> dict[str, Any]:
    """`{"jobs": [...], "chains": [...]}`; a job has its options, and its parameters by name."""
    return {
        "jobs": [asdict(job) | {"parameters": properties_of(job.params_schema)} for job in jobs],
        "chains": [chain_document(chain) for chain in chains.values()],
    }


def as_text(jobs: Iterable[JobOptions], chains: Mapping[str, Chain]) -> Iterator[str]:
    """Lines for a terminal."""
    for job in jobs:
        yield clean(f"{job.name}  {job.description}".rstrip())
        yield f"    {_options(job)}"
        required = full_schema(job.params_schema).get("required", [])
        for name, schema in properties_of(job.params_schema).items():
            yield clean(f"    -p {name}: {_parameter(schema, name in required)}")
    for chain in chains.values():
        first, *others = chain_text(chain)
        yield f"chain {first}"
        yield from others


def chain_document(chain: Chain) -> dict[str, Any]:
    """Name, description, and the steps with all their fields."""
    return {"name": chain.name, "description": chain.description, "steps": [asdict(step) for step in chain.steps]}


def chain_text(chain: Chain) -> Iterator[str]:
    """Name and description, and below it the steps in the order of their start."""
    yield clean(f"{chain.name}  {chain.description}".rstrip())
    yield clean(f"    {', '.join(start_order(chain))}")


def tenants_document(directory: TenantDirectory) -> list[dict[str, Any]]:
    """The tenants with their depth, each before those below it."""
    return [asdict(tenant) | {"depth": depth} for depth, tenant in directory.tree()]


def tenant_lines(directory: TenantDirectory) -> Iterator[str]:
    """The tenants as an indented tree."""
    for depth, tenant in directory.tree():
        state = "" if tenant.active else "(not active)"
        yield "  " * depth + "  ".join(clean(part) for part in (tenant.id, tenant.name, state) if part)


def missing_steps(chains: Mapping[str, Chain], registry: Registry) -> list[str]:
    """A sentence for each step whose job is not registered."""
    return [
        f"chain {chain.name!r} at {chain.source}: the job {job!r} of a step is not registered"
        for chain in chains.values()
        for job in unregistered(chain, registry)
    ]


def bad_schemas(chains: Mapping[str, Chain], registry: Registry) -> list[str]:
    """A sentence for each step whose job has a params_schema that nothing could be compared with."""
    found = ((chain, job, _schema_problem(registry[job].options)) for chain, job in _registered_steps(chains, registry))
    return [
        f"chain {chain.name!r} at {chain.source}: step {job!r}: {problem}" for chain, job, problem in found if problem
    ]


def _registered_steps(chains: Mapping[str, Chain], registry: Registry) -> Iterator[tuple[Chain, str]]:
    return ((chain, step.job) for chain in chains.values() for step in chain.steps if step.job in registry)


def _schema_problem(job: JobOptions) -> str | None:
    try:
        compile_params(job.name, job.params_schema)
    except DefinitionError as error:
        return str(error).removeprefix(f"job {job.name!r}: ")
    return None


def _options(job: JobOptions) -> str:
    parts = [f"timeout {job.timeout_seconds} s", f"retries {job.retries}", f"scope {job.scope}"]
    parts += ["per tenant"] if job.per_tenant else []
    parts += [f"isolation {job.isolation}"]
    parts += [] if job.memory_limit_mb is None else [f"memory {job.memory_limit_mb} MB"]
    return ", ".join(parts)


def _parameter(schema: dict[str, Any], required: bool) -> str:
    kind = schema.get("type", "any")
    facts = [kind if isinstance(kind, str) else " or ".join(kind)]
    facts += ["required"] if required else []
    facts += [f"{key} {json.dumps(schema[key], ensure_ascii=False)}" for key in _SHOWN if key in schema]
    about = schema.get("description")
    return ", ".join(facts) + (f" - {about}" if about else "")
