"""Jobs for a service under systemd. Each start of an attempt leaves a line in the folder `starts` of its state."""

import asyncio
import errno
import mmap
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from craft_easy_jobs import JobContext, job

# The service's home; there before the daemon is.
STARTS = Path("/var/lib/craft-easy-jobd/starts")


def _tell(ctx: JobContext) -> None:
    STARTS.mkdir(exist_ok=True)
    with (STARTS / ctx.run_id).open("a") as file:
        file.write("started\n")


@job(name="quick")
async def quick(ctx: JobContext) -> int:
    _tell(ctx)
    return ctx.attempt


@job(name="obedient", timeout_seconds=60)
async def obedient(ctx: JobContext) -> str:
    """Ends `seconds` after it was asked to stop; by itself, the first time it is started, never."""
    _tell(ctx)
    await ctx.log("started")
    while not ctx.should_stop():
        await asyncio.sleep(0.02)
    await asyncio.sleep(ctx.params.get("seconds", 0))
    return "asked to stop"


@job(name="interrupted", timeout_seconds=60)
async def interrupted(ctx: JobContext) -> str:
    """Its first start never ends, whatever it is asked; its second one does at once."""
    _tell(ctx)
    await ctx.log("started")
    if len((STARTS / ctx.run_id).read_text().splitlines()) == 1:
        await asyncio.sleep(1000)
    return "second start"


@job(name="flaky", retries=1, retry_delay_seconds=6)
async def flaky(ctx: JobContext) -> int:
    """Fails once, and waits up to 6 s then."""
    _tell(ctx)
    if ctx.attempt == 1:
        raise RuntimeError("the first attempt fails")
    return ctx.attempt


@job(name="family", isolation="process", timeout_seconds=60)
async def family(ctx: JobContext) -> str:
    """Its first start has children that outlive their parent if they can, and never ends."""
    _tell(ctx)
    if len((STARTS / ctx.run_id).read_text().splitlines()) > 1:
        return "second start"
    for _ in range(2):
        await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    await ctx.log("started")
    await asyncio.sleep(1000)
    return "first start"


@job(name="environment")
async def environment(ctx: JobContext) -> dict[str, str]:
    return dict(os.environ)


@job(name="hungry", isolation="process", timeout_seconds=60)
async def hungry(ctx: JobContext) -> None:
    """Takes memory without end, 4 MiB each 10 ms, so that a limit is met and not the machine's."""
    taken = []
    while True:
        taken.append(b"x" * (4 << 20))
        await asyncio.sleep(0.01)


@job(name="reach-out")
async def reach_out(ctx: JobContext) -> dict[str, str]:
    """What the sandbox says to some of what a job may want."""
    wants: dict[str, Callable[[], object]] = {
        "internet": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        "subprocess": lambda: subprocess.run(["/bin/true"], check=True),
        "own state": lambda: STARTS.parent.joinpath("note").write_text("note"),
        "etc": lambda: Path("/etc/note").write_text("note"),
        "home": lambda: os.listdir("/home"),
        "other processes": lambda: Path("/proc/1/cmdline").read_bytes(),
        "another user": lambda: os.setuid(0),
        "made code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close(),
    }
    return {name: _answer(want) for name, want in wants.items()}


def _answer(want: Callable[[], object]) -> str:
    try:
        want()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


@job(name="log-in")
async def log_in(ctx: JobContext) -> bool:
    """Tells whether the credential `token` ends with `ending`, and not what it is."""
    return ctx.credential("token").endswith(ctx.params["ending"])


@job(name="hostile")
async def hostile(ctx: JobContext) -> None:
    """Fails with a text that would like to be more than a text."""
    raise RuntimeError("boom\nJOB_RUN_ID=forged\nPRIORITY=0\n\x1b[31mred")
