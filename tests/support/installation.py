"""What an administrator installs, for tests: `make install` into a folder, and the Debian package.

Both take some 15 s, so the fixtures `installation` and `package` make them once for all processes that share the tests.
"""

import faulthandler
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import PROJECT
from tests.support.waiting import wait_until

PYTHON = "/usr/bin/python3"
_MAKING_SECONDS = 300.0


def run_script(name: str, *arguments: str, **environment: str) -> str:
    """Run one of systemd/ with this environment added; returns what it says.

    Raises:
        AssertionError: it failed, or took longer than five minutes.
    """
    ended = subprocess.run(
        [str(PROJECT / "systemd" / name), *arguments],
        env={**os.environ, "PYTHON": PYTHON, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_MAKING_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def installed(folder: Path, *, prefix: str = "/usr/local") -> Path:
    """Install below `folder`, as with DESTDIR=folder, by Debian's python3; returns `folder`."""
    run_script("install", "install", DESTDIR=str(folder), PREFIX=prefix)
    return folder


def packaged(folder: Path) -> Path:
    """Build the Debian package into `folder`; returns its path."""
    return Path(run_script("debian/build", str(folder)).strip())


def made_once(folder: Path, make: Callable[[Path], Path]) -> Path:
    """What `make(folder)` returns; made by the first who asks, among processes too. It is for reading only."""
    folder.mkdir(exist_ok=True)
    note = folder.with_suffix(".made")

    with folder.with_suffix(".lock").open("w") as lock:

        def taken() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        with no_test_is_timed():
            wait_until(taken, within=_MAKING_SECONDS, every=0.1)
            if not note.exists():
                note.write_text(str(make(folder)))
        return Path(note.read_text())


@contextmanager
def no_test_is_timed() -> Iterator[None]:
    """For what is made once and has limits of its own: the test that asks first has as long as the others."""
    faulthandler.cancel_dump_traceback_later()
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
