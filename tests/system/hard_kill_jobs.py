"""Jobs that do not end by being asked, and what they start. Each writes the pids that must be gone with it."""

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from craft_easy_jobs import JobContext, job

TIMEOUT, GRACE = 1, 0.3

DAEMON = """
import os, signal, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""

# Every process forks a successor and exits: whoever kills what it sees comes too late. It ends by itself in the end.
BOMB = """
import os, sys, time
for _ in range(20_000):
    if os.fork():
        os._exit(0)
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(0.0005)
"""


def sleep(path: Path) -> None:
    time.sleep(600)


def spin(path: Path) -> None:
    while True:
        pass


def hold_the_gil(path: Path) -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


def compute_without_the_gil(path: Path) -> None:
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 2**31 - 1)


def block_all_signals(path: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(600)


def child(path: Path) -> None:
    _note(path, subprocess.Popen(["sleep", "600"]).pid)
    time.sleep(600)


def child_in_a_session(path: Path) -> None:
    _note(path, subprocess.Popen(["sleep", "600"], start_new_session=True, env={}).pid)
    time.sleep(600)


def daemon(path: Path) -> None:
    subprocess.run([sys.executable, "-c", DAEMON, str(path) + ".daemon"], env={}, check=True)
    while not (pid := _text(Path(str(path) + ".daemon"))):
        time.sleep(0.01)
    _note(path, int(pid))
    time.sleep(600)


BLOCKING: dict[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (
        *(sleep, spin, hold_the_gil, compute_without_the_gil, block_all_signals),
        *(child, child_in_a_session, daemon),
    )
}
WAYS = [*BLOCKING, "swallow", "thread"]


async def hang(ctx: JobContext) -> None:
    path, way = Path(ctx.params["pids"]), ctx.params["way"]
    if way not in ("child", "child_in_a_session", "daemon"):
        _note(path, os.getpid())
    if way == "swallow":
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                continue
    if way == "thread":
        await asyncio.to_thread(time.sleep, 600)
    BLOCKING[way](path)


def _note(path: Path, pid: int) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(str(pid))
    draft.rename(path)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


for name, isolation in (("hang", "shared"), ("hang-alone", "process")):
    for ending, seconds in (("timeout", TIMEOUT), ("force", 600)):
        job(name=f"{name}-{ending}", isolation=isolation, timeout_seconds=seconds, grace_seconds=GRACE)(hang)  # type: ignore[call-overload]


@job(name="neighbour", isolation="process", timeout_seconds=600)
async def neighbour(ctx: JobContext) -> str:
    process = await asyncio.create_subprocess_exec("sleep", "600")
    _note(Path(ctx.params["pids"]), process.pid)
    while not ctx.should_stop():
        await asyncio.sleep(0.02)
    process.kill()
    await process.wait()
    return "undisturbed"


@job(name="bomb", timeout_seconds=1, grace_seconds=GRACE)
async def bomb(ctx: JobContext) -> None:
    subprocess.Popen([sys.executable, "-c", BOMB, ctx.params["pids"]], start_new_session=True)
    time.sleep(600)


@job(name="crash-with-a-daemon")
async def crash_with_a_daemon(ctx: JobContext) -> None:
    path = Path(ctx.params["pids"])
    subprocess.run([sys.executable, "-c", DAEMON, str(path)], env={}, check=True)
    while not _text(path):
        time.sleep(0.01)
    os._exit(3)


@job(name="start-a-daemon")
async def start_a_daemon(ctx: JobContext) -> None:
    """Its environment is kept: the mark of this daemon is in it."""
    subprocess.run([sys.executable, "-c", DAEMON, ctx.params["pids"]], check=True)


@job(name="orphans")
async def orphans(ctx: JobContext) -> int:
    """Start a process that is left by its parent and then ends."""
    script = "import os\nif not os.fork():\n    os.setsid()\n    if os.fork():\n        os._exit(0)"
    for _ in range(ctx.params["number"]):
        await (await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", script)).wait()
    return os.getpid()


@job(name="write-to", timeout_seconds=1, grace_seconds=GRACE)
async def write_to(ctx: JobContext) -> None:
    """Hang in the kernel when the file system is frozen."""
    Path(ctx.params["pids"]).write_text(str(os.getpid()))
    Path(ctx.params["path"]).write_text("x")


@job(name="write-to-alone", isolation="process", timeout_seconds=1, grace_seconds=GRACE)
async def write_to_alone(ctx: JobContext) -> None:
    Path(ctx.params["pids"]).write_text(str(os.getpid()))
    Path(ctx.params["path"]).write_text("x")


@job(name="pid")
async def pid(ctx: JobContext) -> int:
    return os.getpid()


@job(name="pid-alone", isolation="process")
async def pid_alone(ctx: JobContext) -> int:
    return os.getpid()


@job(name="obey-and-leave", timeout_seconds=TIMEOUT, grace_seconds=GRACE)
async def obey_and_leave(ctx: JobContext) -> None:
    path = Path(ctx.params["pids"])
    if ctx.params["what"] == "a_child":
        _note(path, (await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)).pid)
    else:
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", DAEMON, str(path)], env={}, check=True)
    await asyncio.sleep(600)


@job(name="shared-neighbour", timeout_seconds=600)
async def shared_neighbour(ctx: JobContext) -> str:
    await ctx.log("started")
    while not ctx.should_stop():
        await asyncio.to_thread(time.sleep, 0.05)
    return "undisturbed"


job(name="neighbour-in-company", timeout_seconds=600)(neighbour)
