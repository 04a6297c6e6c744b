"""`make demo`: the whole tour by itself, on a fresh root that is removed at the end.

Starts the daemon, drops four requests by rename, follows one live, shows the results, stops the daemon. Exits 0 only
when all was as it should be.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.daemon import PROJECT, DaemonProcess
from tests.support.waiting import wait_until


class Stop(NamedTuple):
    """One request of the tour, and how its run must end."""

    request: dict[str, Any]
    status: str
    reason: str | None
    attempts: range


STOPS = {
    "settlement": Stop(
        {"job": "demo-settlement", "tenant_id": "acme", "params": {"period": "2026-03"}}, "completed", None, range(1, 2)
    ),
    "export": Stop({"job": "demo-export"}, "completed", None, range(1, 2)),
    "flaky": Stop({"job": "demo-flaky"}, "completed", None, range(2, 10)),
    "overrun": Stop({"job": "demo-overrun"}, "failed", "timed_out", range(1, 2)),
}


def main() -> int:
    # A terminated tour cleans up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="craft-easy-jobs-demo-"))
    daemon = DaemonProcess(folder / "var", "--jobs", "craft_easy_jobs.demo")
    try:
        say(f"Starting the daemon on {daemon.root}")
        daemon.start()
        problems = tour(daemon)
        if problems:
            print(*problems, f"--- log of the daemon\n{daemon.log}", sep="\n", file=sys.stderr)
        return 1 if problems else 0
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        daemon.close()
        shutil.rmtree(folder, ignore_errors=True)


def tour(daemon: DaemonProcess) -> list[str]:
    """From the drop to the stop; returns what was not as it should be."""
    say("Dropping four requests: each is written elsewhere and renamed into spool/incoming")
    for run_id, stop in STOPS.items():
        daemon.drop({"run_id": run_id, **stop.request})
        print(f"{run_id}.json  {json.dumps(stop.request)}")

    # A job that is per_tenant has a child run for each tenant, here for one.
    say("Following one of them: craft-easy-jobd logs --follow settlement.acme")
    follow(daemon, "settlement.acme")

    say("One JobResult file for each, in results/")
    problems = [problem for run_id, stop in STOPS.items() for problem in show(daemon.result(run_id), stop)]

    say("SIGTERM")
    code = daemon.stop()
    print(f"The daemon stopped with exit code {code}.")
    return problems if code == 0 else [*problems, f"exit code {code} instead of 0"]


def follow(daemon: DaemonProcess, run_id: str) -> None:
    """Show the run's log as it is written, until the run ends."""
    wait_until(lambda: daemon.call("GET", f"/v1/runs/{run_id}")[0] == 200)
    operator = [sys.executable, "-m", "craft_easy_jobd"]
    subprocess.run([*operator, "logs", run_id, "--follow", "--root", str(daemon.root)], cwd=PROJECT, check=True)


def show(result: dict[str, Any], stop: Stop) -> list[str]:
    """Print the result in a line; returns how it differs from what it must be."""
    facts = (result["run_id"], result["status"], result["reason"] or "", f"attempts {result['attempts']}")
    outcome = result["error"] or json.dumps(result["result"])
    print("{:11} {:10} {:10} {:11}".format(*facts), f"{result['duration_seconds']:.1f} s ", outcome)
    as_it_should = (result["status"], result["reason"]) == (stop.status, stop.reason)
    return [] if as_it_should and result["attempts"] in stop.attempts else [f"{result['run_id']}: expected {stop}"]


def say(headline: str) -> None:
    # The commands that are started write to the same terminal; they must not overtake.
    print(f"\n== {headline}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
