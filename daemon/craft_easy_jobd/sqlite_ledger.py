"""The embedded ledger: the Ledger protocol on one SQLite file."""

import sqlite3
import time
from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from craft_easy_jobd import ledger_reads, ledger_writes
from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.group_commit import GroupCommit
from craft_easy_jobd.ledger import (
    Again,
    Cancelled,
    Ended,
    Lease,
    LogChunk,
    Result,
    Run,
    RunEnd,
    RunSpec,
    Slice,
    Started,
    Submitted,
)
from craft_easy_jobd.ledger_moves import waiting_turns
from craft_easy_jobd.ledger_reader import Reader
from craft_easy_jobd.ledger_schema import open_writer
from craft_easy_jobd.states import RunState
from craft_easy_jobd.turns import Turns
from craft_easy_jobs.definition import Isolation

T = TypeVar("T")

# What is not marked in time is published again after a crash, which does no harm.
MARK_SECONDS = 0.25
# A batch of reaping is one transaction: small enough that calls which come meanwhile need not wait for a million.
REAP_BATCH = 1000


class SqliteLedger:
    """A `Ledger` in the file `path`; what its methods mean is written there.

    `clock` gives Unix seconds; it is read when a method is called. One thread writes, one reads for clients; the
    publishing process reads for itself, so that no search holds up a result. Neither thread ends before `close()`.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.counts: Mapping[RunState, int] = dict.fromkeys(RunState, 0)
        self.next_due: float | None = None
        self._clock = clock
        self._path = path
        self._turns = Turns()
        self._writer = GroupCommit(str(path), self._connect, ledger_writes.summarise, self._committed)
        self._reader = Reader(path)

    @property
    def broken(self) -> LedgerError | None:
        """Why nothing can be written any more: after a failed fsync only a restart knows what the disk holds."""
        return self._writer.broken

    @property
    def stalled_seconds(self) -> float:
        """For how long nothing has been committed while something waits for it."""
        return self._writer.stalled_seconds

    @property
    def commits(self) -> int:
        """Transactions since open."""
        return self._writer.commits

    async def open(self) -> None:
        await self._writer.open()

    async def close(self) -> None:
        await self._reader.close()
        # Last: the connection that can write takes the write-ahead log into the file when it is the last to go.
        await self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        db = open_writer(self._path)
        self._turns = Turns(waiting_turns(db))
        return db

    def _change(self, write: Callable[..., T], **facts: Any) -> "Future[T]":
        """Call a function of ledger_writes that takes the time and the turns."""
        return self._writer.call(partial(write, now=self._clock(), turns=self._turns, **facts))

    def _committed(self, summary: tuple[dict[RunState, int], float | None]) -> None:
        self.counts, self.next_due = summary

    # -- producers and readers
    def submit(self, specs: Sequence[RunSpec], *, came_in: Slice | None = None) -> Future[list[Submitted]]:
        return self._change(ledger_writes.submit, specs=specs, came_in=came_in)

    def start(
        self, specs: Sequence[RunSpec], room: Mapping[Isolation, int], *, came_in: Slice | None = None
    ) -> Future[Started]:
        return self._change(ledger_writes.start, specs=specs, room=room, came_in=came_in)

    def cancel(self, run_id: str) -> Future[Cancelled | None]:
        return self._change(ledger_writes.cancel, run_id=run_id)

    def rerun(self, run_id: str) -> Future[RunState | None]:
        return self._change(ledger_writes.rerun, run_id=run_id)

    async def get(self, run_id: str) -> Run | None:
        return await self._reader.call(partial(ledger_reads.get, run_id=run_id))

    async def find(
        self,
        *,
        states: Sequence[RunState] = (),
        job: str | None = None,
        tenant: str | None = None,
        parent: str | None = None,
        after: int | None = None,
        limit: int = 100,
    ) -> list[Run]:
        return await self._reader.call(
            partial(ledger_reads.find, states=states, job=job, tenant=tenant, parent=parent, after=after, limit=limit)
        )

    async def read_log(self, run_id: str, *, after: int = 0, limit: int = 1000) -> tuple[bytes, int]:
        return await self._reader.call(partial(ledger_reads.read_log, run_id=run_id, after=after, limit=limit))

    # -- the host that executes
    def claim(self, n: int, *, isolation: Isolation = "shared") -> Future[list[Lease]]:
        return self._change(ledger_writes.claim, n=n, isolation=isolation)

    def log(self, chunks: Sequence[LogChunk]) -> Future[None]:
        return self._writer.call(partial(ledger_writes.log, chunks=chunks))

    def finish(self, results: Sequence[tuple[Lease, Result]], *, then: Sequence[RunSpec] = ()) -> Future[list[bool]]:
        return self._change(ledger_writes.finish, results=results, then=then)

    def retry(self, again: Sequence[Again]) -> Future[list[bool]]:
        return self._writer.call(partial(ledger_writes.retry, now=self._clock(), again=again))

    async def reap(self, *, budget: int) -> int:
        reaped = 0
        while batch := await self._change(ledger_writes.reap, budget=budget, limit=REAP_BATCH):
            reaped += batch
        return reaped

    # -- the spool
    async def slices(self) -> list[Slice]:
        return await self._reader.call(ledger_reads.slices)

    def let_go(self, *, named: Sequence[int], gone: Sequence[int]) -> Future[None]:
        return self._writer.call(partial(ledger_writes.let_go, named=named, gone=gone))

    # -- publishing
    async def unpublished(self, *, after: int = 0, limit: int) -> list[Ended]:
        return await self._reader.call(partial(ledger_reads.unpublished, after=after, limit=limit))

    def mark_published(self, ends: Sequence[RunEnd]) -> Future[None]:
        return self._writer.call(partial(ledger_writes.mark_published, ends=ends), within=MARK_SECONDS)
