"""incoming/ and claimed/, file by file: what is claimed, what is refused, what is left alone for now.

Everything here is called in the spool's own thread.
"""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from craft_easy_jobd.admission import Catalogue, admit, new_run_id
from craft_easy_jobd.folders import PRIVATE, folder, require_folders, sync
from craft_easy_jobd.ledger import RunSpec
from craft_easy_jobd.patience import Patience, mark
from craft_easy_jobd.rejects import exists, reject
from craft_easy_jobd.request_files import UnreadyError, check_file, is_draft, read_file, user_name
from craft_easy_jobd.settings import Settings
from craft_easy_jobs.errors import RequestError
from craft_easy_jobs.model import RUN_ID_PATTERN, decode_request

logger = logging.getLogger("craft_easy_jobd.spool")

SLICE_FILES = 500
SLICE_BYTES = 16 * 1024 * 1024

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
    modified_ns: int
    run: RunSpec | RequestError


Slices: TypeAlias = Generator[list[Claim], None, None]


class _Folders(NamedTuple):
    incoming: int
    claimed: int
    rejected: int


class Intake:
    """Takes requests in, slice by slice.

    Attributes:
        catalogue: the jobs that there are; may be changed between two slices.
        unready: the files that may become right yet.
    """

    def __init__(self, settings: Settings, catalogue: Catalogue, *, before_look: Callable[[], None]) -> None:
        self.catalogue = catalogue
        self.unready = Patience(settings.settle_seconds)
        self._stuck = Patience(_STUCK_SECONDS)
        self._settings = settings
        self._modes = {
            settings.incoming_dir: 0o770,
            settings.claimed_dir: PRIVATE,
            settings.rejected_dir: PRIVATE,
        }
        self._before_look = before_look

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            FolderError: they cannot be used.
        """
        require_folders(self._modes)

    def incoming(self) -> Slices:
        """Look once at every file that was dropped; a slice is claimed durably when it comes out."""
        with self._open() as folders:
            self._before_look()
            self.unready.begin()
            self._stuck.begin()
            with os.scandir(folders.incoming) as entries:
                names = (entry.name for entry in entries if not is_draft(entry.name))
                for claims in _sliced(names, lambda name: self._look(name, folders)):
                    if claims:
                        self._sync(folders)
                    yield sorted(claims, key=lambda claim: claim.modified_ns)
            self.unready.end()
            self._stuck.end()

    def leftovers(self) -> Slices:
        """Look again at what was claimed before, under the run ids that it has."""
        with self._open() as folders, os.scandir(folders.claimed) as entries:
            names = (entry.name for entry in entries if _is_claimed(entry.name))
            for claims in _sliced(names, lambda name: self._look_again(name, folders.claimed)):
                self._sync(folders)
                yield claims

    def settle(self, answers: Sequence[tuple[Claim, RequestError | None]]) -> None:
        """Unlink claimed files that the ledger has; reject those that come with an error. Twice is harmless."""
        if not answers:
            return
        with self._open() as folders:
            for claim, error in answers:
                name = f"{claim.run_id}.json"
                with contextlib.suppress(FileNotFoundError):
                    if error is None:
                        os.unlink(name, dir_fd=folders.claimed)
                    else:
                        _reject(name, error, claim.uid, folders.claimed, claim.dropped, folders)

    @contextlib.contextmanager
    def _open(self) -> Iterator[_Folders]:
        with contextlib.ExitStack() as stack:
            yield _Folders(*(stack.enter_context(folder(path, mode)) for path, mode in self._modes.items()))

    def _sync(self, folders: _Folders) -> None:
        sync(folders.claimed, str(self._settings.claimed_dir))
        sync(folders.incoming, str(self._settings.incoming_dir))

    def _look(self, name: str, folders: _Folders) -> Claim | None:
        """The claim of a dropped file; None when it was rejected, is left alone, or is gone."""
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folders.incoming, follow_symlinks=False)
            now = mark(status)
            if self.unready.waiting(name, now) or self._stuck.waiting(name, now):
                return None
            try:
                return self._claim_or_reject(name, status, folders)
            except OSError as error:
                if error.errno not in _OF_ONE_FILE:
                    raise
                if not self._stuck.exhausted(name, now):
                    logger.error("%r cannot be moved out of incoming/: %s; move it yourself", name, error.strerror)
                self._stuck.note(name, now)
        return None

    def _claim_or_reject(self, name: str, status: os.stat_result, folders: _Folders) -> Claim | None:
        try:
            return self._claim(name, status, folders)
        except RequestError as error:
            may_become_right = isinstance(error, UnreadyError) or error.field == "json"
            if may_become_right and not self.unready.exhausted(name, mark(status)):
                self.unready.note(name, mark(status))
            else:
                _reject(name, error, status.st_uid, folders.incoming, name, folders)
        return None

    def _claim(self, name: str, status: os.stat_result, folders: _Folders) -> Claim | None:
        check_file(status, self._settings)
        data, unchanged = read_file(name, status, folders.incoming)
        if not unchanged:
            return None
        request = decode_request(data)
        run_id = request.run_id or new_run_id()
        spec = admit(request, self.catalogue, run_id=run_id, requested_by=user_name(status.st_uid))
        target = f"{run_id}.json"
        if request.run_id and exists(target, folders.claimed):
            raise RequestError("run_id", f"{run_id!r} is being admitted already; choose another one")
        os.rename(name, target, src_dir_fd=folders.incoming, dst_dir_fd=folders.claimed)
        if os.stat(target, dir_fd=folders.claimed, follow_symlinks=False).st_ino != status.st_ino:
            _put_back(target, name, folders)
            return None
        return Claim(run_id, name, status.st_uid, status.st_size, status.st_mtime_ns, spec)

    def _look_again(self, name: str, claimed: int) -> Claim | None:
        run_id = name.removesuffix(".json")
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=claimed, follow_symlinks=False)
            run: RunSpec | RequestError
            try:
                check_file(status, self._settings)
                request = decode_request(read_file(name, status, claimed)[0])
                run = admit(request, self.catalogue, run_id=run_id, requested_by=user_name(status.st_uid))
            except RequestError as error:
                run = error
            return Claim(run_id, name, status.st_uid, status.st_size, status.st_mtime_ns, run)
        return None


def _reject(name: str, error: RequestError, uid: int, source: int, dropped: str, folders: _Folders) -> None:
    target = reject(name, error, uid, source=source, dropped=dropped, rejected=folders.rejected)
    facts = {"rejected_as": ascii(target), "field": error.field, "user": user_name(uid)}
    logger.warning("rejected %s: %s", ascii(dropped), error, extra=facts)


def _put_back(target: str, name: str, folders: _Folders) -> None:
    """Undo a claim: between look and claim another file took the name, and has to be looked at itself."""
    free = f"{name[:100]}.{new_run_id()}" if exists(name, folders.incoming) else name
    os.rename(target, free, src_dir_fd=folders.claimed, dst_dir_fd=folders.incoming)


def _is_claimed(name: str) -> bool:
    return name.endswith(".json") and _RUN_ID.match(name.removesuffix(".json")) is not None


def _sliced(names: Iterator[str], look: Callable[[str], Claim | None]) -> Slices:
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
    if claims:
        yield claims
