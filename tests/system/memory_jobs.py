"""Jobs that use memory and CPU time, themselves or in processes that they start."""

import asyncio
import os
import subprocess
import sys
import time

from craft_easy_jobs import JobContext, job

LIMIT_MB = 200

# Holds so many MiB, says so, and goes on until it is killed, or ends at once when told to.
HOLD = """
import sys, time
held = bytearray(int(sys.argv[1]) * 1024**2)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""

BURN = """
import time
while time.process_time() < 0.5:
    pass
"""


def _holding(megabytes: int, seconds: float) -> list[str]:
    return [sys.executable, "-S", "-c", HOLD, str(megabytes), str(seconds)]


async def _start(command: list[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, start_new_session=True)


@job(name="limited", memory_limit_mb=LIMIT_MB, timeout_seconds=60)
async def limited(ctx: JobContext) -> str:
    """Let `children` processes hold `megabytes` each, for `seconds`."""
    command = _holding(ctx.params["megabytes"], ctx.params.get("seconds", 0))
    for each in [await _start(command) for _ in range(ctx.params.get("children", 1))]:
        await each.communicate()
    return "held"


@job(name="limited-itself", memory_limit_mb=LIMIT_MB, timeout_seconds=60, retries=1, retry_delay_seconds=0)
async def limited_itself(ctx: JobContext) -> None:
    """Hold more than the limit without letting the loop turn, and note each attempt."""
    await ctx.log(f"attempt {ctx.attempt}")
    held = bytearray(2 * LIMIT_MB * 1024**2)
    time.sleep(600)
    del held


@job(name="hold-alone", isolation="process", timeout_seconds=60)
async def hold_alone(ctx: JobContext) -> None:
    """Hold memory without a limit of its own."""
    held = bytearray(ctx.params["megabytes"] * 1024**2)
    time.sleep(600)
    del held


_left: list[bytearray] = []


@job(name="leaves-much", isolation="process", timeout_seconds=60)
async def leaves_much(ctx: JobContext) -> int:
    _left.append(bytearray(ctx.params["megabytes"] * 1024**2))
    return os.getpid()


@job(name="beside", timeout_seconds=60)
async def beside(ctx: JobContext) -> str:
    while not ctx.should_stop():
        await asyncio.sleep(0.02)
    return "undisturbed"


job(name="beside-alone", isolation="process", timeout_seconds=60)(beside)


@job(name="uses-a-child", isolation="process", timeout_seconds=60)
async def uses_a_child(ctx: JobContext) -> None:
    """Let a child use half a second of CPU time, another one memory; both end before the job does."""
    for command in ([sys.executable, "-S", "-c", BURN], _holding(ctx.params["megabytes"], 0)):
        await (await _start(command)).communicate()
