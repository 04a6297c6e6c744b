"""Jobs that behave well and badly, for the tests of JobRunner and craft-easy-job."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from craft_easy_jobs import ChainStep, JobContext, chain, job


class BrokenStr(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise ValueError("not even this works")


@job(name="echo", params_schema={"period": {"type": "string"}}, scope="tenant")
async def echo(ctx: JobContext) -> dict[str, Any]:
    print("printed by the job")
    subprocess.run([sys.executable, "-c", "print('printed by a child')"], check=True)
    return {
        "params": ctx.params,
        "tenants": ctx.iter_tenant_ids(),
        "scope": ctx.scope,
        "run_id": ctx.run_id,
        "attempt": ctx.attempt,
    }


@job(name="talkative")
async def talkative(ctx: JobContext) -> None:
    await ctx.log("first \x1b[31mred\x1b[0m\nsecond [bold]line[/bold]")
    await ctx.warning("careful")
    await ctx.error("row 42")
    await ctx.progress("half-way", percentage=50)
    await ctx.log("between [bold]bars[/bold]")
    await ctx.progress("there", percentage=100)


@job(name="fails")
async def fails(ctx: JobContext) -> None:
    raise ValueError("no rows\nin table")


@job(name="flaky", retries=2, retry_delay_seconds=0)
async def flaky(ctx: JobContext) -> int:
    ctx.params["seen"] = ctx.params.get("seen", 0) + 1
    await ctx.log(f"attempt {ctx.attempt} sees {ctx.params['seen']}")
    if ctx.attempt < 3:
        raise ConnectionError("hung up")
    return ctx.attempt


@job(name="never-well", retries=1, retry_delay_seconds=0)
async def never_well(ctx: JobContext) -> None:
    raise ConnectionError(f"hung up {ctx.attempt}")


@job(name="retries-later", retries=1, retry_delay_seconds=3600)
async def retries_later(ctx: JobContext) -> None:
    await ctx.log("READY")
    raise ConnectionError("hung up")


@job(name="raises")
async def raises(ctx: JobContext) -> None:
    raise {
        "exit": SystemExit(4),
        "interrupt": KeyboardInterrupt(),
        "broken": BrokenStr(),
        "cancel": asyncio.CancelledError(),
    }[ctx.params["what"]]


@job(name="returns", retries=2, retry_delay_seconds=0)
async def returns(ctx: JobContext) -> Any:
    return {"nan": {"a": [float("nan")]}, "set": {1}, "big": 2**80, "tuple": (1, 2)}[ctx.params["what"]]


@job(name="overruns", timeout_seconds=1, grace_seconds=5)
async def overruns(ctx: JobContext) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        await ctx.log(f"cleaned up, stop asked: {ctx.should_stop()}")


@job(name="overruns-once", timeout_seconds=1, retries=1, retry_delay_seconds=0)
async def overruns_once(ctx: JobContext) -> int:
    await asyncio.sleep(60 if ctx.attempt == 1 else 0)
    return ctx.attempt


@job(name="refuses", timeout_seconds=1, retries=5, grace_seconds=0.2)
async def refuses(ctx: JobContext) -> None:
    await ctx.log("READY")
    while not os.environ.get("LET_GO"):
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            await ctx.warning("no")


@job(name="blocks", timeout_seconds=1, grace_seconds=0.2)
async def blocks(ctx: JobContext) -> None:
    await ctx.log("READY")
    time.sleep(60)


@job(name="blocks-long", timeout_seconds=60, grace_seconds=0.2)
async def blocks_long(ctx: JobContext) -> None:
    await ctx.log("READY")
    time.sleep(60)


@job(name="threads", timeout_seconds=1, grace_seconds=0.2)
async def threads(ctx: JobContext) -> None:
    await asyncio.to_thread(time.sleep, 60)


@job(name="polls", timeout_seconds=30)
async def polls(ctx: JobContext) -> str:
    await ctx.log("READY")
    while not ctx.should_stop():
        await asyncio.sleep(0.01)
    return "obeyed"


@job(name="deaf", timeout_seconds=30, grace_seconds=5, retries=3)
async def deaf(ctx: JobContext) -> None:
    await ctx.log("READY")
    await asyncio.sleep(60)


@job(name="hears-elsewhere", timeout_seconds=30, grace_seconds=5)
async def hears_elsewhere(ctx: JobContext) -> None:
    """The kernel gives signals to another thread, while the loop's one sleeps in the kernel."""
    threading.Thread(target=time.sleep, args=[60], daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    await ctx.log("READY")
    await asyncio.sleep(60)


@job(name="stops-badly", timeout_seconds=30, retries=3, retry_delay_seconds=0)
async def stops_badly(ctx: JobContext) -> None:
    await ctx.log("READY")
    while not ctx.should_stop():
        await asyncio.sleep(0.01)
    raise RuntimeError("half a file")


@job(name="leaves-a-task")
async def leaves_a_task(ctx: JobContext) -> None:
    async def background() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await ctx.log("swept")

    ctx.params["task"] = asyncio.create_task(background())
    await asyncio.sleep(0)


chain("echo-then-fail", steps=[ChainStep("echo"), ChainStep("fails", depends_on=["echo"])])
