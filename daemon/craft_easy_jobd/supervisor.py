"""The supervisor: puts the parts together, boots them in order and stops them in reverse."""

import asyncio
import contextlib
import faulthandler
import gc
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeVar

import uvloop

from craft_easy_jobd.attempts import Attempts
from craft_easy_jobd.background import begin, running, unless
from craft_easy_jobd.bell import Bell
from craft_easy_jobd.blocking import Watch
from craft_easy_jobd.cgroups import contain
from craft_easy_jobd.commits import Commits
from craft_easy_jobd.containment import kill_leftovers
from craft_easy_jobd.dispatcher import Dispatcher
from craft_easy_jobd.duties import Duties
from craft_easy_jobd.errors import InternalError, shortage
from craft_easy_jobd.events import Event
from craft_easy_jobd.identity import Rights
from craft_easy_jobd.instance import instance_of
from craft_easy_jobd.logs import logging_on
from craft_easy_jobd.manager import Manager, Vital, summary
from craft_easy_jobd.memory_watch import MemoryWatch
from craft_easy_jobd.notify import take_listener
from craft_easy_jobd.nursery import Nursery
from craft_easy_jobd.publisher import Publisher
from craft_easy_jobd.reloading import Reloading
from craft_easy_jobd.reporting import report
from craft_easy_jobd.service import Service
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.shutdown import Shutdown
from craft_easy_jobd.spool import Spool
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.status import Status
from craft_easy_jobd.stopping import daemon_state
from craft_easy_jobd.workforce import Workforce
from craft_easy_jobs.errors import CraftEasyJobsError

if TYPE_CHECKING:
    from craft_easy_jobd.control import Control

logger = logging.getLogger("craft_easy_jobd")

E = TypeVar("E", bound=BaseException)

_QUIT_SECONDS = 2.0
_IMPORT_SECONDS = 0.5
# Recovery of a ledger with millions of runs, or a spool with as many requests, is still no hang.
_RECOVERY_SECONDS = 600.0
# Far beyond what a slow disk does: the watchdog's kill costs the runs that are under way.
_DUTIES_SECONDS, _COMMIT_SECONDS, _FILES_SECONDS = 60.0, 120.0, 300.0


def serve(settings: Settings, nursery: Nursery, *, reread: Callable[[], Settings]) -> int:
    """Run the daemon on its premises until it is stopped; returns its exit code.

    Args:
        reread: reads the settings anew for a reload, from where they came from.

    Raises:
        CraftEasyJobsError: it cannot start or cannot go on; the text is for the operator, `exit_code` for systemd.
    """
    listener = take_listener("control")
    faulthandler.enable()
    # SIGQUIT shows where the daemon is, and the daemon goes on.
    faulthandler.register(signal.SIGQUIT, all_threads=True, chain=False)
    with logging_on(settings.log_level, settings.log_format):
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(settings, nursery, reread, listener))
        # Not except*: what that raises leaves Python 3.11.2, which Debian 12 has, in a group.
        except Exception as error:
            raise _for_the_operator(error) from None
    return 0


def _for_the_operator(error: Exception) -> CraftEasyJobsError:
    errors = error if isinstance(error, ExceptionGroup) else ExceptionGroup("", [error])
    ours, defects = errors.split(CraftEasyJobsError)
    if ours is not None and defects is None:
        return _first(ours)
    if missing := shortage(_first(defects or errors)):
        return missing
    logger.critical("internal error", exc_info=errors, extra={"event": Event.DEFECT})
    problem = f"internal error, a defect of the daemon: {_first(defects or errors)!r}; its log has the details"
    return InternalError(problem)


async def _run(
    settings: Settings, nursery: Nursery, reread: Callable[[], Settings], listener: socket.socket | None
) -> None:
    async with asyncio.TaskGroup() as tasks:
        await Supervisor(settings, tasks, nursery, reread=reread, listener=listener).run()


