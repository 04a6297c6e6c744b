"""Reload: new settings and new code without a run that is lost, fails or runs twice; or all stays as it was."""

import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.scale import TORTURE
from tests.support.daemon import PROJECT, DaemonProcess
from tests.support.processes import wait_ended
from tests.support.waiting import wait_until

Start = Callable[..., DaemonProcess]

RELOADS, IN_FLIGHT = (100, 200) if TORTURE else (15, 200)

CODE = """
import asyncio
from pathlib import Path
from craft_easy_jobs import job

VERSION = {version}

@job(name="version")
async def version(ctx):
    return VERSION

@job(name="alone", isolation="process")
async def alone(ctx):
    return VERSION

@job(name="naps")
async def naps(ctx):
    await asyncio.sleep(ctx.params["seconds"])
    return VERSION

@job(name="waits")
async def waits(ctx):
    while not Path(ctx.params["until"]).exists() and not ctx.should_stop():
        await asyncio.sleep(0.02)
    return VERSION

@job(name="waits-alone", isolation="process")
async def waits_alone(ctx):
    while not Path(ctx.params["until"]).exists() and not ctx.should_stop():
        await asyncio.sleep(0.02)
    return VERSION
"""
NEW_JOB = """
@job(name="new")
async def new(ctx):
    return "new"
"""
DEAF = """
@job(name="deaf")
async def deaf(ctx):
    while not Path(ctx.params["until"]).exists():
        await asyncio.sleep(0.02)
"""
IMPORT_WAITS = """
import time
while not Path({path!r}).exists():
    time.sleep(0.02)
"""
TENANTS = """
def all_tenants():
    return {tenants}
"""


class Site:
    """A daemon with a settings file and a job module of its own, both of which can be changed."""

    def __init__(self, folder: Path, start: Start, **settings: Any) -> None:
        self.module = folder / "site_jobs.py"
        self.config = folder / "jobd.toml"
        self.go = folder / "go"
        self._settings = {"jobs": [str(self.module)], "workers": 1, **settings}
        self.write(1)
        self.configure()
        self.jobd = start("--config", str(self.config))

    def write(self, version: int, more: str = "") -> None:
        draft = self.module.with_suffix(".draft")
        draft.write_text(CODE.format(version=version) + more)
        draft.rename(self.module)

    def configure(self, **settings: Any) -> None:
        self._settings |= settings
        lines = (f"{key} = {json.dumps(value)}\n" for key, value in self._settings.items() if value is not None)
        self.config.write_text("".join(lines))

    def reload(self) -> dict[str, Any]:
        """A reload that must be good: what is in force after it."""
        code, document = self.jobd.call("POST", "/v1/reload")
        assert code == 200, document
        return dict(document)

    def refused(self) -> str:
        """A reload that must be refused and change nothing: the reason."""
        before = self.jobd.status()
        code, document = self.jobd.call("POST", "/v1/reload")
        after = self.jobd.status()
        assert (code, document["status"]) == (409, 409)
        assert [after[key] for key in ("generation", "code_version")] == [before["generation"], before["code_version"]]
        assert f"reload refused: {document['detail']}" in after["problems"]
        return str(document["detail"])

    def drop(self, job: str, **params: Any) -> str:
        return self.jobd.drop({"job": job, "params": params})

    def result(self, job: str = "version") -> Any:
        return self.jobd.result(self.drop(job))["result"]

    def begin(self, job: str = "waits") -> str:
        """A run that goes on until `go` is there."""
        run_id = self.drop(job, until=str(self.go))
        wait_until(lambda: any(run["run_id"] == run_id for run in self.jobd.status()["running"]))
        return run_id

    def generations(self) -> set[int]:
        return {worker["generation"] for worker in self.jobd.status()["workers"]}

    def await_candidate(self) -> None:
        """A reload has come so far that a worker imports the new code."""
        wait_until(lambda: any(worker["state"] == "starting" for worker in self.jobd.status()["workers"]))


@pytest.fixture
def site(short_dir: Path, daemon: Start) -> Callable[..., Site]:
    return lambda **settings: Site(short_dir, daemon, **settings)


Make = Callable[..., Site]


