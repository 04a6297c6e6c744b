"""Jobs that note each of their attempts outside of the daemon's folders, so that a doubled one is seen."""

import asyncio
import os
import time
from pathlib import Path

from craft_easy_jobs import JobContext, job
from tests.faults.notes import NOTES


def note(ctx: JobContext) -> None:
    fd = os.open(Path(os.environ[NOTES]) / ctx.run_id, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{ctx.attempt} {time.monotonic()}\n".encode())
    os.close(fd)


@job(name="count")
async def count(ctx: JobContext) -> int:
    note(ctx)
    await ctx.log("counted")
    return ctx.attempt


@job(name="fails")
async def fails(ctx: JobContext) -> None:
    note(ctx)
    raise ValueError("no rows for the period")


@job(name="flaky", retries=3, retry_delay_seconds=0.01)
async def flaky(ctx: JobContext) -> int:
    note(ctx)
    if ctx.attempt < 2:
        raise RuntimeError("the first attempt fails")
    return ctx.attempt


@job(name="slow", params_schema={"seconds": {"type": "number"}})
async def slow(ctx: JobContext) -> int:
    note(ctx)
    await asyncio.sleep(ctx.params["seconds"])
    return ctx.attempt


@job(name="until", timeout_seconds=120)
async def until(ctx: JobContext) -> int:
    """Goes on until the file `params["path"]` is there."""
    note(ctx)
    while not os.path.exists(ctx.params["path"]):
        await asyncio.sleep(0.02)
    return ctx.attempt


@job(name="eats", timeout_seconds=60)
async def eats(ctx: JobContext) -> int:
    """Takes memory without end the first time: 4 MiB each 10 ms, so that a limit is met and not the machine's."""
    note(ctx)
    eaten: list[bytes] = []
    while ctx.attempt == 1:
        eaten.append(b"x" * (4 << 20))
        await asyncio.sleep(0.01)
    return ctx.attempt
