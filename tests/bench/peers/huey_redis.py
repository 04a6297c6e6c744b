"""huey on Redis: two worker processes; to sleep, threads, of which it can have as many as it likes."""

import time
from collections.abc import Sequence

from huey import RedisHuey

from tests.bench.peers.enqueuing import in_threads
from tests.bench.peers.marks import ENDED, REDIS, mark

huey = RedisHuey("bench", results=False, url=REDIS)


@huey.task()
def noop(index: int) -> None:
    mark(index)


@huey.task()
def sleep(index: int) -> None:
    mark(index)
    time.sleep(1)
    mark(index + ENDED)


_TASKS = {"noop": noop, "sleep": sleep}


def worker(slots: int | None) -> list[str]:
    room = ["-k", "process", "-w", "2"] if slots is None else ["-k", "thread", "-w", str(slots)]
    return ["huey_consumer", "tests.bench.peers.huey_redis.huey", *room, "-n", "-q"]


def enqueue(job: str, index: int) -> None:
    _TASKS[job](index)


def enqueue_all(job: str, indices: Sequence[int]) -> None:
    in_threads(_TASKS[job], indices)
