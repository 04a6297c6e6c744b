"""A real systemd for tests: a throw-away copy of this system that boots in half a second. As root only.

Nothing here waits without a limit, and nothing in a machine has an open file of whoever started it: neither may hold up
the tests. `machine.sh` says how a machine ends.
"""

import functools
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.support.processes import children, ended, kill_all
from tests.support.waiting import wait_until

_TOOLS = ("systemd-nspawn", "systemctl", "journalctl", "nsenter", "unshare", "setpriv", "mount", "tac")
_BOOT_SECONDS, _STOP_SECONDS, _KILL_SECONDS = 30.0, 15.0, 5.0
# What commands in the machine see of the environment: nothing of the host's, no mark of the tests either.
_ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root")
_PROBE = """
mount -t tmpfs tmpfs /run && mkdir /run/up /run/work /run/root &&
mount -t overlay -o lowerdir=/,upperdir=/run/up,workdir=/run/work overlay /run/root
"""

_numbers = itertools.count(1)
_keepers: set[int] = set()


@functools.cache
def why_not() -> str | None:
    """Why no machine can be booted here; None when one can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"{missing[0]} is not installed"
    if not any(kind == "cgroup2" for kind, _, _ in _cgroup_mounts()):
        return "no cgroup2 is mounted"
    unshare = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private")
    try:
        probe = _finish(*unshare, "sh", "-c", _PROBE, timeout=10.0)
    except AssertionError as error:
        return str(error)
    return None if probe.returncode == 0 else f"no namespaces or overlays: {probe.stderr.strip()}"


def needed() -> pytest.MarkDecorator:
    """For `pytestmark`: skips where no machine can be booted, but where one must be (CI), the tests fail in `boot`."""
    why = None if os.environ.get("CRAFT_EASY_REQUIRE_SYSTEMD") == "1" else why_not()
    return pytest.mark.skipif(why is not None, reason=f"real systemd: {why}")


def outside_machines(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Without those in machines, which come and go as they like: they are gone when their machine is."""
    inside = {process.pid for keeper in _keepers for process in children(keeper)}
    return [process for process in processes if process.pid not in inside]


class Machine:
    """A system that has booted to basic.target. Commands run in it as root, unless `user` says otherwise."""

    def __init__(self, leader: int) -> None:
        self.root = Path(f"/proc/{leader}/root")
        """Its file system, seen from here; an absolute symbolic link in it leads to the host's, so prefer `run`."""
        self._enter = ("nsenter", "--target", str(leader), "--all", "env", "-i", *_ENVIRONMENT)

    def run(
        self, *command: str, timeout: float = 30.0, check: bool = True, user: str | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, and not to that of what it started; killed after `timeout` seconds.

        Raises:
            AssertionError: it was killed, or, unless `check` is off, it failed; with all that it said.
        """
        become = () if user is None else ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
        done = _finish(*self._enter, *become, *command, timeout=timeout, stdin=stdin)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def put(self, path: str, text: str, *, mode: str = "0644") -> None:
        """Write a file in the machine, with the folders that it needs."""
        self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1"', "put", path, mode, stdin=text)

    def journal(self, *options: str) -> str:
        """What `journalctl` says with these options."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--quiet", *options).stdout


@contextmanager
def boot(layer: Path | None = None) -> Iterator[Machine]:
    """Boot a machine, gone with all that is in it when the block ends or this process dies, however it dies.

    Call it in a thread that lives as long, such as the main one.

    Args:
        layer: a folder whose files lie over the host's in the machine; they are copied.
    """
    assert why_not() is None, f"no machine can be booted here: {why_not()}"
    script = str(Path(__file__).with_suffix(".sh"))
    with tempfile.TemporaryFile() as console:
        keeper = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "sh", script, str(os.getpid()), str(layer or ""), *_cgroups()],
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _keepers.add(keeper.pid)
        try:
            yield _booted(keeper, console)
        finally:
            _end(keeper)
            _keepers.discard(keeper.pid)


def _booted(keeper: subprocess.Popen[bytes], console: IO[bytes]) -> Machine:
    def first_process() -> int | None:
        """the machine has a first process"""
        assert keeper.poll() is None, "it ended"
        return _leader(keeper.pid)

    try:
        leader = wait_until(first_process, within=_BOOT_SECONDS) or 0
        machine = Machine(leader)

        def running() -> bool:
            """the machine is running"""
            assert not ended(psutil.Process(leader)), "its first process ended"
            said = machine.run("systemctl", "is-system-running", timeout=_BOOT_SECONDS / 2, check=False).stdout
            return said.strip() in ("running", "degraded")

        wait_until((machine.root / "run/systemd/private").exists, within=_BOOT_SECONDS)
        wait_until(running, within=_BOOT_SECONDS, every=0.05)
    except (AssertionError, OSError, psutil.NoSuchProcess) as error:
        raise AssertionError(f"the machine did not boot: {error}\n{_text(console)}") from None
    return machine


def _leader(keeper: int) -> int | None:
    """The machine's first process: number 1 of the inner one of two namespaces."""
    depth = len(namespace_pids(os.getpid())) + 2
    for process in children(keeper):
        numbers = namespace_pids(process.pid)
        if len(numbers) == depth and numbers[-1] == "1":
            return process.pid
    return None


def namespace_pids(pid: int) -> list[str]:
    """What a process is called in each namespace that it is in, from ours inwards; empty when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))


def _end(keeper: subprocess.Popen[bytes]) -> None:
    """Bounded, and no failure of the test: what is left is told."""
    left = [psutil.Process(keeper.pid), *children(keeper.pid)] if keeper.poll() is None else []
    keeper.terminate()
    try:
        keeper.wait(_STOP_SECONDS)
        kill_all(left, within=_KILL_SECONDS)
    except (subprocess.TimeoutExpired, AssertionError) as error:
        print(f"a machine did not end as it should: {error}", file=sys.stderr)
        keeper.kill()
        keeper.wait(_KILL_SECONDS)


def _cgroups() -> list[str]:
    """A cgroup to be made for the machine in each hierarchy where systemd makes some."""
    name = f"craft-easy-machine-{os.getpid()}-{next(_numbers)}"
    return [f"{point}/{name}" for kind, point, options in _cgroup_mounts() if kind == "cgroup2" or "name=" in options]


def _cgroup_mounts() -> list[tuple[str, str, str]]:
    """Kind, place and options."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [(kind, point, options) for _, point, kind, options, *_ in lines if kind in ("cgroup", "cgroup2")]


def _finish(*command: str, timeout: float, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command. Its output goes through files: what it leaves running may hold them open, and nobody waits."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        process = subprocess.Popen(command, stdin=given, stdout=out, stderr=err, start_new_session=True)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
        late = process.poll() is None
        if late:
            _kill_tree(process)
        said = (_text(out), _text(err))
    if late:
        raise AssertionError(f"{' '.join(command)}: not done within {timeout} s\n{''.join(said)}")
    return subprocess.CompletedProcess(command, process.returncode, *said)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """From below: orphans of `nsenter` go to the host's first process, and a machine ends no sooner than that looks."""
    for each in reversed(children(process.pid)):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.kill()
    process.wait(_KILL_SECONDS)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
