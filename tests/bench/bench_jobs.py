"""The jobs of the benchmark. All but `result-10k` return when their function began, CLOCK_MONOTONIC in nanoseconds."""

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
    return await _log(ctx, 100)


async def _log(ctx: JobContext, lines: int) -> int:
    began = time.monotonic_ns()
    for number in range(lines):
        await ctx.log(f"Line {number}")
    return began


@job(name="sleep-5ms", description="Sleep for 5 ms")
async def sleep_5ms(ctx: JobContext) -> int:
    began = time.monotonic_ns()
    await asyncio.sleep(0.005)
    return began


@job(name="compute", description="2 ms of processor time")
async def compute(ctx: JobContext) -> int:
    began = time.monotonic_ns()
    until = time.thread_time() + 0.002
    while time.thread_time() < until:
        pass
    return began


@job(name="log-20", description="Log 20 lines")
async def log_20(ctx: JobContext) -> int:
    return await _log(ctx, 20)


@job(name="result-10k", description="Return 10 KiB")
async def result_10k(ctx: JobContext) -> str:
    return "x" * 10 * 1024


@job(name="per-tenant", description="One run for each tenant", per_tenant=True)
async def per_tenant(ctx: JobContext) -> int:
    return time.monotonic_ns()


@job(name="obedient", description="Go on until asked to stop")
async def obedient(ctx: JobContext) -> int:
    began = time.monotonic_ns()
    while not ctx.should_stop():
        await asyncio.sleep(0.1)
    return began
