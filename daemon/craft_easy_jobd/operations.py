"""What the control API may ask of the supervisor."""

from collections.abc import Awaitable, Sequence
from typing import Protocol

from craft_easy_jobd.bell import Bell
from craft_easy_jobd.documents import Reloaded
from craft_easy_jobd.identity import Rights
from craft_easy_jobd.ledger import Ledger, Submitted
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.states import RunState
from craft_easy_jobd.status import Status
from craft_easy_jobs.chaining import Chain
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.errors import RequestError
from craft_easy_jobs.model import Request
from craft_easy_jobs.tenants import TenantDirectory


class Operations(Protocol):
    """The supervisor, as its clients see it; all calls are made on its loop."""

    bell: Bell

    @property
    def rights(self) -> Rights:
        """Those that the settings in force give."""

    @property
    def settings(self) -> Settings:
        """Those in force now."""

    @property
    def ledger(self) -> Ledger: ...

    def status(self) -> Status: ...

    def jobs(self) -> Sequence[JobOptions]:
        """The catalogue, sorted by name."""

    def submit(
        self, requests: Sequence[Request], requested_by: str | None
    ) -> Awaitable[list[Submitted | RequestError]]:
        """Admit requests as one batch; a refusal stands at its request's place. Durable when it returns."""

    async def cancel(self, run_id: str, *, force: bool = False) -> RunState | None:
        """Ask a run to stop; `force` goes down the kill ladder. Returns its state after it, None: no such run."""

    async def retry(self, run_id: str) -> RunState | None:
        """Put a failed run back to the queue; of a run with children those that failed. None: no such run."""

    def tenants(self) -> TenantDirectory | None:
        """The tenant directory, None when none is configured."""

    def chains(self) -> Sequence[Chain]:
        """The chains that the workers announced, sorted by name."""

    async def reload(self) -> Reloaded:
        """Read settings, tenants and job modules anew; raises ReloadError when something is wrong with them."""

    def drain(self) -> None:
        """Go down to the first rung of the stop ladder, and no further."""

    def stop(self) -> None:
        """Go one rung down the stop ladder, as SIGTERM does."""
