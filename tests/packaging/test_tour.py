"""`make demo` is the first thing that a newcomer sees."""

import subprocess
import sys
from pathlib import Path

from tests.support.daemon import PROJECT


def test_the_tour_ends_well_and_leaves_nothing(short_dir: Path) -> None:
    tour = [sys.executable, "-m", "tests.support.tour"]
    env = {"PATH": "/usr/bin:/bin", "TMPDIR": str(short_dir)}
    ended = subprocess.run(tour, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    for word in ("100%  Settled 8/8", "export      completed", "attempts 3", "timed_out", "exit code 0"):
        assert word in ended.stdout
    assert list(short_dir.iterdir()) == []
