"""Whatever a job does: grace + 1 s after its deadline or a forced cancel there is a result, and nothing else of it."""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until
from tests.system.hard_kill_jobs import GRACE, TIMEOUT, WAYS

Start = Callable[..., DaemonProcess]

JOBS = ("--jobs", "tests.system.hard_kill_jobs")
PROMISED = GRACE + 1.0


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def noted(path: Path, *, within: float = 15.0) -> int:
    """The pid that a job wrote down."""
    return int(wait_until(lambda: path.exists() and path.read_text(), within=within))


def worker_cgroups(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A folder of a cgroup2 tree that is the test's own."""
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
        yield folder
    finally:
        (folder / "cgroup.kill").write_text("1")
        wait_until(lambda: "populated 0" in (folder / "cgroup.events").read_text())
        for path, _, _ in os.walk(folder, topdown=False):
            os.rmdir(path)


@pytest.fixture(params=["process tree", "cgroup"])
def contained(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The arguments for each containment."""
    if request.param == "process tree":
        return ("--cgroup", "off")
    return ("--cgroup", str(request.getfixturevalue("cgroup")))


# -- the matrix


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("contained", "job", "ending"),
    [
        ("process tree", "hang", "timeout"),
        ("process tree", "hang-alone", "force"),
        ("cgroup", "hang", "force"),
        ("cgroup", "hang-alone", "timeout"),
    ],
    indirect=["contained"],
)
def test_nothing_outlives_its_end(
    daemon: Start, tmp_path: Path, contained: tuple[str, ...], job: str, ending: str
) -> None:
    jobd = daemon(*JOBS, *contained, "--workers", "3", "--slots", "1", "--dedicated-workers", "4")
    beside = jobd.drop({"job": "neighbour", "params": {"pids": str(tmp_path / "neighbour")}})
    neighbour = noted(tmp_path / "neighbour")
    runs = {
        way: jobd.drop({"job": f"{job}-{ending}", "params": {"way": way, "pids": str(tmp_path / way)}}) for way in WAYS
    }
    for way, run_id in runs.items():
        pid = noted(tmp_path / way, within=60)
        if ending == "force":
            asked = time.monotonic()
            assert jobd.call("POST", f"/v1/runs/{run_id}/cancel", {"force": True})[0] < 300
        result = jobd.result(run_id, within=15)
        assert not alive(pid), way
        if ending == "force":
            assert time.monotonic() - asked < PROMISED, way
            assert (result["status"], result["reason"]) == ("failed", "cancelled")
        else:
            assert result["duration_seconds"] < TIMEOUT + PROMISED, way
            assert (result["status"], result["reason"]) == ("failed", "timed_out")
    assert alive(neighbour)
    jobd.call("POST", f"/v1/runs/{beside}/cancel")
    assert jobd.result(beside)["result"] == "undisturbed"
    assert jobd.stop() == 0
