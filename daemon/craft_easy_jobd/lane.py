"""One thread for the file work of one part."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """Carries out calls one after the other, off the loop."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns or raises. A caller that is cancelled waits for the end of its call.

        So nothing that the call uses is taken away from under it; calls must be short.
        """
        call = asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))
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

    def close(self) -> None:
        """End the thread. Twice is harmless."""
        self._executor.shutdown()
