"""Do something as another user of the system; only root can."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

# Debian's nobody and nogroup; and numbers that nobody has.
NOBODY = 65534
SOMEBODY, SOMEGROUP, OTHERGROUP = 61001, 61002, 61003

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

# What it imports, it imports as root: the checkout may lie where nobody else gets in.
_BECOME = """
import os, sys
def become(): os.setgroups(groups); os.setgid(gid); os.setuid(uid)
uid, gid, *groups = map(int, sys.argv.pop(1).split(","))
"""


def run_as(script: str, *args: object, uid: int, gid: int, groups: Sequence[int] = ()) -> str:
    """Run a Python script that calls `become()` after its imports; returns what it wrote, to stderr too."""
    who = ",".join(map(str, (uid, gid, *groups)))
    command = [sys.executable, "-c", _BECOME + script, who, *map(str, args)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30
    )
    return done.stdout
