"""The JobResult files of one folder: whole or not there, whatever happens."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from craft_easy_jobd.folders import PRIVATE, folder, make_apart, require_folders, sync, sync_all
from craft_easy_jobd.ledger import Ended
from craft_easy_jobd.results import job_result
from craft_easy_jobs.model import encode_result

# So few files are synced one by one: to sync the file system would wait for what others write to it as well.
_FEW = 3


class ResultFiles:
    """Writes drafts, makes them durable with one sync a batch, gives them their names. One process at a time may."""

    def __init__(self, results_dir: Path) -> None:
        self._results = results_dir
        self._drafts = results_dir / ".tmp"

    def prepare(self) -> None:
        """Make the folders, and sweep drafts that a crash left.

        Raises:
            FolderError: they cannot be used.
        """
        make_apart(self._results)
        require_folders({self._results: PRIVATE, self._drafts: PRIVATE})
        for draft in self._drafts.iterdir():
            draft.unlink()

    def write(self, batch: Sequence[Ended]) -> tuple[Sequence[Ended], OSError | None]:
        """Make the result files of a batch durable; returns those that are, and what kept the others from it.

        Raises:
            SyncError: nobody knows which are.
        """
        few = len(batch) <= _FEW
        with folder(self._results) as results, folder(self._drafts) as drafts:
            written, error = self._draft(batch, drafts, synced=few)
            if written:
                # Content before names: a file that is seen under its name is whole, after a power cut too.
                if not few:
                    sync_all(drafts, str(self._drafts))
                for name in map(_name, written):
                    os.rename(name, name, src_dir_fd=drafts, dst_dir_fd=results)
                sync(results, str(self._results))
            return written, error

    def _draft(self, batch: Sequence[Ended], drafts: int, *, synced: bool) -> tuple[Sequence[Ended], OSError | None]:
        for index, ended in enumerate(batch):
            try:
                _write(_name(ended), encode_result(job_result(ended)), drafts, synced=synced)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.unlink(_name(ended), dir_fd=drafts)
                return batch[:index], error
        return batch, None


def _name(ended: Ended) -> str:
    return f"{ended.run.spec.run_id}.json"


def _write(name: str, data: bytes, drafts: int, *, synced: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, mode=0o640, dir_fd=drafts)
    try:
        written = os.write(fd, data)
        while written < len(data):
            written += os.write(fd, memoryview(data)[written:])
        if synced:
            sync(fd, name)
    finally:
        os.close(fd)
