"""Request files whose runs are in the ledger, on their way out of the spool.

A file is claimed by a rename, which is not durable yet when the ledger commits its run: an idle daemon pays one sync
between the drop and the job's first line. Until the file is gone for good, the ledger therefore keeps it in mind, so
that a crash or a power cut at any moment neither admits it again nor loses what was not admitted:

1. committed: the run and its file are in the ledger. After a power cut the file may lie in incoming/ again, where its
   inode tells it from a new request.
2. named: its name in claimed/ is durable, and the ledger knows that; only now the file is unlinked.
3. gone: that is durable too, and the ledger forgets it.

Both syncs are made for many files at a time; files are unlinked by the slice, so that what comes in meanwhile does not
wait for all of them.
"""

from collections import deque
from collections.abc import Iterable

from craft_easy_jobd.intake import Intake
from craft_easy_jobd.lane import Lane
from craft_easy_jobd.ledger import Ledger, Slice

# So many files wait in claimed/ for their syncs at the most.
LET_GO_FILES = 1000
# So many are unlinked at a time, which takes a millisecond or two; those of a larger slice together.
_UNLINK_FILES = 50


class LettingGo:
    """The slices that the ledger keeps in mind; true while there are any."""

    def __init__(self, intake: Intake, ledger: Ledger, lane: Lane) -> None:
        self._intake = intake
        self._ledger = ledger
        self._lane = lane
        self._committed: list[Slice] = []
        self._named: deque[Slice] = deque()
        self._unlinked: list[Slice] = []

    def __bool__(self) -> bool:
        return bool(self._committed or self._named or self._unlinked)

    @property
    def unlinking(self) -> bool:
        """Files wait for nothing but to be unlinked."""
        return bool(self._named)

    @property
    def many(self) -> bool:
        """So many files wait for their syncs that `remember` is due."""
        return sum(len(each.files) for each in self._committed) >= LET_GO_FILES

    def add(self, committed: Slice) -> None:
        """Take a slice that was committed."""
        self._committed.append(committed)

    def begin_anew(self, slices: Iterable[Slice]) -> None:
        """Take what the ledger has in mind, wherever the files are, in place of what was known of it."""
        self._committed = list(slices)
        self._named.clear()
        self._unlinked.clear()

    async def step(self) -> None:
        """Bring files one step further.

        Raises:
            OSError: a file cannot be unlinked now.
            SyncError, LedgerError: as `remember` raises them.
        """
        if self._named:
            await self._lane.call(self._unlink)
        else:
            await self.remember()

    def _unlink(self) -> None:
        """Unlink some of the files whose names are durable."""
        room = _UNLINK_FILES
        while self._named and room > 0:
            files = self._named[0].files
            self._intake.remove(file.run_id for file in files)
            # Only now: else the ledger would forget files that are still there.
            self._unlinked.append(self._named.popleft())
            room -= len(files)

    async def remember(self) -> None:
        """Have the ledger know what is durable by now: names of claimed files, and that others are gone.

        Raises:
            SyncError: the disk failed.
            LedgerError: the ledger cannot be written.
        """
        committed, unlinked = self._committed, self._unlinked
        await self._lane.call(self._intake.sync)
        await self._ledger.let_go(named=[each.number for each in committed], gone=[each.number for each in unlinked])
        self._committed, self._unlinked = [], []
        self._named += committed
