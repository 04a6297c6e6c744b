"""A run under way in this process: its attempts one after the other, and all that is told of them."""

import asyncio
import copy
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from craft_easy_jobs.attempting import Attempt, Ending
from craft_easy_jobs.context import JobContext
from craft_easy_jobs.credentials import Folder
from craft_easy_jobs.definition import JobDefinition
from craft_easy_jobs.model import JobResult, LogEntry, utc_now
from craft_easy_jobs.scopes import Scope


@dataclass(eq=False, kw_only=True)
class UnderWay(ABC):
    """A run of any kind, from what was asked for to its result.

    Attributes:
        on_stuck: gets the result in a thread of its own, when a job blocks the event loop for good.
        abandoned: something of it did not end, but was given up.
        was_cut: something of it was cut off; threads that it started may still be there.
    """

    name: str
    run_id: str
    params: dict[str, Any]
    tenant_id: str | None
    scope: Scope
    grace_seconds: float
    parent_run_id: str | None = None
    emit: Callable[[LogEntry], None] | None = None
    on_stuck: Callable[[JobResult], None] | None = None
    attempts: int = 0
    abandoned: bool = False
    was_cut: bool = False
    stopping: bool = False
    cutting: bool = False
    _logs: list[LogEntry] = field(default_factory=list)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _started_at: datetime = field(default_factory=utc_now)
    _started: float = field(default_factory=time.monotonic)

    async def carry_out(self) -> JobResult:
        """See the run to its end; whatever jobs do is told in the result."""
        self._loop = asyncio.get_running_loop()
        self._started_at, self._started = utc_now(), time.monotonic()
        return self._result(await self._work())

    def request_stop(self) -> None:
        """Ask what runs to stop, and start no more; from any thread."""
        self.stopping = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._woken.set)
        self._pass_on()

    def cut(self) -> None:
        """Cancel what runs; after its grace time, the run ends without it. From any thread."""
        self.cutting = True
        self.request_stop()

    @abstractmethod
    async def _work(self) -> Ending: ...

    @abstractmethod
    def _pass_on(self) -> None:
        """Tell what runs now of `stopping` and `cutting`; to be called for what starts after them, too."""

    async def _stops_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self.stopping else seconds):
                await self._woken.wait()
        return self.stopping

    def _take(self, entry: LogEntry) -> None:
        self._logs.append(entry)
        if self.emit is not None:
            self.emit(entry)

    def _result(self, ending: Ending) -> JobResult:
        return JobResult(
            job_name=self.name,
            run_id=self.run_id,
            status=ending.status,
            started_at=self._started_at,
            completed_at=utc_now(),
            duration_seconds=round(time.monotonic() - self._started, 6),
            result=ending.result,
            error=ending.error,
            logs=self._logs,
            reason=ending.reason,
            attempts=self.attempts,
            tenant_id=self.tenant_id,
            scope=self.scope,
            params=self.params,
            parent_run_id=self.parent_run_id,
            warnings=sum(entry["level"] in ("warning", "error") for entry in self._logs),
        )


@dataclass(eq=False, kw_only=True)
class Run(UnderWay):
    """A run of one job: attempts until one is the last."""

    definition: JobDefinition
    sub_tenant_ids: Sequence[str] = ()
    upstream: dict[str, Any] = field(default_factory=dict)
    credentials: Folder | None = None
    _attempt: Attempt | None = None

    async def _work(self) -> Ending:
        while True:
            attempt = self._begin()
            ending = await attempt.ending()
            if not self._may_retry(ending):
                break
            delay = self.definition.options.backoff_seconds(self.attempts, random.random())  # noqa: S311
            tries = f"attempt {self.attempts} of {self.definition.options.retries + 1}"
            await attempt.ctx.warning(f"{tries} failed: {ending.error}; next in {delay:.1f} s")
            if await self._stops_within(delay):
                text = f"cancelled before attempt {self.attempts + 1}; the last one: {ending.error}"
                ending = Ending("failed", "cancelled", error=text)
                break
        self.abandoned = ending.abandoned
        self.was_cut = ending.reason in ("timed_out", "cancelled")
        return ending

    def _pass_on(self) -> None:
        if self._attempt is not None:
            self._attempt.ctx.request_stop()
            if self.cutting:
                self._attempt.cut("cancelled")

    def _begin(self) -> Attempt:
        self.attempts += 1
        ctx = JobContext(
            self.run_id,
            self.name,
            # Each attempt starts from what was asked for, whatever the one before did to it.
            copy.deepcopy(self.params),
            self.tenant_id,
            self.scope,
            self.sub_tenant_ids,
            attempt=self.attempts,
            upstream=copy.deepcopy(self.upstream),
            emit=self._take,
            credentials=self.credentials,
        )
        answer = self.on_stuck
        self._attempt = Attempt(self.definition, ctx, answer and (lambda ending: answer(self._result(ending))))
        if self.stopping:
            self._pass_on()
        return self._attempt

    def _may_retry(self, ending: Ending) -> bool:
        if ending.status == "completed" or ending.abandoned or self.stopping:
            return False
        if ending.reason == "result_invalid":
            # The work is done; doing it again would not make its value JSON.
            return False
        return self.attempts <= self.definition.options.retries
