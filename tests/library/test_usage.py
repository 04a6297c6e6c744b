"""What a worker says of an attempt that has it to itself."""

import json
import subprocess
import sys
from typing import Any

import pytest

MB = 1024**2

# In a process of its own: the kernel keeps the largest child for ever.
SCRIPT = """
import json, subprocess, sys, time
from craft_easy_jobs.usage import Usage

def child(code):
    return subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)

def burn(then):
    return f"import time\\nwhile time.process_time() < 0.3: pass\\nprint(flush=True)\\n{then}"

def hold(megabytes):
    return f"held = bytearray({megabytes} * 1024**2)"

before = child(burn("time.sleep(600)"))
before.stdout.readline()
usage = Usage()
%s
print(json.dumps(usage.so_far()))
before.kill()
"""


def used(code: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT % code], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True
    )
    return dict(json.loads(done.stdout))


def test_nothing_of_what_was_before_is_counted() -> None:
    assert used("")["cpu_seconds"] < 0.1


@pytest.mark.parametrize(
    "code",
    [
        "while time.process_time() < 0.4: pass",
        "child(burn('')).communicate()",
        "now = child(burn('time.sleep(600)')); now.stdout.readline(); import atexit; atexit.register(now.kill)",
        # One that ended and that nobody has waited for.
        "now = child(burn('')); now.stdout.read(); import os; os.waitid(os.P_PID, now.pid, os.WEXITED | os.WNOWAIT)",
    ],
    ids=["itself", "ended", "living", "zombie"],
)
def test_cpu_time_is_that_of_all(code: str) -> None:
    assert 0.25 < used(code)["cpu_seconds"] < 1.5


@pytest.mark.parametrize("code", ["held = bytearray(100 * 1024**2); del held", "child(hold(100)).communicate()"])
def test_the_peak_is_that_of_the_largest(code: str) -> None:
    assert 100 * MB < used(code)["peak_rss_bytes"] < 150 * MB


def test_a_child_of_an_earlier_attempt_is_not_told_again() -> None:
    code = "child(hold(100)).communicate(); usage = Usage(); child(hold(50)).communicate()"
    assert used(code)["peak_rss_bytes"] < 100 * MB
