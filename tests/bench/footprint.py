"""Memory, and how long starts take; with an empty ledger and with one of very many finished runs."""

import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.bench.clients import Connection, Spool, requests, submit_all, validated, watching
from tests.bench.figures import Figure, percentile
from tests.bench.ledgers import copy_state, state_of_finished_runs
from tests.bench.pipeline import through_socket
from tests.bench.stage import BenchError, Part, Samples, Sizes, Stage
from tests.support.daemon import PROJECT, DaemonProcess
from tests.support.waiting import wait_until

_SLOTS = 1


def parts(sizes: Sizes) -> dict[str, Part]:
    finished_runs = f"{sizes.finished:,} finished runs"
    return {
        "memory": Part(
            memory,
            [
                Figure("memory.idle", "memory (PSS): idle with 2 workers", "MB"),
                Figure("memory.queued", f"memory (PSS): {sizes.queued:,} runs queued", "MB"),
            ],
        ),
        "start": Part(
            starts,
            [
                Figure("start.python", "python -c pass", "ms"),
                Figure("start.python_loop", 'python -c "import asyncio, uvloop"', "ms"),
                Figure("start.ready", "start to READY", "ms"),
                Figure("start.first_line", "start to the first job's first line", "ms"),
                Figure("start.status", "craft-easy-jobd status", "ms"),
                Figure("start.list", "craft-easy-job list", "ms"),
            ],
        ),
        "finished": Part(
            finished,
            [
                Figure("finished.ready", f"{finished_runs}: start to READY", "ms"),
                Figure("finished.memory", f"{finished_runs}: memory (PSS), idle", "MB"),
                Figure("finished.end_to_end", f"{finished_runs}: socket, end to end", "1/s", "limit.socket"),
                Figure("finished.relative", f"{finished_runs}: that by the rate of an empty ledger", "x"),
            ],
        ),
    }


def memory(stage: Stage) -> Samples:
    """Idle; then all slots are taken, and what is submitted has to wait."""
    taken = requests(2 * _SLOTS, "obedient", prefix="taken")
    waiting = requests(stage.sizes.queued)
    with stage.root() as root, stage.daemon(root, "--slots", str(_SLOTS)) as daemon:
        idle = settled_pss(daemon.processes())
        submit_all(root, taken)
        with Connection(root) as connection:
            _wait_for_count(stage, connection, "running", len(taken))
            submit_all(root, waiting)
            _wait_for_count(stage, connection, "queued", len(waiting))
        return {"memory.idle": idle, "memory.queued": settled_pss(daemon.processes())}


def starts(stage: Stage) -> Samples:
    request = requests(1)
    with stage.root() as root:
        Spool(root).drop_all(request)
        with watching(root) as watch, stage.daemon(root, started=False) as daemon:
            began = time.monotonic_ns()
            ready = _milliseconds_to_ready(stage, daemon)
            watch.wait(1, within=stage.sizes.patience)
            [result] = validated(root, request).values()
            status = _command(stage, _script("craft-easy-jobd"), "status", "--root", str(root))
    return {
        "start.python": _command(stage, sys.executable, "-c", "pass"),
        "start.python_loop": _command(stage, sys.executable, "-c", "import asyncio, uvloop"),
        "start.ready": ready,
        "start.first_line": (result["result"] - began) / 1e6,
        "start.status": status,
        "start.list": _command(stage, _script("craft-easy-job"), "list", "--jobs", "tests.bench.bench_jobs"),
    }


def finished(stage: Stage) -> Samples:
    with stage.root() as root:
        copy_state(state_of_finished_runs(stage), root)
        with stage.daemon(root, started=False) as daemon:
            ready = _milliseconds_to_ready(stage, daemon)
            with Connection(root) as connection:
                known = connection.call("GET", "/v1/status")["runs"]["completed"]
            if known != stage.sizes.finished:
                raise BenchError(f"the ledger has {known} finished runs instead of {stage.sizes.finished}")
            memory = settled_pss(daemon.processes())
            rate = through_socket(stage, root, requests(stage.sizes.runs, prefix="new"))
    # Beside it, not that of another scenario: the ratio is of neighbours in time.
    with stage.root() as root, stage.daemon(root):
        empty = through_socket(stage, root, requests(stage.sizes.runs, prefix="new"))
    return {
        "finished.ready": ready,
        "finished.memory": memory,
        "finished.end_to_end": rate,
        "finished.relative": rate / empty,
    }


def pss(processes: Iterable[psutil.Process]) -> float:
    """Proportional set size of all together, MB (10^6 bytes)."""
    total = 0
    for process in processes:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        assert match, rollup
        total += int(match[1]) * 1024
    return total / 1e6


def settled_pss(processes: list[psutil.Process], *, within: float = 5.0) -> float:
    """As `pss`, when it no longer changes by more than 1 % in a quarter of a second, or `within` has passed."""
    deadline = time.monotonic() + within
    before, now = 0.0, pss(processes)
    while abs(now - before) > now / 100 and time.monotonic() < deadline:
        time.sleep(0.25)
        before, now = now, pss(processes)
    return now


def _wait_for_count(stage: Stage, connection: Connection, state: str, count: int) -> None:
    wait_until(
        lambda: connection.call("GET", "/v1/status")["runs"][state] == count, within=stage.sizes.patience, every=0.05
    )


def _milliseconds_to_ready(stage: Stage, daemon: DaemonProcess) -> float:
    began = time.monotonic()
    daemon.launch()
    wait_until(lambda: "READY=1" in daemon.notices or daemon.ended, within=stage.sizes.patience, every=0.001)
    seconds = time.monotonic() - began
    daemon.wait_notice("READY=1")
    return seconds * 1000


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _command(stage: Stage, *command: str) -> float:
    """Milliseconds from start to end, the median of a few."""
    times = []
    for _ in range(stage.sizes.commands):
        began = time.monotonic()
        # A pipe: without one, a limit makes it look at the process at intervals of up to 50 ms.
        subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, check=True, timeout=stage.sizes.patience)
        times.append((time.monotonic() - began) * 1000)
    return percentile(times, 50)
