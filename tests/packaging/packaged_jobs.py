"""Jobs of a machine on which the package is installed."""

import asyncio

from craft_easy_jobs import JobContext, __version__, job


@job(name="half-a-second", timeout_seconds=60)
async def half_a_second(ctx: JobContext) -> str:
    await asyncio.sleep(0.5)
    return __version__