def _first(errors: BaseExceptionGroup[E]) -> E:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class Supervisor:
    """The composition of the daemon: its parts, their boot and their stop."""

    def __init__(
        self,
        settings: Settings,
        tasks: asyncio.TaskGroup,
        nursery: Nursery,
        *,
        reread: Callable[[], Settings],
        listener: socket.socket | None,
    ) -> None:
        self._settings = settings
        self._nursery = nursery
        self._listener = listener
        self._bell = Bell()
        self._ledger = SqliteLedger(settings.ledger_path)
        self._tasks = tasks
        self._started = time.monotonic()
        self._ready = False
        self._reachable = asyncio.Event()
        self._failing = False
        self._attempts = Attempts()
        self._containment = contain(settings.cgroup, instance_of(settings.state_dir))
        self._workforce = Workforce(settings, Rights(settings), self._attempts, tasks, self._containment, nursery)
        start_helper = self._workforce.start_helper
        self._publisher = Publisher(settings, self._ledger, start=start_helper, published=self._bell.ring)
        self._commits = Commits(self._ledger, failed=self._fail)
        self._dispatcher = Dispatcher(
            self._ledger, self._commits, self._bell, self._workforce, self._attempts, ended=self._publisher.wake
        )
        self._workforce.listener = self._dispatcher
        self._duties = Duties(self._ledger, self._dispatcher, self._workforce)
        self._watch = Watch(self._workforce, self._attempts, self._dispatcher)
        self._manager = Manager(
            describe=self._summary,
            vitals=(
                Vital("the ledger does not commit", lambda: self._ledger.stalled_seconds, _COMMIT_SECONDS),
                Vital("the spool's files do not answer", lambda: self._spool.stalled_seconds, _FILES_SECONDS),
                Vital("what is due each second is not done", lambda: self._duties.stalled_seconds, _DUTIES_SECONDS),
            ),
        )
        self._shutdown = Shutdown(self._dispatcher, self._attempts, self._manager, self._workforce)
        self._reloading = Reloading(reread, self._workforce, self._manager, self._shutdown.asked, tasks)
        self._service = Service(
            self._ledger,
            self._bell,
            self._dispatcher,
            self._workforce,
            self._publisher,
            self._shutdown,
            self._reloading,
            status=self._report,
        )
        self._spool = Spool(
            lambda: self._workforce.rules,
            self._ledger,
            submit=self._dispatcher.submit,
        )

    # -- life

    async def run(self) -> None:
        """Boot, serve until stopped, drain, and undo the boot in reverse; a stop does not hide a broken ledger."""
        self._take_signals()
        async with contextlib.AsyncExitStack() as undo:
            self._manager.allow(_RECOVERY_SECONDS)
            await undo.enter_async_context(running(self._tasks, self._manager.run(), "service manager"))
            await self._boot(undo)
            if not self._shutdown.asked.is_set():
                await self._serve()
            await self._drain()
        if self._ledger.broken is not None:
            raise self._ledger.broken

    async def _boot(self, undo: contextlib.AsyncExitStack) -> None:
        """Everything that READY promises, in the order of need."""
        await self._workforce.tenancy.load()
        # Recovery starts runs again: what an earlier life left of them must not go on beside them.
        await asyncio.to_thread(kill_leftovers, self._containment, self._nursery.pids)
        starting = self._tasks.create_task(self._workforce.current.start(), name="start the workers")
        await self._ledger.open()
        undo.push_async_callback(self._ledger.close)
        await starting
        undo.push_async_callback(self._workforce.close, grace=_QUIT_SECONDS)
        await undo.enter_async_context(running(self._tasks, self._watch.run(), "watch over the workers"))
        memory = MemoryWatch(self._attempts).run()
        await undo.enter_async_context(running(self._tasks, memory, "watch over the memory"))
        undo.callback(self._spool.close)
        await undo.enter_async_context(running(self._tasks, self._control(), "control"))
        await self._recover()
        await undo.enter_async_context(self._published())
        # Modules that hang while they are imported have the time that the manager gives.
        self._manager.allow(0.0)
        await unless(self._shutdown.asked, self._announced())

    async def _recover(self) -> None:
        settled = await self._ledger.reap(budget=self._settings.interruption_budget)
        if settled:
            logger.warning(
                "runs that a dead daemon left were settled", extra={"event": Event.RECOVERED, "runs": settled}
            )

    async def _serve(self) -> None:
        self._dispatcher.open()
        self._manager.allow(_RECOVERY_SECONDS)
        await self._spool.recover()
        async with running(self._tasks, self._spool.run(), "spool"), running(self._tasks, self._duties.run(), "duties"):
            await unless(self._shutdown.asked, self._looked())
            if not self._shutdown.asked.is_set():
                self._ready = True
                self._manager.ready()
                _spare_collector()
                self._reloading.begin()
                jobs = len(self._workforce.catalogue.jobs)
                logger.info("serving", extra={"event": Event.READY, "root": self._settings.root, "jobs": jobs})
            await self._shutdown.asked.wait()

    async def _drain(self) -> None:
        """Wait for the attempts to end, as the ladder makes them, and for all that follows from it to be durable."""
        self._dispatcher.close()
        await self._attempts.idle.wait()
        await self._commits.settled()

    async def _announced(self) -> None:
        await asyncio.shield(self._workforce.current.known)

    async def _looked(self) -> None:
        for event in (self._reachable, self._publisher.looked, self._spool.looked):
            await event.wait()

    @contextlib.asynccontextmanager
    async def _published(self) -> AsyncIterator[None]:
        async with running(self._tasks, self._publishing(), "publisher"):
            yield
            await self._publisher.drain()

    async def _publishing(self) -> None:
        # Its process starts after the workers' imports, unless those take long: first runs do not wait for it.
        await asyncio.wait({self._workforce.current.known}, timeout=_IMPORT_SECONDS)
        await self._publisher.run()

    async def _control(self) -> None:
        """Answer on the control socket, until cancelled."""
        # Its HTTP server takes longer to import than all else: after the first look at the spool, unless that takes
        # long, and in a thread, so that first runs do not wait for it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_IMPORT_SECONDS):
                await self._spool.looked.wait()
        control = (await asyncio.to_thread(_import_control))(self._service, listener=self._listener)
        await control.start()
        self._reachable.set()
        try:
            await asyncio.Event().wait()
        finally:
            self._bell.ring_all()
            await control.close()

    def _fail(self, error: BaseException) -> None:
        """End the daemon loudly: recovery at the next start decides."""
        if not self._failing:
            self._failing = True
            begin(self._tasks, _raise(error), "failure")

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._shutdown.step)
        loop.add_signal_handler(signal.SIGHUP, self._reloading.ask)

    def _report(self) -> Status:
        return report(
            settings=self._settings,
            level=self._shutdown.level,
            ready=self._ready,
            uptime_seconds=time.monotonic() - self._started,
            counts=self._ledger.counts,
            workforce=self._workforce,
            attempts=self._attempts,
            containment=self._containment.kind,
            accounting=self._containment.accounting,
            publishing=self._publisher.pid,
            problems=self._problems(),
        )

    def _summary(self) -> str:
        state = daemon_state(self._shutdown.level, ready=self._ready)
        return summary(state, self._ledger.counts, len(self._workforce.workers), self._problems())

    def _problems(self) -> list[str]:
        problems = (part.problem for part in (self._commits, self._spool, self._publisher))
        refused = [f"reload refused: {self._reloading.problem}"] if self._reloading.problem else []
        return [*filter(None, problems), *refused, *self._workforce.problems]


def _import_control() -> "type[Control]":
    from craft_easy_jobd.control import Control

    return Control


def _spare_collector() -> None:
    """Have the garbage collector pass over what is there by now, and come less often.

    Runs leave hardly any cycles, and are alive whenever it looks: a tenth of the supervisor's time would go into
    finding nothing.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _raise(error: BaseException) -> None:
    raise error
