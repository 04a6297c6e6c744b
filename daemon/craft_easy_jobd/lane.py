"""One thread for the file work of one part."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """Carries out calls one after the other, off the loop."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._began: float | None = None

    @property
    def stalled_seconds(self) -> float:
        """For how long the call that is under way has been."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns or raises. A caller that is cancelled waits for the end of its call.

        So nothing that the call uses is taken away from under it; calls must be short.
        """
        call = asyncio.wrap_future(self._executor.submit(self._timed, partial(function, *args, **kwargs)))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            # A daemon that fails while it stops cancels twice.
            while not call.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([call])
            # Nobody is left whom its error could be told; unseen, it would be logged as forgotten.
            if not call.cancelled():
                call.exception()
            raise

    def _timed(self, function: Callable[[], T]) -> T:
        self._began = time.monotonic()
        try:
            return function()
        finally:
            self._began = None

    def close(self) -> None:
        """End the thread. Twice is harmless."""
        self._executor.shutdown()
