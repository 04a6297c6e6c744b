"""Jobs that behave well, badly and worse, for the tests of workers and their pool."""

import asyncio
import contextvars
import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from craft_easy_jobs import ChainStep, JobContext, chain, job

colour = contextvars.ContextVar("colour", default="none")


class BrokenTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@job(name="echo", description="returns its params")
async def echo(ctx: JobContext) -> dict[str, Any]:
    return ctx.params


@job(name="facts")
async def facts(ctx: JobContext) -> list[Any]:
    return [ctx.run_id, ctx.job_name, ctx.tenant_id, ctx.scope, ctx.sub_tenant_ids, ctx.attempt]


@job(name="strict", params_schema={"period": {"type": "string"}})
async def strict(ctx: JobContext) -> None: ...


@job(name="value")
async def value(ctx: JobContext) -> Any:
    values = {"nan": {"rows": [1, float("nan")]}, "set": {1}, "nothing": None, "large": "x" * ctx.params.get("size", 0)}
    return values[ctx.params["which"]]


@job(name="raise")
async def raise_(ctx: JobContext) -> None:
    errors: dict[str, BaseException] = {
        "ValueError": ValueError("no rows"),
        "SystemExit": SystemExit(3),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "CancelledError": asyncio.CancelledError(),
        "BrokenTextError": BrokenTextError(),
        "long": ValueError("x" * 1_000_000),
    }
    raise errors[ctx.params["which"]]


@job(name="exit-in-task")
async def exit_in_task(ctx: JobContext) -> None:
    async def leave() -> None:
        sys.exit(5)

    await asyncio.create_task(leave())


@job(name="talk")
async def talk(ctx: JobContext) -> str:
    await ctx.log("one")
    await ctx.progress("two", percentage=50)
    await ctx.warning("three")
    await asyncio.sleep(0)
    await ctx.error("four \N{SNOWMAN}")
    await asyncio.to_thread(asyncio.run, ctx.log("from a thread"))
    await ctx.log("last")
    return "said"


@job(name="talk-too-much")
async def talk_too_much(ctx: JobContext) -> None:
    for _ in range(20):
        await ctx.log("x" * 1024 * 1024)


@job(name="print")
async def print_(ctx: JobContext) -> None:
    print("from the job")


@job(name="until-asked")
async def until_asked(ctx: JobContext) -> str:
    await ctx.log("begun")
    while not ctx.should_stop():
        await asyncio.sleep(0.01)
    return "asked"


@job(name="until-asked-blocking")
async def until_asked_blocking(ctx: JobContext) -> str:
    colour.set("red")
    await ctx.log("begun")
    while not ctx.should_stop():
        time.sleep(0.01)
    return "asked"


@job(name="colour")
async def colour_(ctx: JobContext) -> str:
    return colour.get()


@job(name="sleep")
async def sleep(ctx: JobContext) -> None:
    await ctx.log("begun")
    await asyncio.sleep(ctx.params.get("seconds", 3600))


@job(name="swallow")
async def swallow(ctx: JobContext) -> None:
    await ctx.log("begun")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await ctx.log("swallowed")


@job(name="block")
async def block(ctx: JobContext) -> None:
    await ctx.log("begun")
    time.sleep(3600)


@job(name="block-briefly")
async def block_briefly(ctx: JobContext) -> None:
    time.sleep(0.6)


@job(name="die")
async def die(ctx: JobContext) -> None:
    await ctx.log("begun")
    if ctx.params["how"] == "segfault":
        ctypes.string_at(0)
    if ctx.params["how"] == "fork":
        _leave_a_copy(ctx.params["pid_file"])
    os._exit(3)


def _leave_a_copy(pid_file: str) -> None:
    """A process in a session of its own that holds all that this one has open."""
    if pid := os.fork():
        Path(pid_file).write_text(str(pid))
    else:
        os.setsid()
        time.sleep(3600)


@job(name="start-a-process")
async def start_a_process(ctx: JobContext) -> int:
    return subprocess.Popen(["sleep", "3600"]).pid


@job(name="corrupt")
async def corrupt(ctx: JobContext) -> None:
    os.write(_socket(), b"\xff" * 16)
    await asyncio.sleep(3600)


@job(name="close-socket")
async def close_socket(ctx: JobContext) -> None:
    os.dup2(os.open("/dev/null", os.O_RDWR), _socket())
    time.sleep(3600)


def _socket() -> int:
    return int(json.loads(sys.argv[1])["fd"])


@job(name="storm")
async def storm(ctx: JobContext) -> int:
    for number in range(5000):
        await ctx.log(str(number))
    return len(ctx.get_logs())


@job(name="environment")
async def environment(ctx: JobContext) -> dict[str, str]:
    return dict(os.environ)


@job(name="allocate")
async def allocate(ctx: JobContext) -> None:
    text = b"x" * ctx.params["bytes"]
    until = time.process_time() + 0.02
    while time.process_time() < until:
        text.count(b"y")


chain("twice", steps=[ChainStep("echo"), ChainStep("facts", depends_on=["echo"])])
