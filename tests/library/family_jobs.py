"""Jobs that run once per tenant, and chains, for the tests of JobRunner and craft-easy-job."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from craft_easy_jobs import ChainStep, JobContext, chain, job
from craft_easy_jobs.tenants import Tenant

TENANTS = [
    Tenant("group", name="The group"),
    Tenant("north", "group"),
    Tenant("south", "group"),
    Tenant("off", "group", False),
]


async def tenants() -> list[Tenant]:
    return TENANTS


@job(name="settle", per_tenant=True, params_schema={"period": {"type": "string"}}, retries=1, retry_delay_seconds=0)
async def settle(ctx: JobContext) -> dict[str, Any]:
    await ctx.log(f"settling {ctx.params.get('period')}")
    if ctx.tenant_id in ctx.params.get("bad", []):
        raise ValueError(f"no rows for {ctx.tenant_id}")
    return {"tenants": ctx.iter_tenant_ids(), "attempt": ctx.attempt}


@job(name="crowd", per_tenant=True, scope="system")
async def crowd(ctx: JobContext) -> int:
    """Wait until as many tenants were here at once as are to be side by side; returns how many there were."""
    here = Path(ctx.params["folder"])
    met = here.parent / "met"
    (here / str(ctx.tenant_id)).touch()
    while not met.exists():
        if len(os.listdir(here)) == ctx.params["side_by_side"]:
            met.touch()
        await asyncio.sleep(0.005)
    count = len(os.listdir(here))
    (here / str(ctx.tenant_id)).unlink()
    return count


@job(name="wait-each", per_tenant=True, grace_seconds=5, timeout_seconds=30)
async def wait_each(ctx: JobContext) -> str:
    await ctx.log("READY")
    while not ctx.should_stop() or ctx.params.get("deaf"):
        await asyncio.sleep(0.01)
    return "obeyed"


@job(name="block-each", per_tenant=True, timeout_seconds=1, grace_seconds=0.2)
async def block_each(ctx: JobContext) -> None:
    """The group's ends at once, that of the north blocks the loop, the others wait."""
    if ctx.tenant_id == "group":
        return
    if ctx.tenant_id == "north":
        await asyncio.sleep(0.2)
        time.sleep(ctx.params.get("seconds", 60))
    await asyncio.sleep(60)


async def note(ctx: JobContext) -> str:
    await ctx.log("READY")
    if ctx.params.get("fail") == ctx.job_name:
        raise ValueError(f"{ctx.job_name} has no rows")
    return f"{ctx.job_name} after {', '.join(ctx.upstream)}"


for _name in ("first", "left", "right", "last"):
    job(name=_name, params_schema={"amount": {"type": "integer"}})(note)


@job(name="third-time", scope="system")
async def third_time(ctx: JobContext) -> int:
    """Fail until the third run, as counted in a file."""
    file = Path(ctx.params["file"])
    count = len(file.read_text()) if file.exists() else 0
    file.write_text("x" * (count + 1))
    if count < 2:
        raise ConnectionError("hung up")
    return count + 1


@job(name="breaks-later", scope="system")
async def breaks_later(ctx: JobContext) -> None:
    """Fail when somebody says so, by a file."""
    while not Path(ctx.params["go"]).exists():
        await asyncio.sleep(0.01)
    raise ConnectionError("hung up too")


@job(name="rollup", scope="parent_tenant")
async def rollup(ctx: JobContext) -> dict[str, Any]:
    return {"tenants": ctx.iter_tenant_ids(), "upstream": ctx.upstream}


@job(name="waits", scope="system", timeout_seconds=30)
async def waits(ctx: JobContext) -> str:
    await ctx.log("READY")
    while not ctx.should_stop():
        await asyncio.sleep(0.01)
    return "obeyed"


chain(
    "diamond",
    "Two branches side by side",
    [
        ChainStep("first", params={"amount": 1}),
        ChainStep("left", depends_on=["first"]),
        ChainStep("right", depends_on=["first"]),
        ChainStep("last", depends_on=["left", "right"]),
    ],
)
chain("lenient", steps=[ChainStep("first", on_failure="continue"), ChainStep("last", depends_on=["first"])])
chain("stubborn", steps=[ChainStep("third-time", on_failure="retry", retries=2, retry_delay_seconds=0)])
chain("patient", steps=[ChainStep("third-time", on_failure="retry", retries=2, retry_delay_seconds=3600)])
chain(
    "broken-meanwhile",
    steps=[
        ChainStep("third-time", on_failure="retry", retries=2, retry_delay_seconds=3600),
        ChainStep("breaks-later"),
    ],
)
chain("mixed", steps=[ChainStep("settle"), ChainStep("rollup", depends_on=["settle"])])
chain("waiting", steps=[ChainStep("waits"), ChainStep("last", depends_on=["waits"])])
