"""dramatiq on Redis: two processes with eight threads each, its own default; it has no event loop for jobs to share."""

import time
from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from tests.bench.peers.enqueuing import in_threads
from tests.bench.peers.marks import ENDED, REDIS, mark

dramatiq.set_broker(RedisBroker(url=REDIS))


@dramatiq.actor
def noop(index: int) -> None:
    mark(index)


@dramatiq.actor
def sleep(index: int) -> None:
    mark(index)
    time.sleep(1)
    mark(index + ENDED)


_ACTORS = {"noop": noop, "sleep": sleep}


def worker(slots: int | None) -> list[str]:
    threads = slots or 8
    return ["dramatiq", "--processes", "2", "--threads", str(threads), "tests.bench.peers.dramatiq_redis"]


def enqueue(job: str, index: int) -> None:
    _ACTORS[job].send(index)


def enqueue_all(job: str, indices: Sequence[int]) -> None:
    in_threads(_ACTORS[job].send, indices)
