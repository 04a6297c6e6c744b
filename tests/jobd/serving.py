"""A control socket to test against: the real server on a real ledger, in a thread; the test plays the workers."""

import asyncio
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import uvloop

from craft_easy_jobd.admission import Catalogue, admit
from craft_easy_jobd.bell import Bell
from craft_easy_jobd.control import Control
from craft_easy_jobd.documents import Reloaded
from craft_easy_jobd.errors import ReloadError
from craft_easy_jobd.identity import Rights
from craft_easy_jobd.ledger import Lease, LogChunk, Result, RunSpec, Submitted
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.states import RunState
from craft_easy_jobd.status import RunningStatus, Status, WorkerStatus
from craft_easy_jobs import __version__, wire
from craft_easy_jobs.chaining import Chain, ChainStep
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.errors import RequestError
from craft_easy_jobs.model import Request, timestamp
from craft_easy_jobs.run_ids import new_run_id
from craft_easy_jobs.tenants import Tenant, TenantDirectory

T = TypeVar("T")

JOBS = [
    JobOptions(name="export", description="Writes a file"),
    JobOptions(name="settlement", retries=2, params_schema={"period": {"type": "string"}}),
    JobOptions(name="statement", per_tenant=True),
]
CHAINS = [
    Chain("close", "Closes a month", (ChainStep("settlement"), ChainStep("export", depends_on=["settlement"]))),
    Chain(
        "send", "", (ChainStep("statement", on_failure="retry", retries=1, retry_delay_seconds=0),), source="send.py:1"
    ),
]
TENANTS = TenantDirectory(
    [Tenant("acme", name="Acme Ltd"), Tenant("acme-north", parent="acme"), Tenant("gone", active=False), Tenant("t1")]
)
HEARTBEAT_SECONDS = 0.05


