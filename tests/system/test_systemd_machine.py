"""The machine that the other tests of systemd boot: it does what it says, and nothing of it outlives anybody."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.daemon import PROJECT
from tests.support.machine import Machine, boot, needed
from tests.support.processes import children, wait_ended
from tests.support.waiting import wait_until

pytestmark = needed()

FORGETFUL = """
import sys
from tests.support.machine import boot
with boot() as machine:
    machine.run("sh", "-c", "sleep 1000 & setsid sleep 1000 &")
    print("booted", flush=True)
    machine.run("sleep", "1000", timeout=2000)
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with boot() as booted:
        yield booted


def test_units_run_and_the_journal_tells(machine: Machine) -> None:
    machine.put("/run/systemd/system/hello.service", "[Service]\nType=oneshot\nExecStart=/bin/echo good morning\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "hello")
    assert "good morning" in machine.journal("--unit=hello")


def test_what_a_command_leaves_running_is_not_waited_for(machine: Machine) -> None:
    before = time.monotonic()
    machine.run("sh", "-c", "sleep 1000 & setsid sleep 1000 &")
    assert time.monotonic() - before < 10


def test_a_command_that_takes_too_long_is_killed(machine: Machine) -> None:
    with pytest.raises(AssertionError, match=r"not done within 0.2 s\nbegun"):
        machine.run("sh", "-c", "echo begun; sleep 4711 & sleep 4711", timeout=0.2)
    assert machine.run("pgrep", "-f", "^sleep 4711", check=False).stdout == ""


def test_a_command_that_fails_tells_why(machine: Machine) -> None:
    with pytest.raises(AssertionError, match=r"exit code 1\n.*no-such"):
        machine.run("cat", "/no-such")


def test_nothing_of_the_tests_environment_is_in_it(machine: Machine) -> None:
    assert "CRAFT_EASY" not in machine.run("sh", "-c", "cat /proc/[0-9]*/environ").stdout


def test_what_is_written_in_it_stays_in_it(machine: Machine) -> None:
    machine.put("/etc/craft-easy-machine/file", "text", mode="0600")
    assert machine.run("stat", "--format=%a %s", "/etc/craft-easy-machine/file").stdout == "600 4\n"
    assert not Path("/etc/craft-easy-machine").exists()


def test_a_layer_lies_over_the_host(tmp_path: Path) -> None:
    (tmp_path / "opt/of-a-layer").mkdir(parents=True)
    (tmp_path / "opt/of-a-layer/file").write_text("text")
    with boot(tmp_path) as layered:
        assert layered.run("cat", "/opt/of-a-layer/file").stdout == "text"
        assert layered.run("stat", "--format=%a", "/").stdout == "755\n"


def test_several_at_a_time_and_none_is_left() -> None:
    others, before = set(children(os.getpid())), left_of(os.getpid())
    with ExitStack() as stack:
        machines = [stack.enter_context(boot()) for _ in range(2)]
        for number, each in enumerate(machines):
            each.put("/run/mine", str(number))
        assert [each.run("cat", "/run/mine").stdout for each in machines] == ["0", "1"]
        inside = set(children(os.getpid())) - others
        assert len(left_of(os.getpid())) > len(before)
    wait_ended(inside, within=5)
    assert left_of(os.getpid()) == before


def test_it_dies_with_its_owner(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        owner = subprocess.Popen(
            [sys.executable, "-c", FORGETFUL], cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        wait_until(lambda: b"booted" in (tmp_path / "out").read_bytes() or owner.poll() is not None)
        inside = children(owner.pid)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
    assert len(inside) > 5, (tmp_path / "out").read_text()
    wait_ended(inside, within=10)
    wait_until(lambda: left_of(owner.pid) == [], within=10)


def left_of(owner: int) -> list[str]:
    """Cgroups and mounts."""
    cgroups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/craft-easy-machine-{owner}-*")]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if "/run/overlay" in line]
    return cgroups + mounts
