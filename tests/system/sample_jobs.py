"""Jobs that behave, and jobs that do not."""

import asyncio
import os
import subprocess
import time
from pathlib import Path

from craft_easy_jobs import JobContext, job


@job(name="noop")
async def noop(ctx: JobContext) -> None:
    return None


@job(name="echo", params_schema={"value": {}})
async def echo(ctx: JobContext) -> object:
    await ctx.log(f"value {ctx.params.get('value')!r}")
    await ctx.progress("half way", percentage=50)
    await ctx.warning("nearly there")
    return {"value": ctx.params.get("value"), "tenants": ctx.iter_tenant_ids()}


@job(name="typed", params_schema={"period": {"type": "string", "pattern": "^\\d{4}-\\d{2}$"}})
async def typed(ctx: JobContext) -> object:
    return ctx.params["period"]


@job(name="sleep-1")
async def sleep_1(ctx: JobContext) -> None:
    await asyncio.sleep(1)


@job(name="when")
async def when(ctx: JobContext) -> float:
    return time.time()


@job(name="flaky", retries=2, retry_delay_seconds=0.05)
async def flaky(ctx: JobContext) -> int:
    if ctx.attempt < 3:
        raise RuntimeError(f"attempt {ctx.attempt} fails")
    return ctx.attempt


@job(name="broken")
async def broken(ctx: JobContext) -> None:
    raise ValueError("no rows for the period")


@job(name="not-json")
async def not_json(ctx: JobContext) -> object:
    return {"rows": [{"amount": {1, 2}}]}


@job(name="polite", timeout_seconds=60)
async def polite(ctx: JobContext) -> str:
    await ctx.log("started")
    while not ctx.should_stop():
        await asyncio.sleep(0.02)
    return "stopped early"


@job(name="obeys-late", timeout_seconds=60)
async def obeys_late(ctx: JobContext) -> str:
    await ctx.log("started")
    while not ctx.should_stop():
        await asyncio.sleep(0.02)
    await asyncio.sleep(2)
    return "cleaned up"


@job(name="surroundings")
async def surroundings(ctx: JobContext) -> dict[str, object]:
    """What a job can see of the process that it is in, and what it passes on."""
    child = subprocess.run(["env"], capture_output=True, text=True, check=True)
    return {
        "environ": dict(os.environ),
        "own": Path("/proc/self/environ").read_text().split("\0"),
        "child": child.stdout.splitlines(),
        "fds": [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()],
    }


@job(name="credential")
async def credential(ctx: JobContext) -> str:
    return ctx.credential("token")[:1]


@job(name="neighbour", isolation="process", timeout_seconds=60)
async def neighbour(ctx: JobContext) -> str:
    await ctx.log("started")
    while not ctx.should_stop():
        await asyncio.sleep(0.02)
    return "never disturbed"


@job(name="block", timeout_seconds=1, grace_seconds=0.3)
async def block(ctx: JobContext) -> None:
    time.sleep(60)


@job(name="swallow", timeout_seconds=1, grace_seconds=0.3)
async def swallow(ctx: JobContext) -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


@job(name="spin", timeout_seconds=1, grace_seconds=0.3)
async def spin(ctx: JobContext) -> None:
    while True:
        pass


@job(name="swallow-long", timeout_seconds=60, grace_seconds=0.3)
async def swallow_long(ctx: JobContext) -> None:
    await ctx.log("started")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


@job(name="dies")
async def dies(ctx: JobContext) -> None:
    os._exit(3)


@job(name="once", on_interrupt="fail", timeout_seconds=60)
async def once(ctx: JobContext) -> None:
    await ctx.log("started")
    await asyncio.sleep(60)
