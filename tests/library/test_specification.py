"""The specification's examples, word for word."""

import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from craft_easy_jobs import JobResult, JobRunner
from craft_easy_jobs.chaining import chains, start_order, unregistered
from craft_easy_jobs.definition import Registry
from craft_easy_jobs.errors import ParamsError
from craft_easy_jobs.loading import load_jobs

pytestmark = pytest.mark.usefixtures("fresh_registry", "project")

SETTLEMENT = r"""
from craft_easy_jobs import job, JobContext

@job(
    name="settlement",
    description="Monthly revenue settlement",
    timeout_seconds=600,
    retries=2,
    params_schema={
        "period": {"type": "string", "pattern": "^\\d{4}-\\d{2}$"},
    },
)
async def settlement_job(ctx: JobContext):
    period = ctx.params["period"]
    await ctx.log(f"Starting {period}")
    # ... work ...
    return {"period": period, "processed": 42}
"""

EXPORT = """
from craft_easy_jobs import job, JobContext

@job(name="export")
async def export_job(ctx: JobContext):
    await ctx.log("Starting export")              # info
    await ctx.warning("Retrying stuck record")    # warning
    await ctx.error("Failed to write row 42")     # error (job continues)
    await ctx.progress("Processing...", percentage=50)  # progress with %
"""

BULK_EXPORT = """
from craft_easy_jobs import job, JobContext
async def fetch_items(): return list("abcdef")
async def export_item(item): pass

@job(name="bulk-export", timeout_seconds=3600)
async def bulk_export(ctx: JobContext):
    items = await fetch_items()
    exported = 0

    for i, item in enumerate(items):
        if ctx.should_stop():
            await ctx.warning(f"Stopped early at {exported}/{len(items)}")
            break
        await export_item(item)
        exported += 1

    return {"exported": exported, "total": len(items)}
"""

ORG_ROLLUP = """
from craft_easy_jobs import job, JobContext
async def rollup_tenant(tenant_id): pass

@job(name="org-rollup", scope="parent_tenant")
async def org_rollup(ctx: JobContext):
    for tenant_id in ctx.iter_tenant_ids():
        if ctx.should_stop():
            break
        await rollup_tenant(tenant_id)
    return {"processed": len(ctx.iter_tenant_ids())}
"""

MONTH_END = """
from craft_easy_jobs import chain, ChainStep

month_end = chain(
    name="month-end",
    description="Monthly close-of-business",
    steps=[
        ChainStep(job="settlement"),
        ChainStep(job="invoicing", depends_on=["settlement"]),
        ChainStep(job="accounting-export", depends_on=["invoicing"]),
    ],
)
"""

BI_EXPORT = """
from craft_easy_jobs import job, JobContext

@job(
    name="bi-export",
    params_schema={
        "type": "object",
        "required": ["target_type", "configs"],
        "properties": {
            "target_type": {"type": "string", "enum": ["bigquery", "azure_sql"]},
            "configs": {"type": "array", "items": {"type": "object"}},
            "batch_size": {"type": "integer", "minimum": 1, "default": 500},
        },
    },
)
async def bi_export(ctx: JobContext):
    ...
"""

COMPLETE = r"""
from craft_easy_jobs import job, chain, ChainStep, JobContext

@job(
    name="settlement",
    description="Calculate settlement for a billing period",
    timeout_seconds=1800,
    retries=2,
    per_tenant=True,
    params_schema={
        "period": {"type": "string", "pattern": "^\\d{4}-\\d{2}$"},
    },
)
async def settlement(ctx: JobContext):
    period = ctx.params["period"]
    await ctx.log(f"Starting settlement for tenant={ctx.tenant_id} period={period}")

    from my_models import Tenant, Settlement
    tenants = await Tenant.find(Tenant.is_active == True).to_list()

    settled = 0
    for i, tenant in enumerate(tenants):
        if ctx.should_stop():
            await ctx.warning(f"Stopped at {settled}/{len(tenants)}")
            break
        try:
            s = Settlement(tenant_id=tenant.id, period=period, amount=await calc(tenant, period))
            await s.insert()
            settled += 1
            await ctx.progress(
                f"Settled {i+1}/{len(tenants)}",
                percentage=int((i+1) / len(tenants) * 100),
            )
        except Exception as e:
            await ctx.error(f"Failed for {tenant.name}: {e}")

    await ctx.log(f"Done: {settled}/{len(tenants)}")
    return {"period": period, "settled": settled, "total": len(tenants)}


# Define the month-end chain — one declarative source of truth
month_end = chain(
    name="month-end",
    description="Month-end closing workflow",
    steps=[
        ChainStep(job="settlement"),
        ChainStep(job="invoicing", depends_on=["settlement"]),
        ChainStep(job="reporting", depends_on=["invoicing"], on_failure="continue"),
    ],
)

async def calc(tenant, period):
    if tenant.name == "B":
        raise ValueError("no rows")
    return 1
"""


