"""The publishing process: reads from the ledger which runs have ended, and writes their JobResult files.

Forked by the nursery, which has it end with the supervisor. It imports as little as it can, has
no loop, and only reads the ledger: it says which files are durable, the supervisor marks them. Each byte that comes in
asks it to look; it answers with Durable as files become so, and with Looked when none is left or something is in the
way.
"""

import fcntl
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from craft_easy_jobd.errors import FolderError, LedgerError
from craft_easy_jobd.folders import SyncError
from craft_easy_jobd.ledger import Ended, RunEnd
from craft_easy_jobd.ledger_reads import ended, unpublished_ends
from craft_easy_jobd.ledger_schema import open_reader
from craft_easy_jobd.result_files import ResultFiles

BATCH = 500
# A packet must fit into the socket's buffer, with names of any length.
_TOLD_AT_ONCE = 100


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What it is started with, as JSON in its one argument; `fd`: socket to the supervisor."""

    fd: int
    ledger: str
    results: str


class Durable(msgspec.Struct, frozen=True, array_like=True, tag="durable"):
    """These ends of runs have their files; `run_ids` in the same order."""

    ends: list[RunEnd]
    run_ids: list[str]


class Looked(msgspec.Struct, frozen=True, array_like=True, tag="looked"):
    """All that there was when it was asked is published; or, says `problem`, what is in the way."""

    problem: str | None = None


class Broken(msgspec.Struct, frozen=True, array_like=True, tag="broken"):
    """It ends, and the daemon has to: by this text and with this exit code."""

    problem: str
    exit_code: int


Answer = Durable | Looked | Broken
decode_answer = msgspec.msgpack.Decoder(Answer).decode
_encode_answer = msgspec.msgpack.Encoder().encode


class _UnderWay(NamedTuple):
    """A batch that the disk takes, while the next one is drafted."""

    ended: Sequence[Ended]
    seqs: frozenset[int]
    synced: "Future[None]"


class Publishing:
    """Publishes in batches; what a crash or a full disk left unpublished is written again, whole, under the same name.

    `durable` is called with the runs whose files are.
    """

    def __init__(self, ledger: Path, results_dir: Path, durable: Callable[[Sequence[Ended]], None]) -> None:
        self._ledger = ledger
        self._files = ResultFiles(results_dir)
        self._tell = durable
        self._db: sqlite3.Connection | None = None
        self._undo = ExitStack()
        self._alone = False
        self._prepared = False
        # Those whose marks the supervisor has not committed yet.
        self._durable: set[RunEnd] = set()
        self._under_way: _UnderWay | None = None
        self._disk = self._undo.enter_context(ThreadPoolExecutor(1))

    def look(self) -> str | None:
        """Publish all that is there; returns what is in the way, None when nothing is.

        Raises:
            FolderError: the results folder cannot be used.
            SyncError: the disk failed; nothing was told of as durable that may not be there.
        """
        try:
            self._publish_all(self._prepare())
        except SyncError:
            raise
        except sqlite3.Error as error:
            return f"{self._ledger}: cannot read the ledger: {error}"
        except (OSError, LedgerError) as error:
            return str(error)
        return None

    def close(self) -> None:
        """Let go of the ledger and of the lock. Twice is harmless."""
        self._undo.close()

    def _prepare(self) -> sqlite3.Connection:
        if not self._alone:
            self._undo.callback(os.close, _only_one(self._ledger.parent))
            self._alone = True
        if self._db is None:
            self._db = self._undo.enter_context(closing(open_reader(self._ledger)))
        if not self._prepared:
            self._files.prepare()
            self._prepared = True
        return self._db

    def _publish_all(self, db: sqlite3.Connection) -> None:
        try:
            while batch := self._batch(db):
                drafted = self._files.draft(batch)
                self._finish()
                if drafted.synced:
                    self._publish(drafted.ended)
                else:
                    seqs = frozenset(each.run.seq for each in drafted.ended)
                    self._under_way = _UnderWay(drafted.ended, seqs, self._disk.submit(self._files.sync))
                if drafted.error is not None:
                    raise drafted.error
        finally:
            self._finish()

    def _finish(self) -> None:
        """Publish the batch that the disk takes."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.synced.result()
            self._publish(under_way.ended)

    def _publish(self, ended: Sequence[Ended]) -> None:
        if ended:
            self._files.publish(ended)
            self._durable.update(each.run.end for each in ended)
            self._tell(ended)

    def _batch(self, db: sqlite3.Connection) -> list[Ended]:
        # All of it as of one moment: a run may be put back meanwhile.
        db.execute("BEGIN")
        try:
            return ended(db, [end.seq for end in self._new(db)])
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _new(self, db: sqlite3.Connection) -> list[RunEnd]:
        """The first ends that have no files; forgets those that are marked by now."""
        new: list[RunEnd] = []
        waiting: set[RunEnd] = set()
        under_way = self._under_way.seqs if self._under_way else ()
        for end in unpublished_ends(db):
            if end in self._durable:
                waiting.add(end)
                continue
            # The same run's earlier end, too: both would have the name of one draft.
            if end.seq not in under_way:
                new.append(end)
            if len(new) == BATCH:
                return new
        self._durable = waiting
        return new


def main() -> None:
    """Look whenever the supervisor asks, until it closes its end."""
    options = _options()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    sock = socket.socket(fileno=options.fd)
    publishing = Publishing(Path(options.ledger), Path(options.results), partial(_tell, sock))
    with sock, closing(publishing), suppress(ConnectionError):
        try:
            while sock.recv(1):
                _say(sock, Looked(publishing.look()))
        except (FolderError, SyncError) as error:
            _say(sock, Broken(str(error), error.exit_code))


def _tell(sock: socket.socket, written: Sequence[Ended]) -> None:
    for start in range(0, len(written), _TOLD_AT_ONCE):
        runs = [each.run for each in written[start : start + _TOLD_AT_ONCE]]
        _say(sock, Durable([run.end for run in runs], [run.spec.run_id for run in runs]))


def _say(sock: socket.socket, answer: Answer) -> None:
    sock.send(_encode_answer(answer))


def _options() -> Options:
    try:
        return msgspec.json.decode(" ".join(sys.argv[1:]), type=Options)
    except msgspec.MsgspecError:
        sys.exit("craft_easy_jobd.publishing is started by craft-easy-jobd only")


def _only_one(state_dir: Path) -> int:
    """Take the lock of the one process that may write results; it is the kernel's, and gone with the process.

    Raises:
        LedgerError: another one has it still.
    """
    fd = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise LedgerError(
            f"{state_dir}: a publishing process of an earlier daemon has not ended; see who it is: fuser {state_dir}"
        ) from None
    return fd


if __name__ == "__main__":
    main()
