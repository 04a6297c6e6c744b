"""incoming/ and claimed/, file by file: what is claimed, what is refused, what is left alone for now.

Everything here is called in the spool's own thread. Nothing is durable before `sync`.
"""

import contextlib
import errno
import heapq
import logging
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from craft_easy_jobd.admission import Rules, admit
from craft_easy_jobd.events import Event
from craft_easy_jobd.folders import PRIVATE, folder, require_folders, sync
from craft_easy_jobd.ledger import RequestFile, RunSpec
from craft_easy_jobd.patience import Patience, mark
from craft_easy_jobd.rejects import exists, reject
from craft_easy_jobd.request_files import UnreadyError, check_file, is_draft, read_file
from craft_easy_jobs.errors import RequestError
from craft_easy_jobs.model import RUN_ID_PATTERN, decode_request
from craft_easy_jobs.run_ids import new_run_id

logger = logging.getLogger("craft_easy_jobd.spool")

SLICE_FILES = 500
SLICE_BYTES = 16 * 1024 * 1024
# So many files are put into the order of their age at a time; of a larger backlog the oldest ones.
LOOK_FILES = 100_000

# Errors that lie in one file; others are everybody's, such as a full disk, and end the look.
_OF_ONE_FILE = (errno.EPERM, errno.EACCES, errno.EBUSY)
_STUCK_SECONDS = 60.0
_RUN_ID = re.compile(RUN_ID_PATTERN)


class Claim(NamedTuple):
    """A file in claimed/. `run`: what it asks for, or why it is refused; `dropped`: the name that it came with."""

    run_id: str
    dropped: str
    uid: int
    size: int
    inode: int
    modified_ns: int
    run: RunSpec | RequestError

    @property
    def file(self) -> RequestFile:
        return RequestFile(self.run_id, self.inode, self.modified_ns)


# Yields claims, and returns the last of them: whoever waits for these need not come back to hear that it was all.
Slices: TypeAlias = Generator[list[Claim], None, list[Claim]]


class _Folders(NamedTuple):
    incoming: int
    claimed: int
    rejected: int