def load(project: Path, source: str) -> None:
    (project / "author_jobs.py").write_text(source)
    load_jobs(["author_jobs.py"], entry_points=False)


async def run(name: str, **options: Any) -> JobResult:
    return await JobRunner().run(name, validate=True, **options)


async def test_settlement(project: Path, fresh_registry: Registry) -> None:
    load(project, SETTLEMENT)
    options = fresh_registry["settlement"].options
    assert (options.timeout_seconds, options.retries, options.scope) == (600, 2, "tenant")
    result = await run("settlement", params={"period": "2026-03"})
    assert result.result == {"period": "2026-03", "processed": 42}
    with pytest.raises(ParamsError):
        await run("settlement", params={"period": "March"})


async def test_export(project: Path) -> None:
    load(project, EXPORT)
    result = await run("export")
    assert [(entry["level"], entry["percentage"]) for entry in result.logs] == [
        ("info", None),
        ("warning", None),
        ("error", None),
        ("progress", 50),
    ]
    assert (result.status, result.result) == ("completed", None)


async def test_bulk_export(project: Path) -> None:
    load(project, BULK_EXPORT)
    assert (await run("bulk-export")).result == {"exported": 6, "total": 6}


async def test_org_rollup(project: Path) -> None:
    load(project, ORG_ROLLUP)
    result = await run("org-rollup", tenant_id="parent", sub_tenant_ids=["a", "b"])
    assert result.result == {"processed": 3}


def test_month_end(project: Path) -> None:
    load(project, MONTH_END)
    assert start_order(chains["month-end"]) == ["settlement", "invoicing", "accounting-export"]


async def test_bi_export(project: Path) -> None:
    load(project, BI_EXPORT)
    params = {"target_type": "bigquery", "configs": [{}]}
    assert (await run("bi-export", params=params)).result is None
    with pytest.raises(ParamsError, match="'configs' is a required property"):
        await run("bi-export", params={"target_type": "bigquery"})


async def test_the_complete_example(project: Path, fresh_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    load(project, COMPLETE)
    monkeypatch.setitem(sys.modules, "my_models", my_models())
    children: list[JobResult] = []
    result = await run(
        "settlement", tenant_id="tenant_664abc", params={"period": "2026-03"}, run_id="r", on_child=children.append
    )
    [child] = children
    assert result.result == {
        "counts": {"completed": 1, "failed": 0},
        "tenants": {
            "tenant_664abc": {
                "status": "completed",
                "reason": None,
                "run_id": "r.tenant_664abc",
                "duration_seconds": child.duration_seconds,
            }
        },
    }
    assert child.result == {"period": "2026-03", "settled": 2, "total": 3}
    assert [entry["message"] for entry in child.logs] == [
        "Starting settlement for tenant=tenant_664abc period=2026-03",
        "Settled 1/3",
        "Failed for B: no rows",
        "Settled 3/3",
        "Done: 2/3",
    ]
    assert unregistered(chains["month-end"], fresh_registry) == ["invoicing", "reporting"]


def test_the_result_has_the_specified_fields_in_their_order() -> None:
    names = "job_name run_id status started_at completed_at duration_seconds result error logs"
    assert [field.name for field in fields(JobResult)][:9] == names.split()


def my_models() -> ModuleType:
    """The models of the example's author: three tenants, of which B cannot be calculated."""

    class Query:
        async def to_list(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(id=name, name=name) for name in "ABC"]

    class Tenant:
        is_active = True

        @staticmethod
        def find(_condition: bool) -> Query:
            return Query()

    class Settlement:
        def __init__(self, **values: Any) -> None:
            self.values = values

        async def insert(self) -> None: ...

    module = ModuleType("my_models")
    vars(module).update(Tenant=Tenant, Settlement=Settlement)
    return module
