"""The watch over what tests leave behind sees each kind of leak, and blames the test that leaks."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import PROJECT

LEAKY = """
import asyncio, os, signal, subprocess, threading
from tests.conftest import leaves_nothing_behind

kept = []

def test_leaks():
    kept.append(subprocess.Popen(["sleep", "60"]))
    subprocess.run("setsid sleep 61 >/dev/null 2>&1 &", shell=True, check=True)
    threading.Thread(target=threading.Event().wait, daemon=True, name="loiterer").start()
    kept.append(os.pipe())

def test_handler():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

async def test_clean():
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    await asyncio.to_thread(os.getpid)

def test_ends_by_itself_soon():
    kept.append(subprocess.Popen(["sleep", "0.2"]))
    threading.Thread(target=kept[-1].wait).start()
"""


def test_each_leak_is_seen_and_blamed(tmp_path: Path) -> None:
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    pytest = [sys.executable, "-m", "pytest", "-c", str(PROJECT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    ended = subprocess.run(
        [*pytest, "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "4 passed, 2 errors" in ended.stdout, ended.stdout
    told = next(line for line in ended.stdout.splitlines() if line.startswith("left behind: "))
    assert (told.count("name='sleep'"), told.count("loiterer"), told.count("-> pipe:")) == (2, 1, 2), told
    assert "the test changed signal handlers" in ended.stdout
