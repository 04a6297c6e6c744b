"""The JobResult files of one folder: whole or not there, whatever happens."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from craft_easy_jobd.folders import PRIVATE, folder, make_apart, require_folders, sync, sync_all
from craft_easy_jobd.ledger import Ended
from craft_easy_jobd.results import job_result
from craft_easy_jobs.model import encode_result

# So few files are synced one by one: to sync the file system would wait for what others write to it as well.
_FEW = 3


class Drafted(NamedTuple):
    """Files that are written aside; `synced`: their content is durable. `error`: what kept the others from it."""

    ended: Sequence[Ended]
    synced: bool
    error: OSError | None = None


class ResultFiles:
    """Writes drafts, makes them durable with one sync a batch, gives them their names. One process at a time may.

    A batch may be drafted while another one is synced.
    """

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

    def draft(self, batch: Sequence[Ended]) -> Drafted:
        """Write a batch aside, under the names that the files will have."""
        few = len(batch) <= _FEW
        with folder(self._drafts) as drafts:
            for index, ended in enumerate(batch):
                try:
                    _write(_name(ended), encode_result(job_result(ended)), drafts, synced=few)
                except OSError as error:
                    with contextlib.suppress(OSError):
                        os.unlink(_name(ended), dir_fd=drafts)
                    return Drafted(batch[:index], few, error)
        return Drafted(batch, few)

    def sync(self) -> None:
        """Make the content of all drafts durable: a file that is seen under its name is whole, after a power cut too.

        Raises:
            SyncError: nobody knows which are.
            OSError: the disk is full.
        """
        with folder(self._drafts) as drafts:
            sync_all(drafts, str(self._drafts))

    def publish(self, ended: Sequence[Ended]) -> None:
        """Give drafts whose content is durable their names, durably too. Raises as `sync` does."""
        with folder(self._results) as results, folder(self._drafts) as drafts:
            for name in map(_name, ended):
                os.rename(name, name, src_dir_fd=drafts, dst_dir_fd=results)
            sync(results, str(self._results))


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
