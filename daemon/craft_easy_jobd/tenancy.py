"""The tenant directory that the settings name, kept fresh: read from a file here, or asked of a worker."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from craft_easy_jobd.errors import SettingsError
from craft_easy_jobd.settings import Settings
from craft_easy_jobs.errors import TenantError
from craft_easy_jobs.tenants import Tenant, TenantDirectory, load_tenants

logger = logging.getLogger("craft_easy_jobd.tenants")


class Tenancy:
    """Holds the directory; `directory` is None when none is configured.

    A directory that turns bad is refused and told in `problem`; the last good one stays in force.

    Args:
        ask: asks some worker to call the settings' callable; its answer comes to `told` or `refused`.
    """

    def __init__(self, settings: Settings, *, ask: Callable[[], None]) -> None:
        self.directory: TenantDirectory | None = None
        self.problem: str | None = None
        self._place = settings.tenants
        self._max_age = settings.tenants_max_age
        self._ask = ask
        self._due = 0.0

    @property
    def callable(self) -> str | None:
        """`module:name` for workers to call; None when the directory is a file or there is none."""
        return self._place if self._place and ":" in self._place else None

    async def load(self) -> None:
        """Read the file for the first time.

        Raises:
            SettingsError: it is no tenant directory.
        """
        if self._place and not self.callable:
            try:
                self.directory = await asyncio.to_thread(load_tenants, self._place)
            except TenantError as error:
                raise SettingsError("tenants", "", str(error)) from None
        self._due = time.monotonic() + self._max_age

    async def refresh(self) -> None:
        """Look again when it is older than the settings allow."""
        if not self._place or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._max_age
        if self.callable:
            self._ask()
            return
        try:
            self.directory = await asyncio.to_thread(load_tenants, self._place)
            self.problem = None
        except TenantError as error:
            self.refused(str(error))

    def told(self, tenants: Sequence[Tenant]) -> None:
        """A worker called the callable."""
        self.directory = TenantDirectory(tenants)
        self.problem = None

    def refused(self, problem: str) -> None:
        """What was found is no directory."""
        self.problem = problem
        logger.error("tenant directory not renewed", extra={"problem": problem})
