"""From the enqueue call to the job's first line: on an idle daemon, and while half of what it can do is going on."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.clients import Connection, Request, Spool, Watch, requests, submit_all, validated, watching
from tests.bench.figures import Figure, percentile
from tests.bench.pipeline import per_second
from tests.bench.stage import BenchError, Part, Samples, Sizes, Stage
from tests.support.daemon import PROJECT

# Odd, so that the probes do not step with the feed.
_PROBE_EVERY = 0.0173


def parts(sizes: Sizes) -> dict[str, Part]:
    return {
        "latency-spool": Part(by_spool, _figures("spool")),
        "latency-socket": Part(by_socket, _figures("socket")),
    }


def _figures(way: str) -> list[Figure]:
    return [
        *(
            Figure(f"latency.{way}.{load}.p{percent}", f"{way}: enqueue to first line, {text}, p{percent}", "ms")
            for load, text in (("idle", "idle"), ("half", "half load"))
            for percent in (50, 99)
        ),
        Figure(f"latency.{way}.half.feed", f"{way}: what half load was", "1/s"),
    ]


def by_spool(stage: Stage) -> Samples:
    with stage.root() as root, stage.daemon(root):
        return _measure(stage, root, "spool", Spool(root).drop)


def by_socket(stage: Stage) -> Samples:
    with stage.root() as root, stage.daemon(root), Connection(root) as connection:
        return _measure(stage, root, "socket", connection.submit)


def _measure(stage: Stage, root: Path, way: str, enqueue: Callable[[Request], None]) -> Samples:
    with watching(root) as watch:
        idle = requests(stage.sizes.samples, prefix="idle")
        enqueued = _one_by_one(stage, watch, idle, enqueue)
        warm = requests(min(1_000, stage.sizes.runs), prefix="warm")
        rate = _rate(stage, watch, root, way, warm)
        probes = requests(stage.sizes.samples, prefix="probe")
        with _feed(stage, root, way, rate / 2) as fed:
            began = time.monotonic_ns()
            enqueued |= _at_intervals(probes, enqueue)
            ended = time.monotonic_ns()
        feed = fed()
        asked = [*idle, *warm, *probes, *requests(feed, prefix="feed")]
        watch.wait(len(asked), within=stage.sizes.patience)
    results = validated(root, asked)
    waits = {run_id: (results[run_id]["result"] - at) / 1e6 for run_id, at in enqueued.items()}
    return {
        f"latency.{way}.{load}.p{percent}": percentile([waits[each["run_id"]] for each in sample], percent)
        for load, sample in (("idle", idle), ("half", probes))
        for percent in (50, 99)
    } | {f"latency.{way}.half.feed": per_second(feed, began, ended)}


def _one_by_one(stage: Stage, watch: Watch, asked: list[Request], enqueue: Callable[[Request], None]) -> dict[str, int]:
    """When each was enqueued, monotonic nanoseconds; each when the one before has its result."""
    enqueued = {}
    for request in asked:
        enqueued[request["run_id"]] = time.monotonic_ns()
        enqueue(request)
        watch.wait_for(request["run_id"], within=stage.sizes.patience)
    return enqueued


def _at_intervals(asked: list[Request], enqueue: Callable[[Request], None]) -> dict[str, int]:
    enqueued = {}
    began = time.monotonic()
    for number, request in enumerate(asked):
        time.sleep(max(0.0, began + number * _PROBE_EVERY - time.monotonic()))
        enqueued[request["run_id"]] = time.monotonic_ns()
        enqueue(request)
    return enqueued


def _rate(stage: Stage, watch: Watch, root: Path, way: str, asked: list[Request]) -> float:
    """Runs a second, end to end, of this daemon now."""
    before = len(watch.seen)
    began = time.monotonic_ns()
    if way == "spool":
        Spool(root).drop_all(asked)
    else:
        submit_all(root, asked)
    return per_second(len(asked), began, watch.wait(before + len(asked), within=stage.sizes.patience))


@contextmanager
def _feed(stage: Stage, root: Path, way: str, rate: float) -> Iterator[Callable[[], int]]:
    """Another process enqueues at this rate; called after the block, it tells how many it has enqueued."""
    seconds = stage.sizes.samples * _PROBE_EVERY + 1.0
    command = [sys.executable, "-m", "tests.bench.feed", way, str(root), f"{rate:.0f}", f"{seconds}"]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield lambda: fed
            process.stdin.close()
            said = process.stdout.read()
            if process.wait(stage.sizes.patience) or not said.strip().isdigit():
                raise BenchError(f"the feed ended with {process.returncode}: {said}")
            fed = int(said)
        finally:
            process.kill()
