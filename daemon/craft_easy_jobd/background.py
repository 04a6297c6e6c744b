"""Work beside other work, and waits that a stop cuts short."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def running(tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Have it carried out while the block lasts; cancelled at its end, and waited for."""
    task = tasks.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def begin(tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str) -> None:
    """Have it carried out, unless an error is about to end all tasks: then nothing new begins."""
    try:
        tasks.create_task(work, name=name)
    except RuntimeError:
        # Whoever waits for the tasks is told of the error.
        work.close()


async def unless(stop: asyncio.Event, wait: Coroutine[Any, Any, object]) -> None:
    """Wait until it returns, or raises; but not when a stop is asked for: then it is cancelled."""
    waiting, stopped = asyncio.ensure_future(wait), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            waiting.result()
    finally:
        waiting.cancel()
        stopped.cancel()
