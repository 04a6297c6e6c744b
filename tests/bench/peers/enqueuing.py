"""Many enqueue calls side by side, for peers that have no call for many."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

# As many as our own client has connections for threads; coroutines cost less.
THREADS = 4
COROUTINES = 50


def in_threads(call: Callable[[int], object], indices: Iterable[int]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(call, indices):
            pass


async def in_coroutines(call: Callable[[int], Awaitable[object]], indices: Iterable[int]) -> None:
    waiting = iter(indices)

    async def work() -> None:
        for index in waiting:
            await call(index)

    await asyncio.gather(*(work() for _ in range(COROUTINES)))
