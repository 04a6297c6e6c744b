"""Reload: settings, tenants and job modules are read anew, and taken over as a whole or not at all."""

import asyncio
import logging
from collections.abc import Callable

from craft_easy_jobd.background import unless
from craft_easy_jobd.errors import ReloadError
from craft_easy_jobd.events import Event
from craft_easy_jobd.generation import Generation
from craft_easy_jobd.identity import Rights
from craft_easy_jobd.logs import set_level
from craft_easy_jobd.manager import Manager
from craft_easy_jobd.settings import DOORS, FIXED, Settings, changes
from craft_easy_jobd.workforce import Workforce
from craft_easy_jobs.errors import CraftEasyJobsError

logger = logging.getLogger("craft_easy_jobd")

_STOPPING = "the daemon is stopping"


class Reloading:
    """Makes one reload at a time. Those who ask while one is under way share the next one.

    Args:
        load: reads the settings from where those of the start came from; raises SettingsError.
        stop: set when the daemon stops, which ends a reload.

    Attributes:
        problem: why the last one was refused, None when it was not.
    """

    def __init__(
        self,
        load: Callable[[], Settings],
        workforce: Workforce,
        manager: Manager,
        stop: asyncio.Event,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.problem: str | None = None
        self._load = load
        self._workforce = workforce
        self._manager = manager
        self._stop = stop
        self._tasks = tasks
        self._serving = asyncio.Event()
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[str | None] | None = None

    def begin(self) -> None:
        """The daemon serves: a reload that was asked for before is made now."""
        self._serving.set()

    def ask(self) -> None:
        """SIGHUP: reload; log, status and service manager are told what comes of it."""
        if self._stop.is_set():
            logger.warning("no reload: %s", _STOPPING)
        else:
            self._join()

    async def reload(self) -> Generation:
        """Take over the files as they are now, or later.

        Raises:
            ReloadError: says why not; what was in force still is.
        """
        problem = _STOPPING if self._stop.is_set() else await asyncio.shield(self._join())
        if problem is not None:
            raise ReloadError(problem)
        return self._workforce.current

    def _join(self) -> asyncio.Task[str | None]:
        if self._next is None:
            self._next = self._tasks.create_task(self._take_turn(), name="reload")
        return self._next

    async def _take_turn(self) -> str | None:
        await unless(self._stop, self._serving.wait())
        async with self._turn:
            # Files are read after this: who asks from here on may have changed them since.
            self._next = None
            before = self._workforce.current
            self._manager.reloading()
            try:
                await unless(self._stop, self._renew())
                self.problem = _STOPPING if self._workforce.current is before else None
            except CraftEasyJobsError as error:
                self.problem = str(error)
            self._tell()
            return self.problem

    def _read(self) -> tuple[Settings, Rights]:
        """In a thread: the files, and who knows the users of the system, may be far away."""
        settings = self._load()
        return settings, Rights(settings)

    async def _renew(self) -> None:
        settings, rights = await asyncio.to_thread(self._read)
        current = self._workforce.current
        doors = DOORS if rights.doors != current.rights.doors else ()
        if fixed := changes(current.settings, settings, (*FIXED, *doors)):
            raise ReloadError(f"needs a restart: {', '.join(fixed)}")
        candidate = self._workforce.prepare(settings, rights)
        try:
            async with asyncio.timeout(settings.reload_timeout):
                await asyncio.shield(candidate.known)
            self._workforce.adopt(candidate)
        except TimeoutError:
            raise ReloadError(
                f"workers with the new code are not ready within {settings.reload_timeout:g} s (reload_timeout); "
                "does a job module hang while it is imported?"
            ) from None
        finally:
            if self._workforce.current is not candidate:
                candidate.leave()

    def _tell(self) -> None:
        current = self._workforce.current
        set_level(current.settings.log_level)
        if self.problem is None:
            facts = {"generation": current.number, "code_version": current.catalogue.code_version}
            logger.info("reloaded", extra={"event": Event.RELOADED, **facts, "jobs": len(current.catalogue.jobs)})
        else:
            facts = {"event": Event.RELOAD_REFUSED, "problem": self.problem}
            logger.error("reload refused, the old settings and jobs stay in force", extra=facts)
        # After a refusal, too, the daemon is ready.
        self._manager.ready()
