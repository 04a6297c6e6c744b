"""The jobs of the benchmark; each returns when its function began, CLOCK_MONOTONIC in nanoseconds."""

import asyncio
import time

from craft_easy_jobs import JobContext, job


@job(name="noop", description="Nothing")
async def noop(ctx: JobContext) -> int:
    return time.monotonic_ns()


@job(name="sleep", description="Sleep for params.seconds")
async def sleep(ctx: JobContext) -> int:
    began = time.monotonic_ns()
    await asyncio.sleep(ctx.params["seconds"])
    return began


@job(name="chatty", description="Log 100 lines")
async def chatty(ctx: JobContext) -> int:
    began = time.monotonic_ns()
    for number in range(100):
        await ctx.log(f"Line {number}")
    return began


@job(name="obedient", description="Go on until asked to stop")
async def obedient(ctx: JobContext) -> int:
    began = time.monotonic_ns()
    while not ctx.should_stop():
        await asyncio.sleep(0.1)
    return began
