"""From a dropped request file to a JobResult file, with the real daemon."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import DaemonProcess
from tests.support.processes import wait_ended
from tests.support.waiting import wait_until

Start = Callable[..., DaemonProcess]

JOBS = ("--jobs", "tests.system.sample_jobs")
NINE = [
    "job_name",
    "run_id",
    "status",
    "started_at",
    "completed_at",
    "duration_seconds",
    "result",
    "error",
    "logs",
]


def running(daemon: DaemonProcess) -> list[str]:
    return [run["run_id"] for run in daemon.status()["running"]]


def started(daemon: DaemonProcess, run_id: str) -> None:
    """Wait until the job function of the run has said something."""
    wait_until(lambda: daemon.call("GET", f"/v1/runs/{run_id}")[1].get("log_count"))


def test_a_dropped_request_becomes_a_result(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    result = jobd.result(jobd.drop({"job": "echo", "tenant_id": "acme", "params": {"value": "å\n"}}))
    assert list(result)[:9] == NINE
    assert (result["status"], result["reason"], result["error"]) == ("completed", None, None)
    assert result["result"] == {"value": "å\n", "tenants": ["acme"]}
    assert [entry["level"] for entry in result["logs"]] == ["info", "progress", "warning"]
    assert [entry["percentage"] for entry in result["logs"]] == [None, 50, None]
    assert (result["attempts"], result["warnings"], result["tenant_id"]) == (1, 1, "acme")
    assert result["params"] == {"value": "å\n"}
    assert result["started_at"].endswith("+00:00")
    assert 0 <= result["duration_seconds"] < 10
    wait_until(lambda: not any((jobd.root / "spool" / "claimed").iterdir()))
    assert list((jobd.root / "results" / ".tmp").iterdir()) == []
    assert jobd.stop() == 0


def test_failures_are_results_too(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    broken = jobd.drop({"job": "broken"})
    not_json = jobd.drop({"job": "not-json"})
    flaky = jobd.drop({"job": "flaky"})
    result = jobd.result(broken)
    assert (result["status"], result["reason"]) == ("failed", "exception")
    assert "no rows for the period" in result["error"]
    assert "sample_jobs.py" in result["error"]
    result = jobd.result(not_json)
    assert (result["status"], result["reason"]) == ("failed", "result_invalid")
    assert "result.rows[0].amount" in result["error"]
    result = jobd.result(flaky)
    assert (result["status"], result["result"], result["attempts"]) == ("completed", 3, 3)


def test_2500_requests_each_have_one_result(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    expected = {jobd.drop({"job": "noop"}) for _ in range(2000)}
    wait_until(lambda: len(list((jobd.root / "results").glob("*.json"))) >= 2000, within=30)
    assert jobd.stop() == 0
    expected |= {jobd.drop({"job": "noop"}) for _ in range(500)}
    jobd.start()
    wait_until(lambda: len(list((jobd.root / "results").glob("*.json"))) >= 2500, within=30)
    assert jobd.stop() == 0
    results = jobd.results()
    assert set(results) == expected
    assert {result["attempts"] for result in results.values()} == {1}


def test_1000_sleepers_sleep_side_by_side(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    begun = time.monotonic()
    for _ in range(1000):
        jobd.drop({"job": "sleep-1"})
    wait_until(lambda: len(list((jobd.root / "results").glob("*.json"))) == 1000, within=30)
    # One after the other they would take 1,000 s; this is no measure of speed.
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("job", ["block", "swallow", "spin"])
def test_an_overrun_ends_while_status_answers_and_a_neighbour_goes_on(daemon: Start, job: str) -> None:
    jobd = daemon(*JOBS)
    neighbour = jobd.drop({"job": "neighbour"})
    started(jobd, neighbour)
    overrun = jobd.drop({"job": job})
    wait_until(lambda: overrun in running(jobd))
    while not (jobd.root / "results" / f"{overrun}.json").exists():
        asked = time.monotonic()
        assert jobd.status()["state"] == "running"
        assert time.monotonic() - asked < 0.9, "status was held up by a job"
    result = jobd.result(overrun)
    assert (result["status"], result["reason"]) == ("failed", "timed_out")
    assert "1 s" in result["error"]
    # timeout 1 s, grace 0.3 s, and the second that is promised.
    assert 1.0 <= result["duration_seconds"] < 1 + 0.3 + 1
    assert neighbour in running(jobd)
    jobd.call("POST", f"/v1/runs/{neighbour}/cancel")
    assert jobd.result(neighbour)["result"] == "never disturbed"
    assert jobd.result(neighbour)["attempts"] == 1


def test_neighbours_of_a_killed_worker_run_again(daemon: Start) -> None:
    jobd = daemon(*JOBS, "--workers", "1")
    polite = jobd.drop({"job": "polite"})
    started(jobd, polite)
    blocked = jobd.drop({"job": "block"})
    assert jobd.result(blocked)["reason"] == "timed_out"
    wait_until(lambda: [run["attempt"] for run in jobd.status()["running"] if run["run_id"] == polite] == [2])
    assert jobd.stop() == 0
    result = jobd.result(polite)
    assert (result["status"], result["reason"], result["attempts"]) == ("completed", "stopped", 2)


def test_a_job_that_kills_its_worker_fails_after_its_budget(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    result = jobd.result(jobd.drop({"job": "dies"}), within=30)
    assert (result["status"], result["reason"], result["attempts"]) == ("failed", "worker_lost", 4)
    assert jobd.result(jobd.drop({"job": "noop"}))["status"] == "completed"


def test_sigterm_lets_50_jobs_end_by_themselves(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    runs = [jobd.drop({"job": "polite"}) for _ in range(50)]
    wait_until(lambda: len(running(jobd)) == 50)
    assert jobd.stop() == 0
    results = jobd.results()
    assert set(results) == set(runs)
    assert {(r["status"], r["reason"], r["result"]) for r in results.values()} == {
        ("completed", "stopped", "stopped early")
    }


def test_a_drain_that_takes_too_long_is_cut_and_goes_on_later(daemon: Start) -> None:
    jobd = daemon(*JOBS, "--drain-timeout", "0.2")
    deaf = jobd.drop({"job": "swallow-long"})
    once = jobd.drop({"job": "once"})
    started(jobd, deaf)
    started(jobd, once)
    assert jobd.stop() == 0
    assert list(jobd.results()) == [once]
    assert jobd.result(once)["reason"] == "interrupted"
    jobd.start()
    wait_until(lambda: [(r["run_id"], r["attempt"]) for r in jobd.status()["running"]] == [(deaf, 2)])
    jobd.call("POST", f"/v1/runs/{deaf}/cancel", {"force": True})
    assert jobd.result(deaf)["reason"] == "cancelled"


def test_a_drain_cuts_nothing_however_often_it_is_asked(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    deaf = jobd.drop({"job": "swallow-long"})
    started(jobd, deaf)
    for _ in range(3):
        assert jobd.call("POST", "/v1/drain") == (202, {"state": "draining", "ladder": 1})
    assert jobd.status()["running"][0]["state"] == "stopping"
    jobd.call("POST", f"/v1/runs/{deaf}/cancel", {"force": True})
    assert jobd.wait(within=10) == 0
    assert jobd.result(deaf)["reason"] == "cancelled"


def test_a_second_and_a_third_signal_hurry(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    deaf = jobd.drop({"job": "swallow-long"})
    started(jobd, deaf)
    jobd.terminate()
    jobd.wait_notice("STOPPING=1")
    assert jobd.status()["state"] == "draining"
    jobd.terminate()
    wait_until(lambda: jobd.status()["ladder"] == 2)
    jobd.terminate()
    assert jobd.wait(within=10) == 0
    assert jobd.results() == {}


def test_a_killed_daemon_loses_nothing(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    polite, once = jobd.drop({"job": "polite"}), jobd.drop({"job": "once"})
    started(jobd, polite)
    started(jobd, once)
    workers = [process for process in jobd.processes() if process.pid != jobd.pid]
    assert workers
    jobd.kill()
    wait_ended(workers)
    jobd.start()
    assert jobd.result(once)["reason"] == "interrupted"
    wait_until(lambda: [(r["run_id"], r["attempt"]) for r in jobd.status()["running"]] == [(polite, 2)])
    jobd.call("POST", f"/v1/runs/{polite}/cancel")
    assert jobd.result(polite)["reason"] == "stopped"


def test_cancel_before_and_while_it_runs(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    later = jobd.drop({"job": "noop", "not_before": "2099-01-01T00:00:00Z"})
    now = jobd.drop({"job": "polite"})
    started(jobd, now)
    assert jobd.status()["runs"]["scheduled"] == 1
    assert jobd.call("POST", f"/v1/runs/{later}/cancel")[0] in (200, 202)
    assert jobd.call("POST", f"/v1/runs/{now}/cancel")[0] in (200, 202)
    assert (jobd.result(later)["status"], jobd.result(later)["reason"]) == ("failed", "cancelled")
    assert (jobd.result(now)["status"], jobd.result(now)["reason"]) == ("completed", "stopped")


def test_a_scheduled_run_starts_when_it_is_due(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    due = time.time() + 1.5
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(due)) + f".{int(due % 1 * 1000):03d}Z"
    began = jobd.result(jobd.drop({"job": "when", "not_before": moment}))["result"]
    assert due - 0.01 <= began < due + 5


def test_a_second_daemon_on_the_root_is_refused(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    command = [sys.executable, "-m", "craft_easy_jobd", "serve", "--root", str(jobd.root), *JOBS]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 75
    assert f"pid {jobd.pid}" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    assert jobd.status()["pid"] == jobd.pid


def test_modules_that_do_not_import_are_named(short_dir: Path) -> None:
    module = short_dir / "bad_jobs.py"
    module.write_text("import a_module_that_is_not_there\n")
    command = [sys.executable, "-m", "craft_easy_jobd", "serve", "--root", str(short_dir / "var")]
    served = subprocess.run([*command, "--jobs", str(module)], capture_output=True, text=True, timeout=30, check=False)
    assert served.returncode == 78
    assert "a_module_that_is_not_there" in served.stderr
    assert "Traceback" not in served.stderr


def rejected(jobd: DaemonProcess) -> dict[bytes, dict[str, Any]]:
    """The reason for each rejected file; a file comes when its reason is complete."""
    folder = os.fsencode(jobd.root / "spool" / "rejected")
    names = set(os.listdir(folder))
    return {
        name: json.loads(Path(os.fsdecode(os.path.join(folder, name + b".reason.json"))).read_bytes())
        for name in names
        if name + b".reason.json" in names
    }


def test_garbage_leaves_the_daemon_serving(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    incoming = jobd.root / "spool" / "incoming"
    jobd.drop_bytes(b"", "empty.json")
    jobd.drop_bytes(b'{"job": "noo', "truncated.json")
    jobd.drop_bytes(b'{"job": "noop", "params": {"x": "' + b"x" * (2 << 20) + b'"}}', "huge.json")
    jobd.drop_bytes(b"[1]", "array.json")
    jobd.drop_bytes(b'{"job": "noop", "prams": {}}', "unknown-key.json")
    jobd.drop_bytes(b'{"job": "noop", "priority": "high"}', "wrong-type.json")
    jobd.drop_bytes(b'{"job": "nop"}', "unknown-job.json")
    jobd.drop_bytes(b'{"job": "typed", "params": {"period": "soon"}}', "bad-params.json")
    jobd.drop_bytes(b"\xff\xfe", os.fsdecode(b"new\nline\xff.json"))
    secret = jobd.root / "secret"
    secret.write_bytes(b'{"job": "noop"}')
    (incoming / "symlink.json").symlink_to(secret)
    (incoming / "hardlink.json").hardlink_to(secret)
    os.mkfifo(incoming / "fifo.json")
    (incoming / "folder.json").mkdir()
    names = {
        b"empty.json",
        b"truncated.json",
        b"huge.json",
        b"array.json",
        b"unknown-key.json",
        b"wrong-type.json",
        b"unknown-job.json",
        b"bad-params.json",
        b"symlink.json",
        b"hardlink.json",
        b"fifo.json",
        b"folder.json",
        b"new\nline\xff.json",
    }
    wait_until(lambda: names <= set(rejected(jobd)))
    reasons = rejected(jobd)
    assert all(set(reason) == {"error", "field", "at", "uid"} for reason in reasons.values())
    assert reasons[b"unknown-key.json"]["field"] == "prams"
    assert reasons[b"wrong-type.json"]["field"] == "priority"
    assert "noop" in reasons[b"unknown-job.json"]["error"]
    assert "params.period" in reasons[b"bad-params.json"]["error"]
    assert jobd.result(jobd.drop({"job": "noop"}))["status"] == "completed"
    assert "Traceback" not in jobd.log


def test_an_id_that_was_used_before_is_rejected(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    jobd.result(jobd.drop({"job": "noop", "run_id": "july-acme"}))
    jobd.drop({"job": "echo", "run_id": "july-acme"}, name="again.json")
    reason = wait_until(lambda: rejected(jobd).get(b"again.json"))
    assert reason["field"] == "run_id"
    assert jobd.result("july-acme")["job_name"] == "noop"


def test_a_slow_copy_is_taken_once_and_whole(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    document = json.dumps({"job": "echo", "run_id": "slow", "params": {"value": "x" * 5000}}).encode()
    with (jobd.root / "spool" / "incoming" / "slow.json").open("wb", buffering=0) as file:
        for start in range(0, len(document), 1000):
            file.write(document[start : start + 1000])
            jobd.result(jobd.drop({"job": "noop"}))  # meanwhile the daemon looks at the folder
    assert jobd.result("slow")["params"]["value"] == "x" * 5000
    assert rejected(jobd) == {}


def test_sigquit_shows_stacks_and_the_daemon_goes_on(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    jobd.signal(signal.SIGQUIT)
    wait_until(lambda: "most recent call first" in jobd.log)
    assert jobd.result(jobd.drop({"job": "noop"}))["status"] == "completed"


def test_a_defect_ends_the_daemon_with_one_line_and_a_log(short_dir: Path) -> None:
    broken = (
        "import craft_easy_jobd.dispatcher as d; from craft_easy_jobd.cli import main\n"
        "d.Dispatcher.look_again = lambda self: 1 / 0\n"
        "main()"
    )
    command = [sys.executable, "-c", broken, "serve", "--root", str(short_dir / "var"), "--log-format", "json"]
    ended = subprocess.run([*command, *JOBS], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 70
    log = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    assert "ZeroDivisionError" in next(record["exc_info"] for record in log if record["level"] == "CRITICAL")
    (told,) = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert "ZeroDivisionError" in told
