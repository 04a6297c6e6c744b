"""The writing thread: operations that come while a commit is under way share the next one."""

import asyncio
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from craft_easy_jobd.errors import LedgerError

T = TypeVar("T")
S = TypeVar("S")

# The operation's own doing; the others of its batch are fine. Python's own complaints carry no code.
_FAULTS = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_RANGE,
}
# The transaction was undone and the file is as before: the next one may succeed. After any other error, a failed
# fsync above all, nobody knows what the disk holds.
_PASSING = {
    sqlite3.SQLITE_FULL: "free some space on its file system",
    sqlite3.SQLITE_BUSY: "another program holds it; end that one",
    sqlite3.SQLITE_READONLY: "make it writable",
}


class Operation(NamedTuple):
    apply: Callable[[sqlite3.Connection], Any]
    future: "asyncio.Future[Any]"


class Answer(NamedTuple):
    value: Any = None
    error: BaseException | None = None


class GroupCommit(Generic[S]):
    """Owns the one connection that writes, in one thread.

    Args:
        name: the ledger's file, for errors.
        connect: opens the connection; called in the thread.
        summarise: reads what is to be known after each commit; called before it, in its transaction.
        committed: takes the summary on the loop, before the callers of the batch go on.

    Attributes:
        broken: why nothing can be written any more.
        commits: transactions so far.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], sqlite3.Connection],
        summarise: Callable[[sqlite3.Connection], S],
        committed: Callable[[S], None],
    ) -> None:
        self.broken: LedgerError | None = None
        self.commits = 0
        self._name = name
        self._connect = connect
        self._summarise = summarise
        self._committed = committed
        self._pending: list[Operation] = []
        self._batches: SimpleQueue[list[Operation] | None] = SimpleQueue()
        self._flushing = False
        self._closing = False
        self._unanswered = 0
        self._moved_at = 0.0
        self._ended = asyncio.Event()
        self._thread: threading.Thread | None = None

    async def open(self) -> None:
        """Start the thread and connect.

        Raises:
            LedgerError: as `connect` raises it.
        """
        self._loop = asyncio.get_running_loop()
        opened = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, args=(opened,), name="ledger-writer")
        self._thread.start()
        self._committed(await opened)

    def call(self, apply: Callable[[sqlite3.Connection], T], *, within: float = 0.0) -> "asyncio.Future[T]":
        """Apply in the next transaction; the future is done when that is durable.

        `within`: seconds that it may wait for others whose transaction it can share.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if error := self._refusal():
            future.set_exception(error)
            return future
        if not self._flushing and not within:
            self._flushing = True
            self._loop.call_soon(self._flush)
        elif not self._pending:
            self._loop.call_later(within, self._flush)
        self._pending.append(Operation(apply, future))
        return future

    async def close(self) -> None:
        """Commit what was called before, then end the thread."""
        if self._thread is None:
            return
        if not self._closing:
            self._closing = True
            self._flush()
            self._batches.put(None)
        await self._ended.wait()
        self._thread.join()

    @property
    def stalled_seconds(self) -> float:
        """For how long the thread has answered nothing while it has something to do; inf when it never will again."""
        if self.broken:
            return math.inf
        return time.monotonic() - self._moved_at if self._unanswered else 0.0

    def _refusal(self) -> LedgerError | None:
        return LedgerError(f"{self._name}: the ledger is closed") if self._closing else self.broken

    def _flush(self) -> None:
        self._flushing = False
        if self._pending:
            if not self._unanswered:
                self._moved_at = time.monotonic()
            self._unanswered += len(self._pending)
            self._batches.put(self._pending)
            self._pending = []

    # -- in the thread
    def _main(self, opened: "asyncio.Future[S]") -> None:
        try:
            with closing(self._connect()) as db:
                if self._report_open(db, opened):
                    self._serve(db)
        except LedgerError as error:
            self._tell(_settle, opened, Answer(error=error))
        finally:
            self._tell(self._ended.set)

    def _report_open(self, db: sqlite3.Connection, opened: "asyncio.Future[S]") -> bool:
        try:
            answer = Answer(self._summarise(db))
        except sqlite3.Error as error:
            answer = Answer(error=self._failure(db, error))
        self._tell(_settle, opened, answer)
        return answer.error is None

    def _serve(self, db: sqlite3.Connection) -> None:
        open_ended = True
        while open_ended:
            batch, open_ended = self._next_batch()
            if batch:
                self._tell(self._settle_all, batch, *self._carry_out(db, batch))

    def _next_batch(self) -> tuple[list[Operation], bool]:
        """All that has queued up, and whether more may come."""
        batch: list[Operation] = []
        more = self._batches.get()
        while more is not None:
            batch += more
            try:
                more = self._batches.get_nowait()
            except Empty:
                return batch, True
        return batch, False

    def _carry_out(self, db: sqlite3.Connection, batch: Sequence[Operation]) -> tuple[list[Answer], S | None]:
        if self.broken:
            return [Answer(error=self.broken)] * len(batch), None
        try:
            try:
                return self._together(db, batch, lambda _, operation: Answer(operation.apply(db)))
            except Exception as error:
                if not _is_fault(error):
                    raise
                # A savepoint for each operation would cost every batch; only one with a fault in it pays for them.
                return self._together(db, batch, _alone)
        except sqlite3.Error as error:
            return [Answer(error=self._failure(db, error))] * len(batch), None

    def _together(
        self,
        db: sqlite3.Connection,
        batch: Sequence[Operation],
        apply: Callable[[sqlite3.Connection, Operation], Answer],
    ) -> tuple[list[Answer], S]:
        with _transaction(db):
            answers = [apply(db, operation) for operation in batch]
            summary = self._summarise(db)
        self.commits += 1
        return answers, summary

    def _failure(self, db: sqlite3.Connection, error: sqlite3.Error) -> LedgerError:
        """What the callers of the batch are told; decides whether the ledger can still be written."""
        advice = _PASSING.get(_code(error))
        if advice and not db.in_transaction:
            return LedgerError(f"{self._name}: cannot write the ledger: {error}; {advice}")
        self.broken = LedgerError(
            f"{self._name}: cannot write the ledger: {error} ({_code_name(error)}); "
            "check the disk and start the daemon again: what was acknowledged is in the file"
        )
        return self.broken

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        self._loop.call_soon_threadsafe(callback, *args)

    # -- on the loop
    def _settle_all(self, batch: Sequence[Operation], answers: Sequence[Answer], summary: S | None) -> None:
        self._unanswered -= len(batch)
        self._moved_at = time.monotonic()
        if summary is not None:
            self._committed(summary)
        for operation, answer in zip(batch, answers, strict=True):
            _settle(operation.future, answer)


def _settle(future: "asyncio.Future[Any]", answer: Answer) -> None:
    if future.done():  # its caller was cancelled
        return
    if answer.error is None:
        future.set_result(answer.value)
    else:
        future.set_exception(answer.error)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # Some errors of SQLite have ended the transaction already.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _alone(db: sqlite3.Connection, operation: Operation) -> Answer:
    """Apply so that a fault undoes this operation only."""
    db.execute("SAVEPOINT operation")
    try:
        answer = Answer(operation.apply(db))
    except Exception as error:
        if not _is_fault(error):
            raise
        db.execute("ROLLBACK TO operation")
        answer = Answer(error=error)
    db.execute("RELEASE operation")
    return answer


def _is_fault(error: Exception) -> bool:
    return not isinstance(error, sqlite3.Error) or _code(error) in _FAULTS


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _code_name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", type(error).__name__)
