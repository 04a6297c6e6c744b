"""The ledger's file: its tables, how it is opened, and the SQL that moves a run from state to state."""

import os
import sqlite3
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.states import ACTIVE, FINAL, WAITING, RunState, sources

APPLICATION_ID = 0x43454A4C
SCHEMA_VERSION = 1
NEEDED_SQLITE = (3, 37)  # STRICT; RETURNING came earlier

# Written into files: a number never changes its meaning. Final states come last, so that LIVE is one comparison.
CODES: dict[RunState, int] = {
    RunState.SCHEDULED: 0,
    RunState.HELD: 1,
    RunState.QUEUED: 2,
    RunState.RUNNING: 3,
    RunState.STOPPING: 4,
    RunState.RETRYING: 5,
    RunState.COMPLETED: 6,
    RunState.FAILED: 7,
}
STATES = {code: state for state, code in CODES.items()}


def state_is(*states: RunState) -> str:
    """SQL that is true of runs in one of the states; the same text for the same states, whatever their order."""
    numbers = sorted(CODES[state] for state in states)
    return f"state = {numbers[0]}" if len(numbers) == 1 else f"state IN ({', '.join(map(str, numbers))})"


# SQLite takes the log into the file and begins it anew when it holds 1,000 pages.
_LOG_BYTES = 1100 * 4096

TIMED = frozenset({RunState.SCHEDULED, RunState.RETRYING})
# SQLite uses a partial index only where the query repeats the index's condition word for word.
LIVE = "state < 6"
DUE = state_is(*TIMED)

# What changes often stays out of the wide rows of `runs`: the log's totals stand in its last chunk, and what is not
# yet published in a table of its own. Big values come last, so that a look at the other columns does not read them.
# The triggers count and list whatever statement moves a run; start-up reads eight rows instead of a million.
_SCHEMA = f"""
CREATE TABLE runs (
    seq INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    turn INTEGER NOT NULL DEFAULT 0,
    job TEXT NOT NULL,
    kind TEXT NOT NULL,
    tenant_id TEXT,
    parent_run_id TEXT,
    step TEXT,
    scope TEXT NOT NULL,
    isolation TEXT NOT NULL,
    on_interrupt TEXT NOT NULL,
    validate INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    requested_by TEXT,
    requested_at REAL NOT NULL,
    not_before REAL,
    next_at REAL,
    token INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    interruptions INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    started_at REAL,
    completed_at REAL,
    cpu_seconds REAL,
    peak_rss_bytes INTEGER,
    worker TEXT,
    code_version TEXT,
    reason TEXT,
    error TEXT,
    params BLOB NOT NULL,
    sub_tenant_ids BLOB,
    upstream BLOB,
    plan BLOB,
    result BLOB
) STRICT;
CREATE INDEX runs_live ON runs (state, isolation, priority DESC, turn, seq) WHERE {LIVE};
CREATE INDEX runs_due ON runs (next_at) WHERE {DUE};
CREATE INDEX runs_failed ON runs (seq) WHERE {state_is(RunState.FAILED)};
CREATE INDEX runs_job ON runs (job);
CREATE INDEX runs_tenant ON runs (tenant_id) WHERE tenant_id IS NOT NULL;
CREATE INDEX runs_parent ON runs (parent_run_id) WHERE parent_run_id IS NOT NULL;

-- One row a chunk of entries; `upto` and `warnings` are the run's totals up to the chunk's end.
CREATE TABLE log (
    seq INTEGER NOT NULL,
    upto INTEGER NOT NULL,
    warnings INTEGER NOT NULL,
    entries BLOB NOT NULL,
    PRIMARY KEY (seq, upto)
) STRICT, WITHOUT ROWID;

-- `token`: of the end that is to be published; a run that is put back and ends again has another one.
CREATE TABLE unpublished (seq INTEGER PRIMARY KEY, token INTEGER NOT NULL) STRICT;

-- Request files whose runs are in the ledger and that may still lie in the spool, see spool.py.
CREATE TABLE slices (number INTEGER PRIMARY KEY, named INTEGER NOT NULL, files BLOB NOT NULL) STRICT;

-- How many children a fan-out has, and how many have not ended, so that its last child knows that it is the last.
CREATE TABLE fan_outs (run_id TEXT PRIMARY KEY, live INTEGER NOT NULL, total INTEGER NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE counts (state INTEGER PRIMARY KEY, runs INTEGER NOT NULL) STRICT;
INSERT INTO counts VALUES {", ".join(f"({code}, 0)" for code in STATES)};

CREATE TRIGGER run_added AFTER INSERT ON runs BEGIN
    UPDATE counts SET runs = runs + 1 WHERE state = NEW.state;
END;
CREATE TRIGGER run_moved AFTER UPDATE OF state ON runs BEGIN
    UPDATE counts SET runs = runs - 1 WHERE state = OLD.state;
    UPDATE counts SET runs = runs + 1 WHERE state = NEW.state;
END;
CREATE TRIGGER run_ended AFTER UPDATE OF state ON runs WHEN NOT NEW.{LIVE} BEGIN
    INSERT OR REPLACE INTO unpublished VALUES (NEW.seq, NEW.token);
END;
CREATE TRIGGER run_reopened AFTER UPDATE OF state ON runs WHEN NEW.{LIVE} AND NOT OLD.{LIVE} BEGIN
    DELETE FROM unpublished WHERE seq = NEW.seq;
END;
"""  # noqa: S608


