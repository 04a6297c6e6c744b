"""From the ledger to results/: writes the JobResult file of each run that has ended."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.folders import PRIVATE, SyncError, folder, make_apart, require_folders, sync, sync_all
from craft_easy_jobd.lane import Lane
from craft_easy_jobd.ledger import Ended, Ledger, Run
from craft_easy_jobd.results import job_result
from craft_easy_jobd.trouble import Trouble
from craft_easy_jobs.model import encode_result

logger = logging.getLogger("craft_easy_jobd.publisher")

BATCH = 500
# So few files are synced one by one: to sync the file system would wait for what others write to it as well.
_FEW = 3
_MARK_AGAIN_SECONDS = 0.2


class Publisher:
    """Publishes in batches; what a crash or a full disk left unpublished is written again, whole, under the same name.

    `published` is called with the run ids whose files are durable.

    Attributes:
        looked: set once the results folder was looked at, and used or found to be out of reach for now.
    """

    def __init__(self, results_dir: Path, ledger: Ledger, *, published: Callable[[Sequence[str]], None]) -> None:
        self.looked = asyncio.Event()
        self._writer = _Writer(results_dir)
        self._ledger = ledger
        self._published = published
        self._lane = Lane("publisher")
        self._marking: set[tuple[int, int]] = set()
        self._prepared = False
        self._trouble = Trouble(logger)
        self._woken = asyncio.Event()
        self._woken.set()

    @property
    def problem(self) -> str | None:
        """What keeps results from being published, None when nothing does."""
        return self._trouble.problem and f"results: {self._trouble.problem}"

    def wake(self) -> None:
        """Runs have ended."""
        self._woken.set()

    async def run(self) -> None:
        """Publish what is there and what comes, until cancelled.

        Raises:
            FolderError: the results folder cannot be used.
            SyncError: the disk failed; nothing was marked as published that may not be there.
        """
        while True:
            await self._woken.wait()
            self._woken.clear()
            if not await self.drain():
                await asyncio.sleep(self._trouble.delay)
                self._woken.set()

    async def drain(self) -> bool:
        """Publish all that is there. False: something is in the way, see `problem`. Raises as `run` does."""
        try:
            if not self._prepared:
                await self._lane.call(self._writer.prepare)
                self._prepared = True
            self.looked.set()
            await self._publish_all()
        except SyncError:
            raise
        except (OSError, LedgerError) as error:
            self._trouble.meet(error)
            self.looked.set()
            return False
        self._trouble.clear()
        return True

    def close(self) -> None:
        """End the thread. Twice is harmless."""
        self._lane.close()

    async def _publish_all(self) -> None:
        # What ends after the last look wakes the publisher again.
        after = 0
        while batch := await self._ledger.unpublished(after=after, limit=BATCH):
            after = batch[-1].run.seq
            if new := [ended for ended in batch if (ended.run.seq, ended.run.token) not in self._marking]:
                await self._publish(new)

    async def _publish(self, batch: Sequence[Ended]) -> None:
        written, error = await self._lane.call(self._writer.write, batch)
        if written:
            self._mark([ended.run for ended in written])
            self._published([ended.run.spec.run_id for ended in written])
        if error is not None:
            raise error

    def _mark(self, runs: Sequence[Run]) -> None:
        # Not waited for: the mark may come with a later commit, and is kept here until then.
        marks = {(run.seq, run.token) for run in runs}
        answer = self._ledger.mark_published(runs)
        self._marking |= marks
        answer.add_done_callback(partial(self._marked, marks))

    def _marked(self, marks: set[tuple[int, int]], answer: "asyncio.Future[None]") -> None:
        self._marking -= marks
        if not answer.cancelled() and answer.exception() is not None:
            # The results are out; that the ledger cannot be written is said by those whose news it cannot take.
            asyncio.get_running_loop().call_later(_MARK_AGAIN_SECONDS, self.wake)


class _Writer:
    """Result files of one folder; called in the publisher's thread."""

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