def test_new_runs_get_the_new_code_and_old_ones_finish_on_the_old(site: Make) -> None:
    s = site()
    first = s.jobd.status()["code_version"]
    old = [s.begin(), s.begin("waits-alone")]
    s.write(2, NEW_JOB)
    now = s.reload()
    assert (now["generation"], now["jobs"]) == (2, 6)
    assert (s.result(), s.result("alone"), s.result("new")) == (2, 2, "new")
    # The old spare one has left, and the next new one is ready.
    wait_until(lambda: sum(worker["generation"] == 1 for worker in s.jobd.status()["workers"]) == len(old))
    wait_until(lambda: all(worker["code_version"] for worker in s.jobd.status()["workers"]))
    status = s.jobd.status()
    assert (status["generation"], status["code_version"]) == (2, now["code_version"])
    workers = {(worker["generation"], worker["isolation"]): worker for worker in status["workers"]}
    assert {key: worker["code_version"] for key, worker in workers.items()} == {
        (1, "shared"): first,
        (1, "process"): first,
        (2, "shared"): now["code_version"],
        (2, "process"): now["code_version"],
    }
    assert {worker["state"] for key, worker in workers.items() if key[0] == 1} == {"leaving"}
    s.go.touch()
    for result in map(s.jobd.result, old):
        assert (result["status"], result["result"], result["attempts"]) == ("completed", 1, 1)
        assert result["code_version"] == first
    wait_until(lambda: s.generations() == {2})
    assert "worker lost" not in s.jobd.log


def test_what_was_queued_before_runs_on_the_new_code_and_fails_when_its_job_is_gone(site: Make) -> None:
    s = site(slots=1)
    s.begin()
    queued = s.drop("version")
    s.write(2, NEW_JOB)
    s.reload()
    assert s.jobd.result(queued)["result"] == 2
    s.begin()
    gone = s.drop("new")
    wait_until(lambda: s.jobd.status()["runs"]["queued"] == 1)
    s.write(3)
    s.reload()
    result = s.jobd.result(gone)
    assert (result["status"], result["reason"]) == ("failed", "unknown_job")


def test_dedicated_workers_of_all_generations_stay_within_the_limit(site: Make) -> None:
    s = site(dedicated_workers=1)
    old = s.begin("waits-alone")
    for version in (2, 3):
        s.write(version)
        s.reload()
    waiting = s.drop("alone")
    assert s.result() == 3
    assert [worker["generation"] for worker in s.jobd.status()["workers"] if worker["isolation"] == "process"] == [1]
    s.go.touch()
    assert (s.jobd.result(old)["result"], s.jobd.result(waiting)["result"]) == (1, 3)


def test_what_is_wrong_is_refused_as_a_whole(site: Make, short_dir: Path) -> None:
    tenants = short_dir / "tenants.toml"
    tenants.write_text("[tenants.acme]\n")
    s = site(tenants=str(tenants), workers=2)
    held = s.begin()

    def config(text: str) -> Callable[[], object]:
        return lambda: s.config.write_text(s.config.read_text() + text)

    def code(text: str) -> Callable[[], object]:
        return lambda: s.write(2, text)

    wrong: list[tuple[Callable[[], object], str]] = [
        (config("slots = \n"), "is not TOML"),
        (config("slotts = 5\n"), "did you mean 'slots'"),
        (config('log_format = "json"\nspool = "/elsewhere"\n'), "needs a restart: spool, log_format"),
        (config('allowed_groups = ["nobody-knows-it"]\n'), "there is no group 'nobody-knows-it'"),
        (config('allowed_users = ["0"]\n'), "needs a restart: allowed_users"),
        (lambda: s.config.unlink(), "cannot be read"),
        (lambda: s.configure(jobs=[str(s.module), "gone.py"]), "gone.py"),
        (lambda: tenants.write_text("[tenants.acme]\nparent = 'gone'\n"), "gone"),
        (lambda: tenants.unlink(), str(tenants)),
        (code("def f(:\n"), "site_jobs.py:32"),
        (code("raise ValueError('not today')\n"), "ValueError: not today ("),
        (code("@job(name='version')\nasync def again(ctx): ...\n"), "version"),
        (code("import os\nos._exit(7)\n"), "die before they are ready"),
    ]
    for number, (make_wrong, told) in enumerate(wrong):
        make_wrong()
        assert told in s.refused()
        assert s.result() == 1, number
        tenants.write_text("[tenants.acme]\n")
        s.configure(jobs=[str(s.module)])
        s.write(1)
    assert s.reload()["code_version"] == s.jobd.status()["code_version"]
    assert s.jobd.status()["problems"] == []
    s.go.touch()
    assert s.jobd.result(held)["attempts"] == 1
    wait_until(lambda: len(s.generations()) == 1)


