"""A system that has no files or processes left for a while: the daemon goes on, and says what is missing."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until

NO_MORE = 8
MISSING = '"no worker can be started: Too many open files"'


@contextmanager
def no_more_files(jobd: DaemonProcess) -> Iterator[None]:
    limits = resource.prlimit(jobd.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(jobd.pid, resource.RLIMIT_NOFILE, (NO_MORE, limits[1]))
    yield
    resource.prlimit(jobd.pid, resource.RLIMIT_NOFILE, limits)


def shared(jobd: DaemonProcess) -> list[dict[str, Any]]:
    return [each for each in jobd.status()["workers"] if each["isolation"] == "shared"]


def test_a_worker_that_cannot_be_started_now_is_started_later(daemon: Callable[..., DaemonProcess]) -> None:
    jobd = daemon("--jobs", "tests.system.sample_jobs", "--workers", "1")
    (before,) = shared(jobd)
    with no_more_files(jobd):
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda: f"trying again problem={MISSING}" in jobd.log, within=20)
    assert jobd.result(jobd.drop({"job": "noop"}))["status"] == "completed"
    assert [each["pid"] for each in shared(jobd)] != [before["pid"]]
    wait_until(lambda: jobd.status()["problems"] == [], within=20)


def test_a_reload_for_which_there_is_nothing_to_spare_is_refused_at_once(daemon: Callable[..., DaemonProcess]) -> None:
    jobd = daemon("--jobs", "tests.system.sample_jobs", "--workers", "1")
    before = shared(jobd)
    with no_more_files(jobd):
        jobd.signal(signal.SIGHUP)
        wait_until(lambda: f"stay in force problem={MISSING}" in jobd.log, within=20)
    assert [each["pid"] for each in shared(jobd)] == [each["pid"] for each in before]
    assert jobd.result(jobd.drop({"job": "noop"}))["status"] == "completed"


@pytest.mark.parametrize("files", [7, 10])
def test_a_daemon_that_cannot_start_for_want_of_files_says_so(files: int, short_dir: Path) -> None:
    command = [sys.executable, "-m", "craft_easy_jobd", "serve", "--root", str(short_dir / "var")]
    limited = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
    done = subprocess.run(
        limited, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30, cwd=short_dir
    )
    assert (done.returncode, "Traceback" in done.stderr) == (71, False), done.stderr
    assert "Too many open files; raise what limits the daemon (ulimit -n" in done.stderr
