"""JobRunner: carry out a run in this process, attempt by attempt, and say what became of it."""

import asyncio
import copy
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypedDict, Unpack

from craft_easy_jobs.attempting import Attempt, Ending
from craft_easy_jobs.context import JobContext
from craft_easy_jobs.definition import JobDefinition, Registry
from craft_easy_jobs.definition import registry as all_jobs
from craft_easy_jobs.model import JobResult, LogEntry, utc_now
from craft_easy_jobs.scopes import Scope


class RunOptions(TypedDict, total=False):
    """What a run may be given besides the job's name.

    `scope` replaces the job's own, `run_id` the UUIDv7 that we make. With `validate`, params that miss the job's
    schema raise ParamsError before anything starts. `emit` gets each log entry as it is written.
    """

    params: dict[str, Any] | None
    tenant_id: str | None
    scope: Scope | None
    sub_tenant_ids: Sequence[str]
    run_id: str | None
    validate: bool
    emit: Callable[[LogEntry], None] | None


class JobRunner:
    """Runs registered jobs in this process: deadline of each attempt, retries, stop.

    `on_stuck` is for programs that can end: it gets the result in a thread of its own when a job blocks the event
    loop beyond deadline and grace time, and should end the process, as no coroutine ever will.
    """

    def __init__(self, registry: Registry = all_jobs, *, on_stuck: Callable[[JobResult], None] | None = None) -> None:
        self._registry = registry
        self._on_stuck = on_stuck
        self._runs: list[_Run] = []

    async def run(self, name: str, **options: Unpack[RunOptions]) -> JobResult:
        """Carry out one run of the job; whatever the job does is told in the result.

        Raises:
            UnknownJobError: no job has this name.
            ParamsError: `validate` was asked for and the params miss the schema.
        """
        return await self._carry_out(self._prepare(name, options))

    def run_sync(
        self, name: str, *, on_signal: Callable[[int], None] | None = None, **options: Unpack[RunOptions]
    ) -> JobResult:
        """As `run`, with an event loop of its own.

        In the main thread, the first SIGINT or SIGTERM asks the job to stop and the second cuts it; `on_signal` gets
        their count from within the signal handler. The former handlers come back at the end.
        """
        run = self._prepare(name, options)
        loop = asyncio.new_event_loop()
        try:
            result = loop.run_until_complete(self._carry_out_signalled(run, on_signal))
            if not run.abandoned:
                _sweep(loop, run.definition.options.grace_seconds)
            return result
        finally:
            loop.close()

    def request_stop(self) -> None:
        """Ask the runs under way to stop, and wait for no further attempts; from any thread."""
        for run in tuple(self._runs):
            run.request_stop()

    def cut(self) -> None:
        """Cancel the runs under way; after a job's grace time, its run ends without it. From any thread."""
        for run in tuple(self._runs):
            run.cut()

    def _prepare(self, name: str, options: RunOptions) -> "_Run":
        definition = self._registry[name]
        params = options.get("params") or {}
        if options.get("validate") and definition.options.params_schema:
            from craft_easy_jobs.params import compile_params

            compile_params(name, definition.options.params_schema).check(params)
        return _Run(
            definition,
            options.get("run_id") or _new_run_id(),
            params,
            options.get("tenant_id"),
            options.get("scope") or definition.options.scope,
            options.get("sub_tenant_ids", ()),
            options.get("emit"),
            self._on_stuck,
        )

    async def _carry_out(self, run: "_Run") -> JobResult:
        self._runs.append(run)
        try:
            return await run.carry_out()
        finally:
            self._runs.remove(run)

    async def _carry_out_signalled(self, run: "_Run", on_signal: Callable[[int], None] | None) -> JobResult:
        with _signals(run, on_signal):
            return await self._carry_out(run)


@dataclass(eq=False)
class _Run:
    """One run: its attempts one after the other, and all that is told of them."""

    definition: JobDefinition
    run_id: str
    params: dict[str, Any]
    tenant_id: str | None
    scope: Scope
    sub_tenant_ids: Sequence[str]
    emit: Callable[[LogEntry], None] | None
    on_stuck: Callable[[JobResult], None] | None
    abandoned: bool = False
    _logs: list[LogEntry] = field(default_factory=list)
    _attempts: int = 0
    _attempt: Attempt | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    async def carry_out(self) -> JobResult:
        self._loop = asyncio.get_running_loop()
        self._started_at, self._started = utc_now(), time.monotonic()
        while True:
            attempt = self._attempt = self._begin()
            ending = await attempt.ending()
            if not self._may_retry(ending):
                break
            delay = self.definition.options.backoff_seconds(self._attempts, random.random())  # noqa: S311
            tries = f"attempt {self._attempts} of {self.definition.options.retries + 1}"
            await attempt.ctx.warning(f"{tries} failed: {ending.error}; next in {delay:.1f} s")
            if await self._stops_within(delay):
                text = f"cancelled before attempt {self._attempts + 1}; the last one: {ending.error}"
                ending = Ending("failed", "cancelled", error=text)
                break
        self.abandoned = ending.abandoned
        return self._result(ending)

    def request_stop(self) -> None:
        self._stopping = True
        if self._attempt is not None:
            self._attempt.ctx.request_stop()
            self._loop.call_soon_threadsafe(self._stop.set)

    def cut(self) -> None:
        self.request_stop()
        if self._attempt is not None:
            self._attempt.cut("cancelled")

    def _begin(self) -> Attempt:
        self._attempts += 1
        ctx = JobContext(
            self.run_id,
            self.definition.name,
            # Each attempt starts from what was asked for, whatever the one before did to it.
            copy.deepcopy(self.params),
            self.tenant_id,
            self.scope,
            self.sub_tenant_ids,
            attempt=self._attempts,
            emit=self._take,
        )
        if self._stopping:
            ctx.request_stop()
        answer = self.on_stuck
        return Attempt(self.definition, ctx, answer and (lambda ending: answer(self._result(ending))))

    def _may_retry(self, ending: Ending) -> bool:
        if ending.status == "completed" or ending.abandoned or self._stopping:
            return False
        if ending.reason == "result_invalid":
            # The work is done; doing it again would not make its value JSON.
            return False
        return self._attempts <= self.definition.options.retries

    async def _stops_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        return self._stopping

    def _take(self, entry: LogEntry) -> None:
        self._logs.append(entry)
        if self.emit is not None:
            self.emit(entry)

    def _result(self, ending: Ending) -> JobResult:
        return JobResult(
            job_name=self.definition.name,
            run_id=self.run_id,
            status=ending.status,
            started_at=self._started_at,
            completed_at=utc_now(),
            duration_seconds=round(time.monotonic() - self._started, 6),
            result=ending.result,
            error=ending.error,
            logs=self._logs,
            reason=ending.reason,
            attempts=self._attempts,
            tenant_id=self.tenant_id,
            scope=self.scope,
            params=self.params,
            warnings=sum(entry["level"] in ("warning", "error") for entry in self._logs),
        )


@contextmanager
def _signals(run: _Run, on_signal: Callable[[int], None] | None) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def take(_number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        (run.request_stop if count == 1 else run.cut)()
        if on_signal is not None:
            on_signal(count)

    # Python's own handlers, not the loop's: a job that blocks the loop hears of a stop, too.
    former = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _sweep(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """End what the job left on the loop; bounded, since a task may refuse its cancel."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=seconds))
    loop.run_until_complete(loop.shutdown_asyncgens())


def _new_run_id() -> str:
    import uuid_utils

    return str(uuid_utils.uuid7())
