"""kill -9 of the daemon and its workers in the middle of their work, and what a log costs."""

import time

from tests.bench.clients import requests, submit_all, validated, watching
from tests.bench.figures import Figure
from tests.bench.pipeline import through_socket
from tests.bench.stage import BenchError, Part, Samples, Sizes, Stage
from tests.support.processes import kill_all

# Side by side, so that the runs take two seconds and the kill comes into their middle.
_SLOTS = 10
_JOB_SECONDS = 0.02


def parts(sizes: Sizes) -> dict[str, Part]:
    killed = f"kill -9 amid {sizes.killed:,} runs: start to"
    return {
        "chatty": Part(chatty, [Figure("chatty", "time of jobs that log 100 lines, by that of none", "x")]),
        "crash": Part(
            crash,
            [
                Figure("crash.again", f"{killed} interrupted runs going again", "s"),
                Figure("crash.done", f"{killed} all results", "s"),
            ],
        ),
    }


def crash(stage: Stage) -> Samples:
    asked = requests(stage.sizes.killed, "sleep", params={"seconds": _JOB_SECONDS})
    with stage.root() as root, watching(root) as watch, stage.daemon(root, "--slots", str(_SLOTS)) as daemon:
        submit_all(root, asked)
        watch.wait(len(asked) // 4, within=stage.sizes.patience)
        kill_all(daemon.processes())
        daemon.wait()
        began = time.monotonic_ns()
        daemon.launch()
        last = watch.wait(len(asked), within=stage.sizes.patience)
        again = [each["result"] for each in validated(root, asked).values() if each["attempts"] > 1]
    if not again:
        raise BenchError("kill -9: no run was interrupted")
    return {"crash.again": (max(again) - began) / 1e9, "crash.done": (last - began) / 1e9}


def chatty(stage: Stage) -> Samples:
    rates = {}
    for job in ("noop", "chatty"):
        with stage.root() as root, stage.daemon(root):
            rates[job] = through_socket(stage, root, requests(stage.sizes.chatty, job))
    return {"chatty": rates["noop"] / rates["chatty"]}
