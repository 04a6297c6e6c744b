"""The specification's month-end, a long chain, and jobs for many tenants."""

import asyncio

from craft_easy_jobs import ChainStep, JobContext, chain, job


@job(
    name="settlement",
    description="Calculate settlement for a billing period",
    timeout_seconds=1800,
    retries=2,
    retry_delay_seconds=0.01,
    per_tenant=True,
    params_schema={"period": {"type": "string", "pattern": "^\\d{4}-\\d{2}$"}},
)
async def settlement(ctx: JobContext) -> object:
    period = ctx.params["period"]
    await ctx.log(f"Starting settlement for tenant={ctx.tenant_id} period={period}")
    await ctx.progress("Settled 1/1", percentage=100)
    if ctx.tenant_id == "broke":
        raise ValueError("nothing to settle")
    return {"period": period, "settled": 1, "tenant": ctx.tenant_id}


@job(name="invoicing")
async def invoicing(ctx: JobContext) -> object:
    return {"invoices": ctx.upstream["settlement"]["counts"]["completed"]}


@job(name="reporting")
async def reporting(ctx: JobContext) -> None:
    raise RuntimeError("the printer is off")


@job(name="rollup", scope="parent_tenant")
async def rollup(ctx: JobContext) -> object:
    return ctx.iter_tenant_ids()


@job(name="short", per_tenant=True, timeout_seconds=60)
async def short(ctx: JobContext) -> object:
    await asyncio.sleep(0.02)
    return ctx.tenant_id


@job(name="waits", per_tenant=True, timeout_seconds=60)
async def waits(ctx: JobContext) -> object:
    while not ctx.should_stop():
        await asyncio.sleep(0.02)
    return "stopped"


@job(name="strict", params_schema={"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}})
async def strict(ctx: JobContext) -> object:
    return ctx.params["n"]


def _link(number: int) -> str:
    @job(name=f"link-{number}", timeout_seconds=60)
    async def link(ctx: JobContext) -> int:
        await asyncio.sleep(0.05)
        return number

    return f"link-{number}"


LINKS = [_link(number) for number in range(20)]

chain(
    name="month-end",
    description="Month-end closing workflow",
    steps=[
        ChainStep(job="settlement"),
        ChainStep(job="invoicing", depends_on=["settlement"]),
        ChainStep(job="reporting", depends_on=["invoicing"], on_failure="continue"),
    ],
)
chain("long", steps=[ChainStep(job, depends_on=LINKS[max(0, n - 1) : n]) for n, job in enumerate(LINKS)])
chain("third-is-strict", steps=[ChainStep("invoicing"), ChainStep("reporting"), ChainStep("strict")])
chain("waiting", steps=[ChainStep("waits"), ChainStep("invoicing", depends_on=["waits"])])
