"""All that is read from the ledger; the supervisor reads in a thread, the publishing process has no loop at all."""

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from craft_easy_jobd.ledger import Ended, RequestFile, Run, RunEnd, Slice
from craft_easy_jobd.ledger_rows import SELECT_ENDED, SELECT_RUNS, ended_run, run_of
from craft_easy_jobd.ledger_schema import LIVE, state_is
from craft_easy_jobd.states import FINAL, RunState

MAX_UNPUBLISHED_BYTES = 16 * 1024 * 1024
_UNPUBLISHED = "SELECT seq, token FROM unpublished WHERE seq > ? ORDER BY seq"
_LOGS = "SELECT seq, upto, warnings, entries FROM log WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq, upto"
_files = msgspec.msgpack.Decoder(list[RequestFile])
_entries = msgspec.json.Decoder(list[msgspec.Raw])


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


def unpublished_ends(db: sqlite3.Connection, after: int = 0) -> Iterator[RunEnd]:
    """In the order of `seq`."""
    return map(RunEnd._make, db.execute(_UNPUBLISHED, (after,)))


def unpublished(db: sqlite3.Connection, after: int, limit: int) -> list[Ended]:
    return ended(db, [end.seq for end in islice(unpublished_ends(db, after), max(limit, 0))])


def ended(db: sqlite3.Connection, seqs: Sequence[int]) -> list[Ended]:
    """These runs in the order of `seq`; only the first ones when all hold more than MAX_UNPUBLISHED_BYTES."""
    wanted = (msgspec.json.encode(seqs).decode(),)
    found: list[Ended] = []
    size = 0
    chunks = db.execute(_LOGS, wanted)
    chunk = chunks.fetchone()
    for row in db.execute(SELECT_ENDED, wanted):
        log: list[Any] = []
        while chunk and chunk[0] == row[0]:
            log.append(chunk)
            chunk = chunks.fetchone()
        _, upto, warnings, _ = log[-1] if log else (0, 0, 0, b"")
        run = ended_run(row, warnings, upto)
        found.append(Ended(run, _array([entries for *_, entries in log])))
        size += len(found[-1].logs) + len(run.spec.params) + len(run.result.result if run.result else b"")
        if size > MAX_UNPUBLISHED_BYTES:
            break
    return found


def _array(chunks: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(chunks) + b"]"
