"""What clients may ask of the daemon: the supervisor's side of the control API."""

import asyncio
from collections.abc import Callable, Sequence

from craft_easy_jobd.admission import admit
from craft_easy_jobd.background import unless
from craft_easy_jobd.bell import Bell
from craft_easy_jobd.dispatcher import Dispatcher
from craft_easy_jobd.documents import Reloaded
from craft_easy_jobd.identity import Rights
from craft_easy_jobd.ledger import Ledger, RunSpec, Submitted
from craft_easy_jobd.publisher import Publisher
from craft_easy_jobd.reloading import Reloading
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.shutdown import Shutdown
from craft_easy_jobd.states import RunState
from craft_easy_jobd.status import Status
from craft_easy_jobd.workforce import Workforce
from craft_easy_jobs.chaining import Chain
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.errors import ApiError, RequestError
from craft_easy_jobs.model import Request
from craft_easy_jobs.run_ids import new_run_id
from craft_easy_jobs.tenants import TenantDirectory


class Service:
    """The daemon's Operations; `status` is the supervisor's report."""

    def __init__(
        self,
        ledger: Ledger,
        bell: Bell,
        dispatcher: Dispatcher,
        workforce: Workforce,
        publisher: Publisher,
        shutdown: Shutdown,
        reloading: Reloading,
        *,
        status: Callable[[], Status],
    ) -> None:
        self.ledger = ledger
        self.bell = bell
        self.status = status
        self.drain = shutdown.drain
        self.stop = shutdown.step
        self._reloading = reloading
        self._stop_asked = shutdown.asked
        self._dispatcher = dispatcher
        self._workforce = workforce
        self._publisher = publisher

    @property
    def rights(self) -> Rights:
        return self._workforce.current.rights

    @property
    def settings(self) -> Settings:
        return self._workforce.settings

    def jobs(self) -> Sequence[JobOptions]:
        return sorted(self._workforce.catalogue.jobs.values(), key=lambda job: job.name)

    def chains(self) -> Sequence[Chain]:
        return sorted(self._workforce.catalogue.chains.values(), key=lambda chain: chain.name)

    def tenants(self) -> TenantDirectory | None:
        return self._workforce.tenancy.directory

    async def submit(self, requests: Sequence[Request], requested_by: str | None) -> list[Submitted | RequestError]:
        await self._jobs_known()
        specs = [self._admit(request, requested_by) for request in requests]
        good = [spec for spec in specs if isinstance(spec, RunSpec)]
        submitted = iter(await self._dispatcher.submit(good) if good else ())
        return [next(submitted) if isinstance(spec, RunSpec) else spec for spec in specs]

    async def cancel(self, run_id: str, *, force: bool = False) -> RunState | None:
        cancelled = await self.ledger.cancel(run_id)
        if cancelled is None:
            return None
        for stopping in cancelled.stopping:
            self._dispatcher.cancel(stopping, force=force)
        self._publisher.wake()
        self.bell.ring([run_id, *cancelled.stopping])
        return cancelled.state

    async def retry(self, run_id: str) -> RunState | None:
        rerun = self.ledger.rerun(run_id)
        self._dispatcher.kick(submitted=True)
        state = await rerun
        self.bell.ring([run_id])
        return state

    async def _jobs_known(self) -> None:
        """Who asks while the daemon starts must not hear that there is no such job."""
        known = self._workforce.current.known
        if not known.done():
            await unless(self._stop_asked, asyncio.wait({known}))
        if not known.done() or known.exception() is not None:
            raise ApiError(503, "the daemon ends before it knows its jobs; ask again when it is back")

    async def reload(self) -> Reloaded:
        current = await self._reloading.reload()
        return Reloaded(current.number, current.catalogue.code_version, len(current.catalogue.jobs))

    def _admit(self, request: Request, requested_by: str | None) -> RunSpec | RequestError:
        run_id = request.run_id or new_run_id()
        try:
            return admit(request, self._workforce.catalogue, run_id=run_id, requested_by=requested_by)
        except RequestError as error:
            return error
