"""All that is read from the ledger, and the thread that reads: nothing here can write or hold up the writer."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.ledger import Ended, RequestFile, Run, Slice
from craft_easy_jobd.ledger_rows import SELECT_RUNS, SELECT_UNPUBLISHED, ended_run, run_of
from craft_easy_jobd.ledger_schema import LIVE, open_reader, state_is
from craft_easy_jobd.states import FINAL, RunState

T = TypeVar("T")

MAX_UNPUBLISHED_BYTES = 64 * 1024 * 1024
_WHOLE_LOG = "SELECT upto, warnings, entries FROM log WHERE seq = ? ORDER BY upto"
_files = msgspec.msgpack.Decoder(list[RequestFile])
_entries = msgspec.json.Decoder(list[msgspec.Raw])


class Reader:
    """One read-only connection in a thread of its own; opened at its first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._db: sqlite3.Connection | None = None
        self._closed = False

    async def call(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read in the thread.

        Raises:
            LedgerError: the ledger is closed or cannot be read.
        """
        if self._closed:
            raise LedgerError(f"{self._path}: the ledger is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, read)

    async def close(self) -> None:
        """Close after what was called before."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self._db = self._db or open_reader(self._path)
            return read(self._db)
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: cannot read the ledger: {error}") from error

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()


def get(db: sqlite3.Connection, run_id: str) -> Run | None:
    row = db.execute(f"{SELECT_RUNS} WHERE run_id = ?", (run_id,)).fetchone()
    return row and run_of(row)


def find(
    db: sqlite3.Connection,
    states: Sequence[RunState],
    job: str | None,
    tenant: str | None,
    parent: str | None,
    after: int | None,
    limit: int,
) -> list[Run]:
    wanted = {"job = ?": job, "tenant_id = ?": tenant, "parent_run_id = ?": parent, "seq < ?": after}
    given = {term: value for term, value in wanted.items() if value is not None}
    terms = [*given, *_state_terms(frozenset(states))]
    where = f"WHERE {' AND '.join(terms)}" if terms else ""
    # Chosen by number first: sorting a million whole rows for a page of them would take seconds.
    page = f"SELECT seq FROM runs {where} ORDER BY seq DESC LIMIT ?"  # noqa: S608
    rows = db.execute(
        f"{SELECT_RUNS} WHERE runs.seq IN ({page}) ORDER BY runs.seq DESC", (*given.values(), max(limit, 0))
    )
    return [run_of(row) for row in rows]


def _state_terms(states: frozenset[RunState]) -> list[str]:
    if not states:
        return []
    return [state_is(*states), *([] if states & FINAL else [LIVE])]


def read_log(db: sqlite3.Connection, run_id: str, after: int, limit: int) -> tuple[bytes, int]:
    rows = db.execute(
        "SELECT upto, entries FROM log WHERE seq = (SELECT seq FROM runs WHERE run_id = ?) AND upto > ? ORDER BY upto",
        (run_id, after),
    )
    chunks: list[bytes] = []
    upto = after
    for upto, entries in rows:
        chunks.append(entries if chunks else _without_read(entries, upto - after))
        if upto >= after + limit:
            break
    return _array(chunks), upto


def _without_read(entries: bytes, unread: int) -> bytes:
    """The last `unread` entries of the first chunk: a reader may have stopped in the middle of it."""
    decoded = _entries.decode(_array([entries]))
    return entries if len(decoded) <= unread else b",".join(map(bytes, decoded[-unread:]))


def slices(db: sqlite3.Connection) -> list[Slice]:
    rows = db.execute("SELECT number, files, named FROM slices ORDER BY number")
    return [Slice(number, _files.decode(files), bool(named)) for number, files, named in rows]


def unpublished(db: sqlite3.Connection, after: int, limit: int) -> list[Ended]:
    """Up to `limit`, fewer once their logs exceed MAX_UNPUBLISHED_BYTES, and none only when none is left."""
    ended: list[Ended] = []
    size = 0
    for row in db.execute(SELECT_UNPUBLISHED, (after, max(limit, 0))):
        if size > MAX_UNPUBLISHED_BYTES:
            break
        chunks = db.execute(_WHOLE_LOG, row[:1]).fetchall()
        upto, warnings, _ = chunks[-1] if chunks else (0, 0, b"")
        ended.append(Ended(ended_run(row, warnings, upto), _array([entries for *_, entries in chunks])))
        size += len(ended[-1].logs)
    return ended


def _array(chunks: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(chunks) + b"]"
