"""One attempt of a run: the job's function under its deadline, and how it ended."""

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from craft_easy_jobs.context import JobContext
from craft_easy_jobs.definition import JobDefinition, JobFunction
from craft_easy_jobs.errors import ResultValueError
from craft_easy_jobs.failures import describe, place_in_thread
from craft_easy_jobs.model import encode_value

Cause = Literal["timed_out", "cancelled"]

# The loop gives up on an attempt first, if it can; the watchdog is for the loop that cannot.
WATCHDOG_MARGIN_SECONDS = 0.5

logger = logging.getLogger("craft_easy_jobs.attempt")


@dataclass(frozen=True)
class Ending:
    """How an attempt ended; `reason` as in JobResult. `abandoned`: it did not end, but was given up."""

    status: Literal["completed", "failed"]
    reason: str | None = None
    result: Any = None
    error: str | None = None
    abandoned: bool = False


async def attempt(function: JobFunction, ctx: JobContext) -> Ending:
    """Call a job's function; all that it raises becomes an Ending, save CancelledError."""
    try:
        value = await function(ctx)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        # SystemExit and KeyboardInterrupt, too: a job must not end the process that carries it out.
        logger.debug("attempt %d of %s raised", ctx.attempt, ctx.run_id, exc_info=error)
        return Ending("failed", "exception", error=describe(error))
    try:
        encode_value(value)
    except ResultValueError as error:
        return Ending("failed", "result_invalid", error=str(error))
    return Ending("completed", "stopped" if ctx.should_stop() else None, value)


class Attempt:
    """An attempt under way, which ends at its deadline at the latest; made on the loop.

    `on_stuck` is called from a thread of its own when the job blocks the loop for so long that nothing here can act;
    it should end the process. Only code that holds the interpreter lock can keep it from being called.
    """

    def __init__(
        self, definition: JobDefinition, ctx: JobContext, on_stuck: Callable[[Ending], None] | None = None
    ) -> None:
        self.ctx = ctx
        self._options = definition.options
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._cause: Cause | None = None
        self._given_up = self._loop.create_future()
        self._timers: list[asyncio.TimerHandle | threading.Timer] = []
        self._on_stuck = on_stuck
        self._answered = threading.Lock()
        self._task = self._loop.create_task(attempt(definition.function, ctx), name=f"{ctx.job_name} {ctx.run_id}")
        self._timers.append(self._loop.call_later(self._options.timeout_seconds, self.cut, "timed_out"))
        self._watch(self._options.timeout_seconds + self._options.grace_seconds)

    def cut(self, cause: Cause) -> None:
        """Cancel the attempt, and give up on it after the grace time; from any thread. The first cause counts."""
        if self._cause is None and not self._task.done():
            self._cause = cause
            self.ctx.request_stop()
            self._loop.call_soon_threadsafe(self._cancel)
            self._watch(self._options.grace_seconds)

    async def ending(self) -> Ending:
        """Wait for the end; when the waiting is cancelled, so is the attempt."""
        try:
            await asyncio.wait({self._task, self._given_up}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.cut("cancelled")
            await asyncio.wait({self._task, self._given_up}, return_when=asyncio.FIRST_COMPLETED)
            raise
        finally:
            for timer in self._timers:
                timer.cancel()
        if not self._answered.acquire(blocking=False):
            # The watchdog was quicker and is ending this process: a run has one result.
            await self._loop.create_future()
        return self._judge()

    def _cancel(self) -> None:
        self._task.cancel()
        self._timers.append(self._loop.call_later(self._options.grace_seconds, self._given_up.cancel))

    def _judge(self) -> Ending:
        if not self._task.done():
            return self._abandon("")
        if self._cause is not None:
            return Ending("failed", self._cause, error=self._told(self._cause))
        if self._task.cancelled():
            return Ending("failed", "exception", error="CancelledError: the job cancelled itself")
        return self._task.result()

    def _watch(self, seconds: float) -> None:
        if self._on_stuck is not None:
            timer = threading.Timer(seconds + WATCHDOG_MARGIN_SECONDS, self._stuck, [self._on_stuck])
            timer.daemon = True
            timer.start()
            self._timers.append(timer)

    def _stuck(self, on_stuck: Callable[[Ending], None]) -> None:
        if self._answered.acquire(blocking=False):
            place = place_in_thread(self._thread)
            on_stuck(self._abandon(f"; it blocks the event loop at {place}" if place else ""))

    def _abandon(self, where: str) -> Ending:
        cause = self._cause or "timed_out"
        text = f"{self._told(cause)} and did not end within {self._options.grace_seconds:g} s of that{where}"
        return Ending("failed", cause, error=text, abandoned=True)

    def _told(self, cause: Cause) -> str:
        return f"timed out after {self._options.timeout_seconds} s" if cause == "timed_out" else "cancelled"
