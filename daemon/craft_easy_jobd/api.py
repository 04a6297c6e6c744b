"""The calls of the control API: from an HTTP request to the supervisor's operations and back."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from craft_easy_jobd.documents import (
    MAX_PAGE,
    Accepted,
    CancelBody,
    ChainsPage,
    JobsPage,
    LogsQuery,
    Problem,
    Reloaded,
    RunDocument,
    RunQuery,
    RunsPage,
    RunsQuery,
    Stopping,
    TenantsPage,
    chains_page,
    problem,
    read_body,
    read_query,
    run_document,
    tenants_page,
)
from craft_easy_jobd.errors import ReloadError
from craft_easy_jobd.ledger import Ended, Run, Submitted
from craft_easy_jobd.openapi import JSON, LINES, PROBLEM, Route, openapi_document
from craft_easy_jobd.operations import Operations
from craft_easy_jobd.results import job_result
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.states import FINAL, RunState
from craft_easy_jobd.status import Status
from craft_easy_jobd.web import web
from craft_easy_jobs.errors import ApiError, RequestError
from craft_easy_jobs.model import JobResult, LogEntry, Request, decode_request, encode_result

logger = logging.getLogger("craft_easy_jobd.control")

MAX_BATCH = 1000
# An array of requests may be this many times as large as one request.
BATCH_SIZE_FACTOR = 64
HEARTBEAT_SECONDS = 5.0

REQUESTED_BY = web.RequestKey("requested_by", str)

# A run that has failed is in one of these after a retry; so is one that was retried before.
_GOES_ON = (RunState.QUEUED, RunState.RUNNING)
_SUBMITTED = (Accepted, [(Accepted, Problem)])
_JSON_SPACE = b" \t\r\n"
_items = msgspec.json.Decoder(list[msgspec.Raw])


class Api:
    """Handlers by route. `closing` ends what waits, once the bell is rung."""

    def __init__(self, operations: Operations, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._operations = operations
        self._heartbeat_seconds = heartbeat_seconds
        self.closing = False
        self.routes = (
            Route("GET", "/v1/status", self.status, Status),
            Route("GET", "/v1/jobs", self.jobs, JobsPage),
            Route("GET", "/v1/chains", self.chains, ChainsPage),
            Route("GET", "/v1/tenants", self.tenants, TenantsPage),
            Route("GET", "/v1/runs", self.runs, RunsPage, query=RunsQuery),
            Route("POST", "/v1/runs", self.submit, _SUBMITTED, 202, body=(Request, [Request])),
            Route("GET", "/v1/runs/{run_id}", self.run, RunDocument, query=RunQuery),
            Route("GET", "/v1/runs/{run_id}/result", self.result, JobResult),
            Route("GET", "/v1/runs/{run_id}/logs", self.logs, LogEntry, query=LogsQuery, media=LINES),
            Route("POST", "/v1/runs/{run_id}/cancel", self.cancel, Accepted, body=CancelBody),
            Route("POST", "/v1/runs/{run_id}/retry", self.retry, Accepted),
            Route("POST", "/v1/reload", self.reload, Reloaded),
            Route("POST", "/v1/drain", self.drain, Stopping, 202),
            Route("POST", "/v1/stop", self.stop, Stopping, 202),
            Route("GET", "/openapi.json", self.openapi, dict[str, Any]),
        )

    async def status(self, request: web.Request) -> web.Response:
        """What the daemon says of itself."""
        return answer(self._operations.status())

    async def jobs(self, request: web.Request) -> web.Response:
        """The jobs that the daemon can run."""
        return answer(JobsPage(list(self._operations.jobs())))

    async def chains(self, request: web.Request) -> web.Response:
        """The chains that the daemon can run."""
        return answer(chains_page(self._operations.chains()))

    async def tenants(self, request: web.Request) -> web.Response:
        """The tenants that the daemon knows."""
        directory = self._operations.tenants()
        if directory is not None:
            return answer(tenants_page(directory))
        place = self._operations.settings.tenants
        if place is None:
            raise ApiError(404, "no tenant directory is configured; name one in the setting 'tenants'")
        raise ApiError(503, f"the tenants of {place} are not known yet; ask again, or see the daemon's log")

    async def runs(self, request: web.Request) -> web.Response:
        """Runs, newest first, page by page."""
        query = read_query(RunsQuery, request.query.items())
        found = await self._operations.ledger.find(
            states=query.state,
            job=query.job,
            tenant=query.tenant,
            parent=query.parent,
            after=query.after,
            limit=query.limit,
        )
        more = found[-1].seq if len(found) == query.limit else None
        return answer(RunsPage([run_document(run) for run in found], more))

    async def run(self, request: web.Request) -> web.Response:
        """One run; waits for its end when asked to."""
        query = read_query(RunQuery, request.query.items())
        loop = asyncio.get_running_loop()
        deadline = loop.time() + query.wait
        with self._operations.bell.listen(request.match_info["run_id"]) as event:
            run = await self._run(request)
            while run.state not in FINAL and not self.closing and await _rings(event, deadline - loop.time()):
                event.clear()
                run = await self._run(request)
        return answer(run_document(run))

    async def result(self, request: web.Request) -> web.Response:
        """The JobResult of a run that has ended, as its file has it."""
        run = await self._run(request)
        if run.state not in FINAL:
            raise ApiError(409, f"run {run.spec.run_id} is {run.state} and has no result yet; wait for it")
        logs = b",".join([entries[1:-1] async for entries, _ in self._log(run, 0)])
        return web.Response(body=encode_result(job_result(Ended(run, b"[" + logs + b"]"))), content_type=JSON)

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """The log of a run, one JSON object a line; blank lines only show that the daemon is there."""
        query = read_query(LogsQuery, request.query.items())
        run = await self._run(request)
        response = web.StreamResponse(headers={"Content-Type": LINES})
        await response.prepare(request)
        try:
            await self._send_log(response, run, query)
        except ConnectionError:
            pass  # The client has left.
        except Exception:
            logger.exception("log stream broke", extra={"run_id": run.spec.run_id})
            # The status line is out: only a connection that ends without the last chunk can say that it broke.
            if request.transport is not None:
                request.transport.close()
        return response

    async def submit(self, request: web.Request) -> web.Response:
        """Ask for a run, or for up to 1,000 with an array; durable once answered."""
        body = await read_whole(request, self._operations.settings)
        by = request[REQUESTED_BY]
        if body.lstrip(_JSON_SPACE).startswith(b"["):
            return answer(await self._submit_all(body, by), 202)
        [submitted] = await self._operations.submit([_decode(body, self._operations.settings)], by)
        accepted = _accepted(submitted)
        if isinstance(accepted, Problem):
            return refusal(accepted)
        return answer(accepted, 202, headers={"Location": f"/v1/runs/{accepted.run_id}"})

    async def cancel(self, request: web.Request) -> web.Response:
        """Ask a run to stop; answers the state it is in after that."""
        body = read_body(CancelBody, await read_whole(request, self._operations.settings))
        run_id = request.match_info["run_id"]
        state = await self._operations.cancel(run_id, force=body.force)
        if state is None:
            raise _no_such_run(run_id)
        return answer(Accepted(run_id, state))

    async def retry(self, request: web.Request) -> web.Response:
        """Run a failed run again; of a run with children only those that failed. Answers the state it is in after."""
        run_id = request.match_info["run_id"]
        state = await self._operations.retry(run_id)
        if state is None:
            raise _no_such_run(run_id)
        if state not in _GOES_ON:
            raise ApiError(409, f"run {run_id} is {state}; only a run that has failed can be run again")
        return answer(Accepted(run_id, state))

    async def reload(self, request: web.Request) -> web.Response:
        """Read settings, tenants and job modules anew; refused as a whole when something is wrong with them."""
        try:
            return answer(await self._operations.reload())
        except ReloadError as error:
            raise ApiError(409, str(error)) from None

    async def drain(self, request: web.Request) -> web.Response:
        """Go down to the first rung of the stop ladder; nothing when the daemon is on it, or below, already."""
        self._operations.drain()
        return self._stopping()

    async def stop(self, request: web.Request) -> web.Response:
        """Go one rung down the daemon's stop ladder, as SIGTERM does."""
        self._operations.stop()
        return self._stopping()

    async def openapi(self, request: web.Request) -> web.Response:
        """This document."""
        return answer(openapi_document(self.routes))

    def _stopping(self) -> web.Response:
        status = self._operations.status()
        return answer(Stopping(status.state, status.ladder), 202)

    async def _run(self, request: web.Request) -> Run:
        run_id = request.match_info["run_id"]
        run = await self._operations.ledger.get(run_id)
        if run is None:
            raise _no_such_run(run_id)
        return run

    async def _submit_all(self, body: bytes, by: str) -> list[Accepted | Problem]:
        try:
            items = _items.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(400, f"this is not JSON: {error}") from None
        if len(items) > MAX_BATCH:
            raise ApiError(413, f"an array may hold {MAX_BATCH} requests, this one has {len(items)}")
        decoded = [_decode_or_problem(item, self._operations.settings) for item in items]
        submitted = iter(await self._operations.submit([each for each in decoded if isinstance(each, Request)], by))
        return [each if isinstance(each, Problem) else _accepted(next(submitted)) for each in decoded]

    async def _send_log(self, response: web.StreamResponse, run: Run, query: LogsQuery) -> None:
        sent = query.after
        with self._operations.bell.listen(run.spec.run_id) as event:
            while True:
                event.clear()
                # The state first, the log second: all of a final run's log is there.
                now = await self._operations.ledger.get(run.spec.run_id) or run
                async for entries, end in self._log(now, sent):
                    await response.write(b"\n".join(_items.decode(entries)) + b"\n")
                    sent = end
                if not query.follow or now.state in FINAL or self.closing:
                    return
                if not await _rings(event, self._heartbeat_seconds):
                    await response.write(b"\n")

    async def _log(self, run: Run, after: int) -> AsyncIterator[tuple[bytes, int]]:
        """JSON arrays of log entries after the first `after`, each with the number of entries up to its end."""
        while after < run.log_count:
            entries, end = await self._operations.ledger.read_log(run.spec.run_id, after=after, limit=MAX_PAGE)
            if end <= after:
                return
            after = end
            yield entries, after


