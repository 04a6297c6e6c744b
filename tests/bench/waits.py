"""Jobs that wait: how much longer than their wait many of them take together, and how soon they obey a stop."""

import time
from collections.abc import Callable

from tests.bench.clients import Connection, first_line, requests, submit_all, validated, watching
from tests.bench.figures import Figure
from tests.bench.stage import BenchError, Part, Samples, Sizes, Stage
from tests.support.waiting import wait_until

# As many as one call may hold.
_LARGE_BATCH = 1000


def parts(sizes: Sizes) -> dict[str, Part]:
    return {f"sleep-{count}": Part(sleepers(count), _sleeper_figures(count)) for count in sizes.sleepers} | {
        "stop": Part(stop, [Figure("stop", f"SIGTERM to exit, {sizes.stopped:,} runs that obey", "s")])
    }


def _sleeper_figures(count: int) -> list[Figure]:
    title = f"{count:,} × sleep(1)"
    return [
        Figure(f"sleep.{count}.wall", f"{title}: first start to last result", "s"),
        Figure(f"sleep.{count}.overhead", f"{title}: what is more than 1 s", "s"),
    ]


def sleepers(count: int) -> Callable[[Stage], Samples]:
    def measure(stage: Stage) -> Samples:
        asked = requests(count, "sleep", params={"seconds": 1})
        with stage.root() as root, watching(root) as watch, stage.daemon(root, "--slots", str(-(-count // 2))):
            submit_all(root, asked, size=_LARGE_BATCH)
            last = watch.wait(count, within=stage.sizes.patience)
            wall = (last - first_line(validated(root, asked).values())) / 1e9
        return {f"sleep.{count}.wall": wall, f"sleep.{count}.overhead": wall - 1}

    return measure


def stop(stage: Stage) -> Samples:
    asked = requests(stage.sizes.stopped, "obedient")
    with stage.root() as root, stage.daemon(root, "--slots", str(-(-len(asked) // 2))) as daemon:
        submit_all(root, asked, size=_LARGE_BATCH)
        with Connection(root) as connection:
            wait_until(
                lambda: connection.call("GET", "/v1/status")["runs"]["running"] == len(asked),
                within=stage.sizes.patience,
            )
        began = time.monotonic()
        daemon.terminate()
        code = daemon.wait(within=stage.sizes.patience)
        seconds = time.monotonic() - began
        if code:
            raise BenchError(f"stop: the daemon ended with {code}\n{daemon.log}")
        validated(root, asked, reason="stopped")
    return {"stop": seconds}
