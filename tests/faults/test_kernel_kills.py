"""Workers that the kernel kills for want of memory, told from those that somebody else killed."""

import os
import signal
from collections.abc import Callable
from functools import partial

from tests.support.cgroups import memory_group
from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until
from tests.system.test_memory import JOBS, MB, drop, state


def ready(jobd: DaemonProcess, isolation: str) -> list[int]:
    workers = jobd.status()["workers"]
    return [each["pid"] for each in workers if (each["isolation"], each["state"]) == (isolation, "ready")]


def busy(jobd: DaemonProcess) -> list[int]:
    return [each["pid"] for each in jobd.status()["workers"] if each["busy"]]


def is_idle(jobd: DaemonProcess, worker: int) -> bool:
    return worker not in busy(jobd)


def test_a_worker_that_the_kernel_killed_for_its_memory_is_told_from_a_lost_one(
    daemon: Callable[..., DaemonProcess],
) -> None:
    with memory_group(150 * MB) as group:
        jobd = daemon(*JOBS)
        [worker] = wait_until(lambda: ready(jobd, "process"))
        (group / "cgroup.procs").write_text(str(worker))
        result = jobd.result(drop(jobd, "hold-alone", megabytes=300))
        assert (result["reason"], result["attempts"]) == ("out_of_memory", 1)
        assert result["error"].startswith("out of memory: the kernel killed worker d1, for there was none left")
        [worker] = wait_until(lambda: ready(jobd, "process"))
        run_id = drop(jobd, "hold-alone", megabytes=1)
        wait_until(lambda: state(jobd, run_id) == "running")
        for _ in range(4):
            # Whoever else kills it, it is interrupted as ever.
            [worker] = wait_until(lambda: busy(jobd))
            os.kill(worker, signal.SIGKILL)
            wait_until(partial(is_idle, jobd, worker))
        assert jobd.result(run_id)["reason"] == "worker_lost"
