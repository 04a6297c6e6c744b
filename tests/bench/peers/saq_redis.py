"""SAQ on Redis: two processes; job records are not kept after the end."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from saq.queue.redis import RedisQueue

from tests.bench.peers.enqueuing import COROUTINES, in_coroutines
from tests.bench.peers.marks import ENDED, REDIS, mark

_SLOTS = "CRAFT_EASY_BENCH_SAQ_SLOTS"


async def noop(_: dict[str, Any], *, index: int) -> None:
    mark(index)


async def sleep(_: dict[str, Any], *, index: int) -> None:
    mark(index)
    await asyncio.sleep(1)
    mark(index + ENDED)


queue = RedisQueue(Redis.from_url(REDIS), name="bench", max_concurrent_ops=COROUTINES)
settings = {"queue": queue, "functions": [noop, sleep], "concurrency": int(os.environ.get(_SLOTS, 100))}
_runner = asyncio.Runner()


def worker(slots: int | None) -> list[str]:
    if slots is not None:
        os.environ[_SLOTS] = str(slots)
    return ["saq", "tests.bench.peers.saq_redis.settings", "--workers", "2", "--quiet"]


def enqueue(job: str, index: int) -> None:
    _runner.run(queue.enqueue(job, index=index, ttl=-1))


def enqueue_all(job: str, indices: Sequence[int]) -> None:
    _runner.run(in_coroutines(lambda index: queue.enqueue(job, index=index, ttl=-1), indices))