class Desk:
    """The supervisor's operations without its workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rights = Rights(settings)
        self.bell = Bell()
        self.ledger = SqliteLedger(settings.state_dir / "ledger.db")
        self.directory: TenantDirectory | None = None
        self.stops = 0
        self.refusal: str | None = None
        self.forced: list[str] = []
        self.problems: list[str] = []
        self.running: list[RunningStatus] = []

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(wire.Catalogue(jobs=JOBS, chains={chain.name: chain for chain in CHAINS}), self.directory)

    def status(self) -> Status:
        return Status(
            version=__version__,
            pid=os.getpid(),
            state="draining" if self.stops else "running",
            ladder=self.stops,
            uptime_seconds=3725.0,
            root=self.settings.root,
            jobs=len(JOBS),
            generation=2,
            code_version="0123456789ab",
            containment="process tree",
            accounting="process tree",
            accounting_note="no cgroup2 was handed over",
            publishing=4712,
            runs=dict(self.ledger.counts),
            workers=[
                WorkerStatus(
                    name="w1",
                    pid=4711,
                    isolation="shared",
                    generation=2,
                    code_version="0123456789ab",
                    slots=250,
                    busy=1,
                    cpu_seconds=1.5,
                    rss_bytes=48 * 1024 * 1024,
                    loop_lag_seconds=0.0012,
                    state="ready",
                )
            ],
            running=self.running,
            problems=self.problems,
        )

    def jobs(self) -> Sequence[JobOptions]:
        return JOBS

    async def submit(self, requests: Sequence[Request], requested_by: str | None) -> list[Submitted | RequestError]:
        catalogue = self.catalogue
        answers: list[RunSpec | RequestError] = []
        for request in requests:
            try:
                run_id = request.run_id or new_run_id()
                answers.append(admit(request, catalogue, run_id=run_id, requested_by=requested_by))
            except RequestError as error:
                answers.append(error)
        submitted = iter(await self.ledger.submit([each for each in answers if isinstance(each, RunSpec)]))
        return [next(submitted) if isinstance(each, RunSpec) else each for each in answers]

    async def cancel(self, run_id: str, *, force: bool = False) -> RunState | None:
        if force:
            self.forced.append(run_id)
        cancelled = await self.ledger.cancel(run_id)
        self.bell.ring([run_id])
        return cancelled and cancelled.state

    async def retry(self, run_id: str) -> RunState | None:
        return await self.ledger.rerun(run_id)

    def tenants(self) -> TenantDirectory | None:
        return self.directory

    def chains(self) -> Sequence[Chain]:
        return CHAINS

    async def reload(self) -> Reloaded:
        if self.refusal:
            raise ReloadError(self.refusal)
        return Reloaded(2, "0123456789ab", len(JOBS))

    def drain(self) -> None:
        self.stops = max(self.stops, 1)

    def stop(self) -> None:
        self.stops += 1


class Answer(NamedTuple):
    """What came back: `document` is the JSON value, None for a body that is not JSON."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Served:
    """A daemon's root that is being served."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.socket = root / "control.sock"
        self.desk = Desk(Settings(root=str(root), **settings))
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self.control: Control
        self._thread = threading.Thread(target=self._serve)

    # -- life
    def start(self) -> None:
        (self.root / "state").mkdir(parents=True, exist_ok=True)
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"

    def close(self) -> None:
        """Close the control socket, then the rest."""
        self.close_control()
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server did not end"

    def close_control(self) -> None:
        self.run(self.control.close)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        await self.desk.ledger.open()
        self.control = Control(self.desk, heartbeat_seconds=HEARTBEAT_SECONDS)
        await self.control.start()
        self._ready.set()
        await self._closed.wait()
        await self.desk.ledger.close()

    def run(self, work: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        """Await something on the server's loop."""

        async def call() -> T:
            return await work(*args, **options)

        coroutine: Coroutine[Any, Any, T] = call()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def tasks(self) -> set[str]:
        """What the server's loop carries out, by name of the coroutine, but for the two of this class."""

        async def names() -> set[str]:
            mine = asyncio.current_task()
            tasks = [task for task in asyncio.all_tasks() if task is not mine]
            return {getattr(task.get_coro(), "__qualname__", "?") for task in tasks} - {"Served._main"}

        return self.run(names)

    # -- what workers would do
    def begin(self, job: str = "export", **request: Any) -> Lease:
        """Submit a run and claim it."""
        [lease] = self.begin_family(1, job=job, **request)
        return lease

    def begin_family(self, children: int, **request: Any) -> list[Lease]:
        """Submit a run that has so many children at first, and claim them."""
        [submitted] = self.run(self.desk.submit, [Request(**request)], "tester")
        assert isinstance(submitted, Submitted), submitted
        leases = self.run(self.desk.ledger.claim, children)
        assert len(leases) == children
        return leases

    def claim(self) -> Lease:
        [lease] = self.run(self.desk.ledger.claim, 1)
        return lease

    def say(self, lease: Lease, *messages: str, level: str = "info", percentage: int | None = None) -> None:
        """Log entries of an attempt."""
        entries = [
            {"timestamp": timestamp(time.time()), "level": level, "message": message, "percentage": percentage}
            for message in messages
        ]
        data = msgspec.json.encode(entries)[1:-1]
        warnings = len(entries) if level in ("warning", "error") else 0
        self.run(self.desk.ledger.log, [LogChunk(lease.run_id, lease.token, data, len(entries), warnings)])
        self.ring(lease.run_id)

    def end(self, lease: Lease, result: Any = None, *, error: str | None = None, reason: str | None = None) -> None:
        """Finish a run: completed, or failed when there is an error."""
        state = RunState.FAILED if error else RunState.COMPLETED
        now = time.time()
        ended = Result(state, reason, msgspec.json.encode(result), error, now, now, lease.attempt)
        assert self.run(self.desk.ledger.finish, [(lease, ended)]) == [True]
        self.ring(lease.run_id)
        if lease.spec.parent_run_id:
            self.ring(lease.spec.parent_run_id)

    def ring(self, run_id: str) -> None:
        """Tell who listens to a run, as the supervisor does after each commit."""
        self._loop.call_soon_threadsafe(self.desk.bell.ring, [run_id])

    # -- calls
    def connection(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = self.connect()
        return connection

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(30)
        sock.connect(str(self.socket))
        return sock

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One call; bytes go as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connection()
        try:
            connection.request(method, path, data, {"Connection": "close", **(headers or {})})
            with connection.getresponse() as response:
                return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The document at a path that must be there."""
        answer = self.call("GET", path)
        assert answer.status == 200, answer
        return answer.document


@contextmanager
def serving(root: Path, **settings: Any) -> Iterator[Served]:
    """Serve a root until the block ends."""
    served = Served(root, **settings)
    served.start()
    try:
        yield served
    finally:
        served.close()
