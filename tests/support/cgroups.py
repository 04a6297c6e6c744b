"""Cgroups of the tests' own. Each skips the test, with the reason, where none can be made."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

_MEMORY = Path("/sys/fs/cgroup/memory")


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A cgroup (version 1) to put processes into, which the kernel kills when they take too much."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":", 2)[2] for line in lines if line.split(":")[1] == "memory"), None)
    if own is None or os.geteuid() != 0:
        pytest.skip("needs root and a memory cgroup of version 1")
    group = _MEMORY / own.lstrip("/") / f"craft-easy-jobs-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@contextmanager
def own_cgroup(controller: str = "") -> Iterator[Path]:
    """A folder of a cgroup2 tree, with this controller."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mount = next((Path(point) for _, point, kind, *_ in mounts if kind == "cgroup2"), None)
    if mount is None:
        pytest.skip("no cgroup2 is mounted")
    folder = mount / f"craft-easy-jobs-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"{mount}: no cgroup can be made: {error.strerror}")
    try:
        if controller and controller not in (folder / "cgroup.controllers").read_text().split():
            pytest.skip(f"{mount}: cgroups made there have no {controller} controller")
        yield folder
    finally:
        wait_until(lambda: _removed(folder))


def _removed(folder: Path) -> bool:
    """Remove a cgroup with all in it; the kernel refuses while what was killed there is still on its way out.

    Killed each time: the daemon may end later than this, and starts a worker in place of each that it loses.
    """
    try:
        (folder / "cgroup.kill").write_text("1")
        for path, _, _ in os.walk(folder, topdown=False):
            os.rmdir(path)
    except OSError:
        return not folder.exists()
    return True