def test_settings_in_force_are_the_new_ones(site: Make) -> None:
    s = site(max_request_bytes=1000, log_level="warning", drain_timeout=30)
    assert s.jobd.call("POST", "/v1/runs", {"job": "version", "params": {"x": "x" * 2000}})[0] == 413
    s.configure(max_request_bytes=100_000, log_level="debug", drain_timeout=0.1, workers=3, slots=7)
    s.reload()
    workers = [worker for worker in s.jobd.status()["workers"] if worker["generation"] == 2]
    shared = [(worker["slots"], worker["state"]) for worker in workers if worker["isolation"] == "shared"]
    assert s.jobd.call("POST", "/v1/runs", {"job": "version", "params": {"x": "x" * 99_000}})[0] == 202
    assert s.jobd.result(s.drop("version", x="x" * 50_000))["result"] == 1
    assert shared == [(7, "ready")] * 3
    wait_until(lambda: " DEBUG " in s.jobd.log)
    naps = s.drop("naps", seconds=60)
    wait_until(lambda: naps in [run["run_id"] for run in s.jobd.status()["running"]])
    assert s.jobd.stop(within=10) == 0


def test_a_tenants_callable_is_called_by_the_new_workers(site: Make, short_dir: Path) -> None:
    directory = short_dir / "directory.py"
    directory.write_text(TENANTS.format(tenants=[{"id": "acme"}]))
    s = site(tenants=f"{directory}:all_tenants")
    directory.write_text(TENANTS.format(tenants=[{"id": "acme"}, {"id": "bolt"}]))
    s.reload()
    assert [tenant["id"] for tenant in s.jobd.call("GET", "/v1/tenants")[1]["tenants"]] == ["acme", "bolt"]
    directory.write_text(TENANTS.format(tenants=[{"name": "no id"}]))
    assert "no id" in s.refused()
    assert len(s.jobd.call("GET", "/v1/tenants")[1]["tenants"]) == 2


def test_by_signal_the_log_and_the_service_manager_hear_of_it(site: Make) -> None:
    s = site()
    ready = s.jobd.notices.count("READY=1")
    s.write(2)
    s.jobd.signal(signal.SIGHUP)
    wait_until(lambda: s.jobd.notices.count("READY=1") == ready + 1)
    assert s.jobd.notices.count("RELOADING=1") == 1
    assert any(notice.startswith("MONOTONIC_USEC=") for notice in s.jobd.notices)
    assert s.result() == 2
    s.write(3, "raise ValueError('not today')\n")
    s.jobd.signal(signal.SIGHUP)
    wait_until(lambda: s.jobd.notices.count("READY=1") == ready + 2)
    wait_until(lambda: any("STATUS=" in notice and "not today" in notice for notice in s.jobd.notices))
    wait_until(lambda: 'reload refused, the old settings and jobs stay in force problem="jobs module' in s.jobd.log)
    assert "Traceback" not in s.jobd.log
    assert s.result() == 2


def test_the_command_says_what_came_of_it(site: Make) -> None:
    s = site()

    def command() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "craft_easy_jobd", "reload", "--root", str(s.jobd.root)]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=30, check=False)

    done = command()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("generation 2  code ")
    s.write(2, "import nothing_like_it\n")
    done = command()
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing_like_it" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_module_that_hangs_is_given_up(site: Make) -> None:
    s = site(reload_timeout=1.0)
    s.write(2, IMPORT_WAITS.format(path=str(s.go)))
    assert "not ready within 1 s (reload_timeout)" in s.refused()
    wait_until(lambda: s.generations() == {1})
    assert s.result() == 1


def test_who_asks_while_a_reload_is_under_way_gets_what_is_there_then(site: Make) -> None:
    s = site()
    s.write(2, IMPORT_WAITS.format(path=str(s.go)))
    with ThreadPoolExecutor() as threads:
        first = threads.submit(s.reload)
        s.await_candidate()
        s.write(3)
        later = [threads.submit(s.reload) for _ in range(5)]
        wait_until(lambda: s.jobd.status()["state"] == "running")
        s.go.touch()
        assert first.result(30)["generation"] == 2
        assert {answer.result(30)["code_version"] for answer in later} == {s.jobd.status()["code_version"]}
    assert s.result() == 3
    assert s.jobd.status()["generation"] <= 4


