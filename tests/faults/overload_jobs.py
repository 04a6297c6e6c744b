"""Jobs that cost next to nothing, and one that says too much."""

import asyncio

from craft_easy_jobs import JobContext, job


@job(name="noop")
async def noop(ctx: JobContext) -> None:
    return None


@job(name="storm", timeout_seconds=600)
async def storm(ctx: JobContext) -> int:
    """Logs without end, a thousand lines a turn of the loop, until it is asked to stop."""
    said = 0
    while not ctx.should_stop():
        for _ in range(1000):
            await ctx.log(f"line {said} of a job that does not know when to stop: " + "x" * 200)
            said += 1
        await ctx.progress(f"{said} lines", percentage=said % 100)
        await asyncio.sleep(0)
    return said