class Intake:
    """Takes requests in, slice by slice.

    Attributes:
        rules: those in force; may be changed between two slices.
        more: the last look left files for another one.
        unready: the files that may become right yet.
    """

    def __init__(self, rules: Rules, *, before_look: Callable[[], None]) -> None:
        settings = rules.settings
        self.rules = rules
        self.more = False
        self.unready = Patience(settings.settle_seconds)
        self._stuck = Patience(_STUCK_SECONDS)
        mode, group = rules.rights.incoming
        self._modes = {settings.incoming_dir: mode, settings.claimed_dir: PRIVATE, settings.rejected_dir: PRIVATE}
        self._groups = {settings.incoming_dir: group}
        self._before_look = before_look
        # What lies in claimed/, which is ours alone: to ask the folder for each run id would cost as much as a claim.
        self._claimed: set[str] = set()

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            FolderError: they cannot be used.
        """
        require_folders(self._modes, self._groups)

    def incoming(self) -> Slices:
        """Look at the files that were dropped, the oldest first, LOOK_FILES at most; claim them slice by slice."""
        with self._open() as folders:
            self._before_look()
            self.unready.seconds = self.rules.settings.settle_seconds
            self.unready.begin()
            self._stuck.begin()
            names = self._oldest(folders.incoming)
            self.more = len(names) == LOOK_FILES
            last = yield from _sliced(names, lambda name: self._look(name, folders))
            self.unready.end()
            self._stuck.end()
        return last

    def leftovers(self) -> Slices:
        """Look again at what was claimed before, under the run ids that it has."""
        with self._open() as folders, os.scandir(folders.claimed) as entries:
            names = (entry.name for entry in entries if _is_claimed(entry.name))
            return (yield from _sliced(names, lambda name: self._look_again(name, folders.claimed)))

    def bring_back(self, files: Iterable[RequestFile]) -> None:
        """Give files their names in claimed/ that a power cut put back into incoming/."""
        undone = {file.inode: file for file in files}
        if not undone:
            return
        with self._open() as folders, os.scandir(folders.incoming) as entries:
            for entry in entries:
                if file := undone.get(entry.inode()):
                    with contextlib.suppress(FileNotFoundError):
                        _bring_back(entry.name, file, folders)

    def sync(self) -> None:
        """Make all names in claimed/ and incoming/ durable, and that others are gone.

        Raises:
            SyncError: the disk failed.
        """
        with self._open() as folders:
            sync(folders.claimed, str(self.rules.settings.claimed_dir))
            sync(folders.incoming, str(self.rules.settings.incoming_dir))

    def remove(self, run_ids: Iterable[str]) -> None:
        """Unlink claimed files. Twice is harmless."""
        with self._open() as folders:
            for run_id in run_ids:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{run_id}.json", dir_fd=folders.claimed)
                self._claimed.discard(run_id)

    def reject(self, refused: Sequence[tuple[Claim, RequestError]]) -> None:
        """Reject claimed files, each for its reason. Twice is harmless."""
        if not refused:
            return
        with self._open() as folders:
            for claim, error in refused:
                with contextlib.suppress(FileNotFoundError):
                    self._reject(f"{claim.run_id}.json", error, claim.uid, folders.claimed, claim.dropped, folders)
                self._claimed.discard(claim.run_id)

    @contextlib.contextmanager
    def _open(self) -> Iterator[_Folders]:
        with contextlib.ExitStack() as stack:
            opened = (folder(path, mode, self._groups.get(path)) for path, mode in self._modes.items())
            yield _Folders(*map(stack.enter_context, opened))

    def _oldest(self, incoming: int) -> list[str]:
        """Names of the oldest files that are not to be left alone."""
        with os.scandir(incoming) as entries:
            ages = ((age, entry.name) for entry in entries if (age := self._age(entry)) is not None)
            return [name for _, name in heapq.nsmallest(LOOK_FILES, ages)]

    def _age(self, entry: "os.DirEntry[str]") -> int | None:
        """When it was written, None when it is to be left alone for now, or is gone."""
        if is_draft(entry.name):
            return None
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        now = mark(status)
        waiting = self.unready.waiting(entry.name, now) or self._stuck.waiting(entry.name, now)
        return None if waiting else status.st_mtime_ns

    def _look(self, name: str, folders: _Folders) -> Claim | None:
        """The claim of a dropped file; None when it was rejected, is left alone, or is gone."""
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folders.incoming, follow_symlinks=False)
            try:
                return self._claim_or_reject(name, status, folders)
            except OSError as error:
                if error.errno not in _OF_ONE_FILE:
                    raise
                if not self._stuck.exhausted(name, mark(status)):
                    facts = {"event": Event.TROUBLE, "file": name, "problem": error.strerror}
                    logger.error("a file cannot be moved out of incoming/; move it yourself", extra=facts)
                self._stuck.note(name, mark(status))
        return None

    def _claim_or_reject(self, name: str, status: os.stat_result, folders: _Folders) -> Claim | None:
        try:
            return self._claim(name, status, folders)
        except RequestError as error:
            may_become_right = isinstance(error, UnreadyError) or error.field == "json"
            if may_become_right and not self.unready.exhausted(name, mark(status)):
                self.unready.note(name, mark(status))
            else:
                self._reject(name, error, status.st_uid, folders.incoming, name, folders)
        return None

    def _claim(self, name: str, status: os.stat_result, folders: _Folders) -> Claim | None:
        check_file(status, self.rules.settings, self.rules.rights)
        data, unchanged = read_file(name, status, folders.incoming)
        if not unchanged:
            return None
        request = decode_request(data)
        run_id = request.run_id or new_run_id()
        spec = admit(request, self.rules.catalogue, run_id=run_id, requested_by=self._owner(status.st_uid))
        if run_id in self._claimed:
            raise RequestError("run_id", f"{run_id!r} is being admitted already; choose another one")
        if not _move(name, f"{run_id}.json", status.st_ino, folders):
            return None
        self._claimed.add(run_id)
        return _claim(run_id, name, status, spec)

    def _look_again(self, name: str, claimed: int) -> Claim | None:
        run_id = name.removesuffix(".json")
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=claimed, follow_symlinks=False)
            run: RunSpec | RequestError
            try:
                check_file(status, self.rules.settings, self.rules.rights)
                request = decode_request(read_file(name, status, claimed)[0])
                run = admit(request, self.rules.catalogue, run_id=run_id, requested_by=self._owner(status.st_uid))
            except RequestError as error:
                run = error
            self._claimed.add(run_id)
            return _claim(run_id, name, status, run)
        return None

    def _reject(self, name: str, error: RequestError, uid: int, source: int, dropped: str, folders: _Folders) -> None:
        target = reject(name, error, uid, source=source, dropped=dropped, rejected=folders.rejected)
        facts = {
            "event": Event.REQUEST_REJECTED,
            "file": dropped,
            "rejected_as": None if target == dropped else target,
            "problem": error,
            "field": error.field or None,
            "user": self._owner(uid),
        }
        logger.warning("request rejected", extra=facts)

    def _owner(self, uid: int) -> str:
        return self.rules.rights.people.person(uid).name


def _claim(run_id: str, dropped: str, status: os.stat_result, run: RunSpec | RequestError) -> Claim:
    return Claim(run_id, dropped, status.st_uid, status.st_size, status.st_ino, status.st_mtime_ns, run)


def _move(name: str, target: str, inode: int, folders: _Folders) -> bool:
    """Give the file its name in claimed/; False when another one had taken its name since it was looked at."""
    os.rename(name, target, src_dir_fd=folders.incoming, dst_dir_fd=folders.claimed)
    if os.stat(target, dir_fd=folders.claimed, follow_symlinks=False).st_ino == inode:
        return True
    _put_back(target, name, folders)
    return False


def _bring_back(name: str, file: RequestFile, folders: _Folders) -> None:
    # Written to since, it is a new request.
    if os.stat(name, dir_fd=folders.incoming, follow_symlinks=False).st_mtime_ns == file.modified_ns:
        _move(name, f"{file.run_id}.json", file.inode, folders)


def _put_back(target: str, name: str, folders: _Folders) -> None:
    """Undo a claim: between look and claim another file took the name, and has to be looked at itself."""
    free = f"{name[:100]}.{new_run_id()}" if exists(name, folders.incoming) else name
    os.rename(target, free, src_dir_fd=folders.claimed, dst_dir_fd=folders.incoming)


def _is_claimed(name: str) -> bool:
    return name.endswith(".json") and _RUN_ID.match(name.removesuffix(".json")) is not None


def _sliced(names: Iterable[str], look: Callable[[str], Claim | None]) -> Slices:
    """Claims of at most SLICE_FILES files, fewer when they are large."""
    claims: list[Claim] = []
    looked = size = 0
    for name in names:
        try:
            claim = look(name)
        except OSError:
            # What was claimed before is told first: otherwise it would come back as a leftover.
            yield claims
            raise
        if claim:
            claims.append(claim)
            size += claim.size
        looked += 1
        if looked >= SLICE_FILES or size >= SLICE_BYTES:
            yield claims
            claims, looked, size = [], 0, 0
    return claims