def move(target: RunState, changes: str, where: str, *, among: Collection[RunState] = WAITING | ACTIVE | FINAL) -> str:
    """SQL that moves runs to `target`: only from states that TRANSITIONS allows, and of these only `among`."""
    allowed = state_is(*sources(target).intersection(among))
    return f"UPDATE runs SET state = {CODES[target]}, {changes} WHERE {where} AND {allowed}"  # noqa: S608


def open_writer(path: Path) -> sqlite3.Connection:
    """The connection that writes; creates the file when there is none.

    Raises:
        LedgerError: the file is not ours, of a later version, or not writable, or SQLite is too old.
    """
    if sqlite3.sqlite_version_info < NEEDED_SQLITE:
        needed = ".".join(map(str, NEEDED_SQLITE))
        raise LedgerError(f"{path}: needs SQLite {needed} or later; this Python has {sqlite3.sqlite_version}")
    try:
        db = sqlite3.connect(path, isolation_level=None)
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        raise LedgerError(_explain(path, error)) from error
    return db


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; the file must exist."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    version = _version(db, path)
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise LedgerError(f"{path}: its file system has no shared memory for SQLite; keep the ledger on a local disk")
    db.execute("PRAGMA synchronous = FULL")
    # A burst may leave a big log behind; it is cut back to this at the next checkpoint.
    db.execute(f"PRAGMA journal_size_limit = {64 * 1024 * 1024}")
    db.execute("BEGIN IMMEDIATE")
    if version == 0:
        _create(db)
    # Written even when it is there: a file that is read-only says so here, not at the first request.
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute("COMMIT")
    _lay_out_log(db, path)


def _lay_out_log(db: sqlite3.Connection, path: Path) -> None:
    """Give the write-ahead log its usual size at once: a sync takes half the time when nothing is appended.

    A row that is larger than the cache goes into the log before its commit, and it never comes to that.
    """
    disk = os.statvfs(path.parent)
    if disk.f_bavail * disk.f_frsize < 4 * _LOG_BYTES:
        return
    db.execute("PRAGMA cache_size = 16")
    db.execute("BEGIN IMMEDIATE")
    # What fails here, a quota for instance, will be said by the first transaction that it is in the way of.
    with suppress(sqlite3.Error):
        db.execute("INSERT INTO slices VALUES (0, 0, zeroblob(?))", (_LOG_BYTES,))
    if db.in_transaction:
        db.execute("ROLLBACK")
    db.execute("PRAGMA cache_size = -2000")


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The file's schema version, 0 for an empty file; looks before anything is written into a stranger's file."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (objects,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if objects and application != APPLICATION_ID:
        raise LedgerError(f"{path}: this SQLite database is no ledger of ours; move it away or choose another root")
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"{path}: written by a later version (schema {version}, this one reads {SCHEMA_VERSION}); "
            "install that version again, or choose another root"
        )
    return int(version)


def _create(db: sqlite3.Connection) -> None:
    # Not executescript: it would commit first, and a crash could leave half a schema.
    statement = ""
    for line in _SCHEMA.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _explain(path: Path, error: sqlite3.Error) -> str:
    advice = {
        sqlite3.SQLITE_NOTADB: "move the file away, then a new ledger is made, or bring back a copy of the old one",
        sqlite3.SQLITE_CORRUPT: "bring back a copy of it, or move it away, then a new ledger is made",
        sqlite3.SQLITE_CANTOPEN: "its folder must exist and be writable",
        sqlite3.SQLITE_READONLY: "the file and its folder must be writable by the daemon's user",
        sqlite3.SQLITE_BUSY: "another program holds it; end that one first",
    }
    code = getattr(error, "sqlite_errorcode", 0)
    # A full disk is an I/O error, too, when the index of the write-ahead log has no room.
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
        return f"{path}: cannot open the ledger: its disk is full, or a quota is; free some space, then start again"
    return f"{path}: cannot open the ledger: {error}; " + advice.get(code & 0xFF, "look at its file system")