async def read_whole(request: web.Request, settings: Settings) -> bytes:
    """The body of the request, of the size that the settings in force allow."""
    limit = settings.max_request_bytes * BATCH_SIZE_FACTOR
    # A reload does not change what the server was made with; only then is it worth a clone, which takes 25 us.
    return await (request if limit == request.client_max_size else request.clone(client_max_size=limit)).read()


def answer(value: Any, status: int = 200, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """A good answer."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=JSON, headers=headers)


def refusal(value: Problem, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """A refusal as `application/problem+json`."""
    return web.Response(body=msgspec.json.encode(value), status=value.status, content_type=PROBLEM, headers=headers)


def _decode(data: bytes, settings: Settings) -> Request:
    limit = settings.max_request_bytes
    if len(data) > limit:
        raise ApiError(413, f"a request may have {limit} bytes, this one has {len(data)}")
    return decode_request(data)


def _decode_or_problem(item: msgspec.Raw, settings: Settings) -> Request | Problem:
    try:
        return _decode(bytes(item), settings)
    except (ApiError, RequestError) as error:
        return problem(error)


def _accepted(submitted: Submitted | RequestError) -> Accepted | Problem:
    if isinstance(submitted, RequestError):
        return problem(submitted)
    if submitted.duplicate:
        text = f"run_id: {submitted.run_id!r} was used before; that run is {submitted.state}"
        return problem(ApiError(409, text, "run_id"))
    return Accepted(submitted.run_id, submitted.state)


def _no_such_run(run_id: str) -> ApiError:
    return ApiError(404, f"no such run: {run_id}")


async def _rings(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event was set within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
