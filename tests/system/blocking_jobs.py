"""Jobs that do not let their worker's loop turn, each in its own way."""

import asyncio
import hashlib
import json
import os
import re
import signal
import sys
import time

from craft_easy_jobs import JobContext, job
from craft_easy_jobs.board import STACK_SIGNAL

FOREVER = 3600.0


def compute(seconds: float) -> None:
    time.sleep(seconds)


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def match(seconds: float) -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


def derive(seconds: float) -> None:
    hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 2_000_000_000)


def descend(seconds: float, depth: int = 200) -> None:
    descend(seconds, depth - 1) if depth else compute(seconds)


WAYS = {way.__name__: way for way in (compute, spin, match, derive, descend)}


@job(name="block", timeout_seconds=120, grace_seconds=0.2)
async def block(ctx: JobContext) -> float:
    return await blocked(ctx)


@job(name="block-alone", isolation="process", timeout_seconds=120, grace_seconds=0.2)
async def block_alone(ctx: JobContext) -> float:
    return await blocked(ctx)


async def blocked(ctx: JobContext) -> float:
    """Block in the way of the params; returns when it began, in Unix seconds. The log says so too."""
    began = await tell(ctx)
    WAYS[ctx.params["way"]](ctx.params.get("seconds", FOREVER))
    # The loop turns, and the run is still there to be told.
    await asyncio.sleep(ctx.params.get("then", 0.0))
    return began


async def tell(ctx: JobContext) -> float:
    began = time.time()
    await ctx.log(f"{began:.6f}")
    # The entry is on its way before the loop stands still.
    await asyncio.sleep(0.01)
    return began


@job(name="block-in-a-task", timeout_seconds=120, grace_seconds=0.2)
async def block_in_a_task(ctx: JobContext) -> None:
    async def part(number: int) -> None:
        await asyncio.sleep(0.05 * number)
        if number == 3:
            await tell(ctx)
            compute(FOREVER)

    await asyncio.gather(*(part(number) for number in range(6)))


@job(name="block-in-a-callback", timeout_seconds=120, grace_seconds=0.2)
async def block_in_a_callback(ctx: JobContext) -> None:
    asyncio.get_running_loop().call_later(0.05, compute, 1.5)
    await asyncio.sleep(FOREVER)


@job(name="wait", timeout_seconds=120, grace_seconds=0.2)
async def wait(ctx: JobContext) -> None:
    """Quick steps all the time, so that a wrong name is likely."""
    await ctx.log("begun")
    while not ctx.should_stop():
        await asyncio.sleep(0.005)


@job(name="quick")
async def quick(ctx: JobContext) -> int:
    await asyncio.sleep(0)
    return sum(range(1000))


@job(name="where")
async def where(ctx: JobContext) -> int:
    return os.getpid()


@job(name="a-second")
async def a_second(ctx: JobContext) -> None:
    await asyncio.sleep(1.2)


@job(name="spoil", isolation="process", timeout_seconds=120, grace_seconds=0.2)
async def spoil(ctx: JobContext) -> float:
    """Take away, in the way of the params, what the supervisor would learn the place by; then block."""
    stack = json.loads(sys.argv[1])["stack"]
    match ctx.params["spoil"]:
        case "close":
            os.close(stack)
        case "replace":
            # Now its number is that of a file of the job, which nobody else must write to.
            os.dup2(os.open(ctx.params["file"], os.O_WRONLY), stack)
        case "fill":
            os.write(stack, b"\xff\n  File x" * 100_000)
        case "handle":
            signal.signal(STACK_SIGNAL, lambda *_: None)
        case "default":
            signal.signal(STACK_SIGNAL, signal.SIG_DFL)
        case "block":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    return await blocked(ctx)
