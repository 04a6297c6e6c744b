"""The daemon as a service of a real systemd: installed as an administrator does, in a machine of the tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import PROJECT, DaemonClient
from tests.support.machine import Machine, boot, namespace_pids
from tests.support.waiting import wait_until

UNIT = "craft-easy-jobd.service"
SOCKET_UNIT = "craft-easy-jobd.socket"
SETTINGS = "/etc/craft-easy-jobd/settings.toml"
STATE = "/var/lib/craft-easy-jobd"
SPOOL = "/var/spool/craft-easy-jobd"
CONTROL = "/run/craft-easy-jobd/control.sock"
JOBS = "/opt/service-jobs/service_jobs.py"
# Beside root and the service's own user.
SUBMITTER, OTHER_SUBMITTER, STRANGER = "submitter", "submitter-2", "stranger"

_DROP_INS = f"/run/systemd/system/{UNIT}.d"


class Service(DaemonClient):
    """The daemon in a machine. Each test begins with `reset` and sets it up as it needs it.

    Its folders and its socket are reached from outside; commands run inside, by `machine.run`.
    """

    def __init__(self, machine: Machine, jobs: str) -> None:
        self.machine = machine
        self._jobs = jobs
        self.incoming = self._outside(SPOOL) / "incoming"
        self.results_dir = self._outside(STATE) / "results"
        self.socket = self._outside(CONTROL)
        self._begun = ""

    def reset(self) -> None:
        """As after the installation, with the jobs of the tests: not running, no runs, no requests."""
        # It would drain what a test left running.
        self.machine.run("systemctl", "kill", "--signal=KILL", UNIT, check=False)
        self.machine.run("systemctl", "stop", SOCKET_UNIT, UNIT)
        self.machine.run("rm", "-rf", STATE, SPOOL, "/run/craft-easy-jobd", _DROP_INS)
        self.machine.run("systemd-tmpfiles", "--create", "craft-easy-jobd.conf")
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "reset-failed")
        self.configure()
        self.machine.put(JOBS, self._jobs)
        self._begun = self.machine.run("date", "+@%s.%N").stdout.strip()

    def configure(self, extra: str = "") -> None:
        """Write the settings file: that of the installation, the jobs of the tests, and these lines."""
        shipped = (PROJECT / "systemd" / "settings.toml").read_text()
        self.machine.put(SETTINGS, f'{shipped}\njobs = ["{JOBS}"]\nsettle_seconds = 0.0\n{extra}\n')

    def drop_in(self, *lines: str, section: str = "Service") -> None:
        """Change the unit by these lines."""
        self.machine.put(f"{_DROP_INS}/test.conf", "\n".join([f"[{section}]", *lines, ""]))
        self.machine.run("systemctl", "daemon-reload")

    def systemctl(self, *command: str, timeout: float = 45.0) -> None:
        """For the service; fails, with its journal, where the command does."""
        done = self.machine.run("systemctl", *command, UNIT, timeout=timeout, check=False)
        assert done.returncode == 0, f"systemctl {' '.join(command)}: {done.stderr}\n{self.log}"

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.machine.run("systemctl", "show", "--value", f"--property={name}", UNIT).stdout.strip()

    def wait_show(self, name: str, value: str, *, within: float = 30.0) -> None:
        """Wait until a property of the unit has this value."""
        try:
            wait_until(lambda: self.show(name) == value, within=within, every=0.05)
        except AssertionError:
            raise AssertionError(f"{name} is {self.show(name)}, not {value}, after {within} s\n{self.log}") from None

    @property
    def pid(self) -> int:
        """Of its main process, as the machine sees it; 0 when there is none."""
        return int(self.show("MainPID"))

    @property
    def outer_pid(self) -> int:
        """Of its main process, as we see it."""
        pid = self.pid
        return next(outer for outer in self.processes if namespace_pids(outer)[-1:] == [str(pid)])

    @property
    def processes(self) -> set[int]:
        """All that are in its cgroup, as we see them."""
        cgroup = self._outside("/sys/fs/cgroup/system.slice") / UNIT
        told = cgroup.glob("**/cgroup.procs")
        return {int(pid) for path in told for pid in path.read_text().split()}

    @property
    def log(self) -> str:
        return self.machine.journal(f"--unit={UNIT}", f"--since={self._begun}", "--output=short-precise")

    def command(self, *arguments: str, user: str = "root", check: bool = True) -> str:
        """What `craft-easy-jobd COMMAND ...` says, run by this user of the machine."""
        return self.machine.run(
            "/usr/local/bin/craft-easy-jobd", *arguments, "--socket", CONTROL, user=user, check=check
        ).stdout

    def submit(self, job: str, *arguments: str, user: str = "root") -> str:
        """By the command line; returns the run id."""
        return self.command("submit", job, "--print-id", *arguments, user=user).strip()

    def wait_state(self, run_id: str, state: str, *, within: float = 30.0) -> None:
        """Wait until a run is in this state; and, when it is to be running, until its function has logged something."""

        def there() -> bool:
            code, run = self.call("GET", f"/v1/runs/{run_id}")
            return code == 200 and run["state"] == state and (state != "running" or bool(run["log_count"]))

        wait_until(there, within=within, every=0.02)

    def starts(self, run_id: str) -> int:
        """How often the function of a run was started."""
        told = self._outside(STATE) / "starts" / run_id
        return len(told.read_text().splitlines()) if told.exists() else 0

    def _outside(self, path: str) -> Path:
        return self.machine.root / path.lstrip("/")


@contextmanager
def serviced(installation: Path, jobs: Path) -> Iterator[Service]:
    """A machine with the service installed, its users there, and `jobs` as the module of jobs.

    Args:
        installation: what `make install` puts below DESTDIR.
    """
    with boot(installation) as machine:
        machine.run("systemd-sysusers", "craft-easy-jobd.conf")
        for user, groups in ((SUBMITTER, "craft-easy-jobs"), (OTHER_SUBMITTER, "craft-easy-jobs"), (STRANGER, "")):
            machine.run("useradd", "--system", "--user-group", f"--groups={groups}", user)
        yield Service(machine, jobs.read_text())