def test_a_signal_while_it_starts_makes_a_reload_once_it_serves(short_dir: Path) -> None:
    module, go = short_dir / "site_jobs.py", short_dir / "go"
    module.write_text(CODE.format(version=1) + IMPORT_WAITS.format(path=str(go)))
    jobd = DaemonProcess(short_dir / "var", "--jobs", str(module), "--workers", "1")
    try:
        jobd.launch()
        wait_until(lambda: len(jobd.processes()) >= 2)
        wait_until((short_dir / "var" / "control.sock").exists)
        jobd.signal(signal.SIGHUP)
        module.write_text(CODE.format(version=2))
        with pytest.raises(AssertionError, match="not within"):
            wait_until(lambda: "reloaded" in jobd.log, within=1.0)
        go.touch()
        wait_until(lambda: jobd.notices.count("READY=1") == 2)
        assert jobd.result(jobd.drop({"job": "version"}))["result"] == 2
    finally:
        jobd.close()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_an_end_amid_a_reload_leaves_nothing_of_it(site: Make, end: str) -> None:
    s = site()
    held = s.begin()
    s.write(2, IMPORT_WAITS.format(path=str(s.go)))
    s.jobd.signal(signal.SIGHUP)
    s.await_candidate()
    workers = [process for process in s.jobd.processes() if process.pid != s.jobd.pid]
    if end == "kill":
        s.jobd.kill()
    else:
        # An import that never ends does not keep it.
        assert s.jobd.stop(within=10) == 0
        assert s.jobd.result(held)["reason"] == "stopped"
        assert "Traceback" not in s.jobd.log
    wait_ended(workers)
    s.write(3)
    s.jobd.start()
    assert s.result() == 3
    s.go.touch()
    result = s.jobd.result(held)
    assert (result["status"], result["attempts"]) == ("completed", 2 if end == "kill" else 1)


def test_a_daemon_that_stops_reloads_no_more(site: Make) -> None:
    s = site()
    s.write(1, DEAF)
    s.reload()
    held = s.begin("deaf")
    s.jobd.terminate()
    s.jobd.wait_notice("STOPPING=1")
    code, document = s.jobd.call("POST", "/v1/reload")
    assert (code, document["detail"]) == (409, "the daemon is stopping")
    s.jobd.signal(signal.SIGHUP)
    wait_until(lambda: "no reload: the daemon is stopping" in s.jobd.log)
    s.go.touch()
    assert s.jobd.wait(within=30) == 0
    assert s.jobd.result(held)["status"] == "completed"
    assert s.jobd.notices.count("RELOADING=1") == 1


class Feed(threading.Thread):
    """Drops runs so that so many are in flight, until `close`; `dropped` has the version in force before each drop."""

    def __init__(self, s: Site, in_force: list[int]) -> None:
        super().__init__()
        self.dropped: dict[str, int] = {}
        self.least = IN_FLIGHT
        self._site = s
        self._in_force = in_force
        self._closing = threading.Event()
        self._results = s.jobd.root / "results"

    def run(self) -> None:
        chance = random.Random(1)
        while not self._closing.wait(0.02):
            for _ in range(IN_FLIGHT - (len(self.dropped) - len(list(self._results.glob("*.json"))))):
                before = self._in_force[-1]
                job = "alone" if len(self.dropped) % 100 == 0 else "naps"
                self.dropped[self._site.drop(job, seconds=chance.uniform(0.2, 2.0))] = before

    def close(self) -> None:
        self._closing.set()
        self.join(30)


@pytest.mark.timeout(600 if TORTURE else 60)
def test_many_reloads_with_many_runs_in_flight(site: Make) -> None:
    s = site(workers=2)
    versions = {1: s.jobd.status()["code_version"]}
    supervisor = psutil.Process(s.jobd.pid)
    descriptors = supervisor.num_fds()
    in_force = [1]
    feed = Feed(s, in_force)
    feed.start()
    try:
        wait_until(lambda: s.jobd.status()["runs"]["running"] >= IN_FLIGHT * 0.8)
        for version in range(2, RELOADS + 2):
            s.write(version)
            if version % 2:
                s.reload()
            else:
                before = s.jobd.status()["generation"]
                s.jobd.signal(signal.SIGHUP)
                wait_until(lambda before=before: s.jobd.status()["generation"] > before, every=0.05)
            versions[version] = s.jobd.status()["code_version"]
            in_force.append(version)
    finally:
        feed.close()
    wait_until(lambda: len(list((s.jobd.root / "results").glob("*.json"))) >= len(feed.dropped), within=60)
    results = s.jobd.results()
    assert results.keys() == feed.dropped.keys()
    assert len(set(versions.values())) == RELOADS + 1
    wrong = [
        result
        for run_id, result in results.items()
        if (result["status"], result["attempts"]) != ("completed", 1)
        or result["code_version"] != versions[result["result"]]
        or result["result"] < feed.dropped[run_id]
    ]
    assert not wrong[:3]
    wait_until(lambda: s.generations() == {RELOADS + 1})
    assert s.jobd.status()["runs"]["failed"] == 0
    wait_until(lambda: supervisor.num_fds() <= descriptors + 5)
    seen = len({result["result"] for result in results.values()})
    print(f"{RELOADS} reloads, {len(results)} runs on {seen} versions of the code")
    assert s.jobd.stop() == 0
