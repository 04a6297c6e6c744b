"""`make install` into a folder, for tests of what an administrator installs."""

import os
import subprocess
from pathlib import Path

from tests.support.daemon import PROJECT


def installed(folder: Path, *, prefix: str = "/usr/local") -> Path:
    """Install below `folder` as with DESTDIR=folder, by /usr/bin/python3; returns `folder`. Takes some 15 s."""
    command = [str(PROJECT / "systemd" / "install"), "install"]
    environment = {**os.environ, "DESTDIR": str(folder), "PREFIX": prefix, "PYTHON": "/usr/bin/python3"}
    ended = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return folder
