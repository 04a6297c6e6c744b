"""What both brokers of taskiq share: the jobs, the command, enqueuing."""

import asyncio
from collections.abc import Sequence

from taskiq import AsyncBroker

from tests.bench.peers.enqueuing import in_coroutines
from tests.bench.peers.marks import ENDED, mark


class App:
    """`place` is where the worker finds the broker, MODULE:NAME."""

    def __init__(self, broker: AsyncBroker, place: str) -> None:
        self._place = place
        self._tasks = {"noop": broker.register_task(_noop, "noop"), "sleep": broker.register_task(_sleep, "sleep")}
        self._broker = broker
        self._runner: asyncio.Runner | None = None

    def worker(self, slots: int | None) -> list[str]:
        # A job's params are one int: there is nothing to parse. Acknowledged when executed: no result is saved.
        tuned = ["--no-parse", "--ack-type", "when_executed", "--log-level", "WARNING"]
        room = ["--max-async-tasks", str(slots or 100)]
        return ["taskiq", "worker", self._place, "--workers", "2", *room, *tuned]

    def enqueue(self, job: str, index: int) -> None:
        self._run(self._tasks[job].kiq(index))

    def enqueue_all(self, job: str, indices: Sequence[int]) -> None:
        self._run(in_coroutines(self._tasks[job].kiq, indices))

    def _run(self, coroutine: object) -> None:
        if self._runner is None:
            self._runner = asyncio.Runner()
            self._runner.run(self._broker.startup())
        self._runner.run(coroutine)


async def _noop(index: int) -> None:
    mark(index)


async def _sleep(index: int) -> None:
    mark(index)
    await asyncio.sleep(1)
    mark(index + ENDED)
