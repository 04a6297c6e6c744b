"""The Debian package under a real systemd: installed, upgraded under load, removed, purged."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import craft_easy_jobs
from tests.support.machine import Machine, boot, needed
from tests.support.waiting import wait_until

pytestmark = needed()

SERVICE, SOCKET = "craft-easy-jobd.service", "craft-easy-jobd.socket"
SETTINGS = "/etc/craft-easy-jobd/settings.toml"
SPOOL, STATE = "/var/spool/craft-easy-jobd", "/var/lib/craft-easy-jobd"
CONTROL = "/run/craft-easy-jobd/control.sock"
JOBS = "/srv/packaged_jobs.py"
PACKAGES = "/srv/packages"
NEXT_VERSION = "9.9.9"
# As the daemon sees a file that is dropped: none is half written.
DROP = """
import json, os, sys
for number in range(int(sys.argv[2])):
    name = f"{sys.argv[1]}-{number}"
    draft = f"/var/spool/craft-easy-jobd/incoming/{name}.tmp"
    with open(draft, "w") as file:
        json.dump({"job": "half-a-second", "run_id": name}, file)
    os.chmod(draft, 0o644)
    os.rename(draft, draft.removesuffix(".tmp") + ".json")
"""


class Packages(NamedTuple):
    layer: Path
    """Holds both, in PACKAGES."""
    first: str
    second: str


@pytest.fixture(scope="module")
def packages(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The package and one of a later version, to be put into machines."""
    layer = tmp_path_factory.mktemp("packages")
    folder = layer / PACKAGES.lstrip("/")
    folder.mkdir(parents=True)
    shutil.copy(package, folder)
    tree = tmp_path_factory.mktemp("later") / "tree"

    def dpkg_deb(*arguments: str | Path) -> None:
        subprocess.run(
            ["dpkg-deb", *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, timeout=50, check=True
        )

    dpkg_deb("--raw-extract", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*", f"Version: {NEXT_VERSION}-1", control.read_text(), flags=re.MULTILINE))
    [init] = (tree / "opt").glob("craft-easy-jobs/lib/*/site-packages/craft_easy_jobs/__init__.py")
    init.write_text(init.read_text().replace(craft_easy_jobs.__version__, NEXT_VERSION))
    later = folder / "later.deb"
    dpkg_deb("--root-owner-group", "-Zzstd", "-z1", "--build", tree, later)
    shutil.rmtree(tree)
    return Packages(layer, f"{PACKAGES}/{package.name}", f"{PACKAGES}/{later.name}")


@pytest.fixture
def machine(packages: Packages) -> Iterator[Machine]:
    """One with the package installed, and jobs named in its settings."""
    with boot(packages.layer) as machine:
        dpkg(machine, "--install", packages.first)
        machine.put(JOBS, Path(__file__).with_name("packaged_jobs.py").read_text())
        yield machine
        print(machine.journal(f"--unit={SERVICE}", f"--unit={SOCKET}"))


def dpkg(machine: Machine, *arguments: str) -> str:
    # Its database is of this machine's own system: what else is unpacked there is not asked for.
    done = machine.run("dpkg", *arguments, timeout=50)
    return done.stdout + done.stderr


def configure(machine: Machine, *lines: str, jobs: str = JOBS) -> None:
    shipped = machine.run("cat", SETTINGS).stdout
    machine.put(SETTINGS, "\n".join([shipped, f'jobs = ["{jobs}"]', *lines, ""]))


def state(machine: Machine, unit: str) -> tuple[str, str]:
    """Whether it is enabled and whether it is active."""
    return (
        machine.run("systemctl", "is-enabled", unit, check=False).stdout.strip(),
        machine.run("systemctl", "is-active", unit, check=False).stdout.strip(),
    )


def drop(machine: Machine, name: str, count: int) -> set[str]:
    """Drop so many requests; returns their run ids."""
    machine.run("python3", "-c", DROP, name, str(count))
    return {f"{name}-{number}" for number in range(count)}


@contextmanager
def asking(machine: Machine) -> Iterator[list[tuple[str, int]]]:
    """Somebody submits over the socket, again and again, and writes down run ids and answers."""
    answers: list[tuple[str, int]] = []
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            run_id = f"asked-{len(answers)}"
            request = json.dumps({"job": "half-a-second", "run_id": run_id})
            curl = ("curl", "--silent", "--max-time", "45", "--unix-socket", CONTROL, "--output", "/dev/null")
            code = machine.run(
                *curl, "--write-out", "%{http_code}", "--data", request, "http://jobs/v1/runs", timeout=50, check=False
            ).stdout
            answers.append((run_id, int(code)))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        enough.set()
        thread.join(55)


def results(machine: Machine) -> dict[str, Any]:
    """All that there are, by run id."""
    paths = (machine.root / STATE.lstrip("/") / "results").glob("*.json")
    return {path.stem: json.loads(path.read_bytes()) for path in paths}


def test_installed_it_waits_for_the_administrator(machine: Machine) -> None:
    assert state(machine, SERVICE) == ("disabled", "inactive")
    assert state(machine, SOCKET) == ("disabled", "inactive")
    modes = machine.run("stat", "-c", "%a %U:%G %n", SPOOL, f"{SPOOL}/incoming", f"{SPOOL}/rejected", SETTINGS).stdout
    assert modes.splitlines() == [
        f"711 craft-easy-jobd:craft-easy-jobd {SPOOL}",
        f"3730 craft-easy-jobd:craft-easy-jobs {SPOOL}/incoming",
        f"750 craft-easy-jobd:craft-easy-jobd {SPOOL}/rejected",
        f"644 root:root {SETTINGS}",
    ]
    assert machine.run("craft-easy-jobd", "--version").stdout.split()[-1] == craft_easy_jobs.__version__

    configure(machine)
    machine.run("systemctl", "enable", "--now", SERVICE)
    assert state(machine, SERVICE) == ("enabled", "active")
    [run_id] = drop(machine, "first", 1)
    wait_until(lambda: run_id in results(machine))
    result = results(machine)[run_id]
    assert (result["status"], result["result"]) == ("completed", craft_easy_jobs.__version__)
    # Who is let in, the daemon's start leaves as it was.
    assert machine.run("stat", "-c", "%a", SPOOL, f"{SPOOL}/incoming").stdout.split() == ["711", "3730"]


def test_the_example_asks_for_a_run_also_of_a_daemon_that_is_down(machine: Machine) -> None:
    machine.run("sh", "-c", "cp /usr/share/craft-easy-jobs/examples/* /etc/systemd/system && systemctl daemon-reload")
    machine.run("systemctl", "start", "craft-easy-jobd-example.service")
    run_id = machine.journal("--unit=craft-easy-jobd-example.service", "--output=cat", "--identifier=craft-easy-jobd")
    run_id = run_id.splitlines()[-1]
    assert machine.run("systemctl", "start", "craft-easy-jobd-example.timer").returncode == 0

    configure(machine, jobs="craft_easy_jobs.demo")
    machine.run("systemctl", "start", SERVICE)
    wait_until(lambda: run_id in results(machine))
    assert results(machine)[run_id]["tenant_id"] == "acme"


def test_an_upgrade_under_load_loses_no_run_and_refuses_nobody(machine: Machine, packages: Packages) -> None:
    configure(machine, "workers = 2", "slots = 10", "drain_timeout = 0.2", "# the administrator's own")
    machine.run("systemctl", "enable", "--now", SOCKET, SERVICE)
    asked = drop(machine, "before", 120)
    wait_until(lambda: len(results(machine)) > 10, every=0.05)

    with asking(machine) as answers:
        said = dpkg(machine, "--install", packages.second)
    assert {code for _, code in answers} == {202}
    asked |= {run_id for run_id, _ in answers}
    assert "prompt" not in said
    assert machine.run("craft-easy-jobd", "--version").stdout.split()[-1] == NEXT_VERSION
    assert state(machine, SERVICE) == ("enabled", "active")
    assert "# the administrator's own" in machine.run("cat", SETTINGS).stdout

    wait_until(lambda: len(results(machine)) == len(asked), within=40, every=0.1)
    outcomes = results(machine)
    assert set(outcomes) == asked
    assert {each["status"] for each in outcomes.values()} == {"completed"}
    assert {each["result"] for each in outcomes.values()} == {craft_easy_jobs.__version__, NEXT_VERSION}
    assert machine.run("find", f"{SPOOL}", "-type", "f").stdout == ""


def test_an_upgrade_starts_nothing_that_did_not_run(machine: Machine, packages: Packages) -> None:
    machine.run("systemctl", "enable", SERVICE)
    dpkg(machine, "--install", packages.second)
    assert state(machine, SERVICE) == ("enabled", "inactive")


def test_removing_keeps_data_and_purging_leaves_nothing(machine: Machine) -> None:
    configure(machine)
    machine.run("systemctl", "enable", "--now", SOCKET, SERVICE)
    [run_id] = drop(machine, "kept", 1)
    wait_until(lambda: run_id in results(machine))

    dpkg(machine, "--remove", "craft-easy-jobs")
    assert machine.run("systemctl", "list-units", "--all", "craft-easy-jobd*", "--no-legend").stdout.strip() == ""
    assert not ours(machine, "/opt", "/usr", "/etc/systemd")
    assert run_id in results(machine)
    assert JOBS in machine.run("cat", SETTINGS).stdout

    dpkg(machine, "--purge", "craft-easy-jobs")
    assert not ours(machine, "/opt", "/usr", "/etc", "/var", "/run")
    # Files elsewhere may still be his.
    assert machine.run("id", "-u", "craft-easy-jobd").stdout


def ours(machine: Machine, *folders: str) -> list[str]:
    """What has our name in these folders."""
    return machine.run("find", *folders, "-xdev", "-name", "*craft*easy*").stdout.splitlines()
