"""JobRunner: carry out runs in this process, and say what became of them."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypedDict, Unpack

from craft_easy_jobs.chaining import Chain, find_chain
from craft_easy_jobs.chaining import chains as all_chains
from craft_easy_jobs.credentials import Folder
from craft_easy_jobs.definition import Registry
from craft_easy_jobs.definition import registry as all_jobs
from craft_easy_jobs.model import JobResult, LogEntry
from craft_easy_jobs.preparing import Order, check_params, prepare_chain, prepare_job
from craft_easy_jobs.run_ids import new_run_id
from craft_easy_jobs.running import UnderWay
from craft_easy_jobs.scopes import Scope
from craft_easy_jobs.tenants import TenantDirectory


class ChainOptions(TypedDict, total=False):
    """What a run may be given besides the name.

    `all_tenants` asks a `per_tenant` job to run for every active tenant, `concurrency` of them (4) side by side.
    `run_id` replaces the UUIDv7 that we make. With `validate`, params that miss the schema are refused before anything
    starts. `emit` gets each log entry as it is written, those of children with their tenant or step before the message;
    `on_child` gets each child's result.
    """

    params: dict[str, Any] | None
    tenant_id: str | None
    all_tenants: bool
    concurrency: int
    run_id: str | None
    validate: bool
    emit: Callable[[LogEntry], None] | None
    on_child: Callable[[JobResult], None] | None


class RunOptions(ChainOptions, total=False):
    """As ChainOptions; `scope` replaces the job's own, `sub_tenant_ids` what the tenant directory says."""

    scope: Scope | None
    sub_tenant_ids: Sequence[str]


class JobRunner:
    """Runs registered jobs and chains in this process: deadline of each attempt, retries, stop.

    A `per_tenant` job has a child run for each tenant, a chain one for each step; the result is a table of them.

    `on_stuck` is for programs that can end: it gets the result in a thread of its own when a job blocks the event
    loop beyond deadline and grace time, and should end the process, as no coroutine ever will.
    `credentials` is the folder of the files that `ctx.credential` reads.

    Attributes:
        cut_off: an attempt was cut off; threads that it started may still be there.
    """

    def __init__(
        self,
        registry: Registry = all_jobs,
        *,
        chains: Mapping[str, Chain] = all_chains,
        tenants: TenantDirectory | None = None,
        on_stuck: Callable[[JobResult], None] | None = None,
        credentials: Folder | None = None,
    ) -> None:
        self.cut_off = False
        self._credentials = credentials
        self._registry = registry
        self._chains = chains
        self._tenants = tenants
        self._on_stuck = on_stuck
        self._runs: list[UnderWay] = []

    async def run(self, name: str, **options: Unpack[RunOptions]) -> JobResult:
        """Carry out one run of the job; whatever the job does is told in the result.

        Raises:
            UnknownJobError: no job has this name.
            ParamsError: `validate` was asked for and the params miss the schema.
            TenantError: the job cannot run for the tenants asked for.
        """
        return await self._carry_out(self._prepare(name, options))

    async def run_chain(self, name: str, **options: Unpack[ChainOptions]) -> JobResult:
        """Carry out the steps of a chain; what becomes of them is told in the result.

        Raises:
            RequestError: no chain has this name, or one of its steps could not run.
            TenantError: all tenants are asked for, but no step is for each of them.
        """
        return await self._carry_out(self._prepare_chain(name, options))

    def run_sync(
        self, name: str, *, on_signal: Callable[[int], None] | None = None, **options: Unpack[RunOptions]
    ) -> JobResult:
        """As `run`, with an event loop of its own.

        In the main thread, the first SIGINT or SIGTERM asks the job to stop and the second cuts it; `on_signal` gets
        their count from within the signal handler. The former handlers come back at the end.
        """
        return self._on_own_loop(self._prepare(name, options), on_signal)

    def run_chain_sync(
        self, name: str, *, on_signal: Callable[[int], None] | None = None, **options: Unpack[ChainOptions]
    ) -> JobResult:
        """As `run_chain`, with an event loop of its own; signals as for `run_sync`."""
        return self._on_own_loop(self._prepare_chain(name, options), on_signal)

    def request_stop(self) -> None:
        """Ask the runs under way to stop, and wait for no further attempts; from any thread."""
        for run in tuple(self._runs):
            run.request_stop()

    def cut(self) -> None:
        """Cancel the runs under way; after a job's grace time, its run ends without it. From any thread."""
        for run in tuple(self._runs):
            run.cut()

    def _prepare(self, name: str, options: RunOptions) -> UnderWay:
        definition, order = self._registry[name], self._order(options)
        if order.validate:
            check_params(definition.options, order.params)
        return prepare_job(definition, order, self._tenants)

    def _prepare_chain(self, name: str, options: ChainOptions) -> UnderWay:
        return prepare_chain(find_chain(name, self._chains), self._registry, self._order(options), self._tenants)

    def _order(self, options: ChainOptions) -> Order:
        given: dict[str, Any] = {**options}
        given["run_id"] = options.get("run_id") or new_run_id()
        given["params"] = options.get("params") or {}
        return Order(**given, on_stuck=self._on_stuck, credentials=self._credentials)

    async def _carry_out(self, run: UnderWay) -> JobResult:
        self._runs.append(run)
        try:
            return await run.carry_out()
        finally:
            self._runs.remove(run)
            self.cut_off |= run.was_cut

    def _on_own_loop(self, run: UnderWay, on_signal: Callable[[int], None] | None) -> JobResult:
        loop = asyncio.new_event_loop()
        try:
            result = loop.run_until_complete(self._carry_out_signalled(run, on_signal))
            if not run.abandoned:
                _sweep(loop, run.grace_seconds)
            return result
        finally:
            loop.close()

    async def _carry_out_signalled(self, run: UnderWay, on_signal: Callable[[int], None] | None) -> JobResult:
        with _signals(run, on_signal, asyncio.get_running_loop()):
            return await self._carry_out(run)


@contextmanager
def _signals(run: UnderWay, on_signal: Callable[[int], None] | None, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
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

    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in former:
        # The loop's handler wakes it: a signal that comes just before it sleeps, or in another thread, would wait.
        with suppress(NotImplementedError):  # Windows, where every loop is woken
            loop.add_signal_handler(number, _noop)
        # Python's own takes it, not the loop's: a job that blocks the loop hears of a stop, too.
        signal.signal(number, take)
    try:
        yield
    finally:
        for number, handler in former.items():
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _noop() -> None:
    """Nothing is to be done on the loop."""


def _sweep(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """End what the job left on the loop; bounded, since a task may refuse its cancel."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=seconds))
    loop.run_until_complete(loop.shutdown_asyncgens())
