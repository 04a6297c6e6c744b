"""The spool: requests that are dropped as files become runs in the ledger.

A file is claimed by a rename, and let go of when its run is in the ledger (`letting_go.py`). What lies in claimed/ and
is not in the ledger's mind was never admitted, and is submitted again.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from craft_easy_jobd.admission import Rules
from craft_easy_jobd.background import unless
from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.folders import SyncError
from craft_easy_jobd.intake import Claim, Intake, Slices
from craft_easy_jobd.lane import Lane
from craft_easy_jobd.ledger import Ledger, RunSpec, Slice, Submitted
from craft_easy_jobd.letting_go import LettingGo
from craft_easy_jobd.trouble import Trouble
from craft_easy_jobd.watching import Watch
from craft_easy_jobs.errors import RequestError

logger = logging.getLogger("craft_easy_jobd.spool")

# So long nothing else is to be done before files are synced.
_LET_GO_SECONDS = 0.01

Refused: TypeAlias = list[tuple[Claim, RequestError]]


class Submit(Protocol):
    """Hands runs to the ledger, with the files that they came in."""

    def __call__(self, specs: list[RunSpec], came_in: Slice) -> "asyncio.Future[list[Submitted]]": ...


class Spool:
    """Owns incoming/, claimed/ and rejected/. `submit` is called on the loop, `rules` in its thread, too.

    Attributes:
        looked: set once all of it was looked through, or was found to be out of reach for now, see `problem`.
    """

    def __init__(
        self,
        rules: Callable[[], Rules],
        ledger: Ledger,
        *,
        submit: Submit,
    ) -> None:
        self._rules = rules
        self._ledger = ledger
        self._submit = submit
        self.looked = asyncio.Event()
        self._hint = asyncio.Event()
        self._watch = Watch(rules().settings.incoming_dir, self._hint.set)
        self._intake = Intake(rules(), before_look=self._watch.renew)
        self._lane = Lane("spool")
        self._trouble = Trouble(logger)
        self._leftovers = True
        self._number = 0
        self._submitted: deque[_Submitted] = deque()
        self._letting_go = LettingGo(self._intake, ledger, self._lane)
        self._refused: Refused = []

    @property
    def problem(self) -> str | None:
        """What keeps requests from being taken, None when nothing does."""
        return self._trouble.problem and f"spool: {self._trouble.problem}"

    @property
    def stalled_seconds(self) -> float:
        """For how long the call to the file system that is under way has been."""
        return self._lane.stalled_seconds

    async def recover(self) -> None:
        """Make the folders and submit again what was claimed before.

        Raises:
            FolderError: the folders cannot be used.
            SyncError: the disk failed.
        """
        await self._lane.call(self._intake.prepare)
        await self._attempt(self._take_leftovers)

    async def run(self) -> None:
        """Take what is there and what comes, until cancelled. Raises as `recover` does."""
        try:
            with self._watch.open():
                while True:
                    self._hint.clear()
                    self._watch.arm()
                    taken = await self._attempt(self._look_through)
                    self.looked.set()
                    if not (taken and await self._rest()):
                        await asyncio.sleep(self._trouble.delay)
        except asyncio.CancelledError:
            await self._attempt(self._let_go_of_all)
            raise
        finally:
            self.close()

    def close(self) -> None:
        """End the thread. Twice is harmless."""
        self._lane.close()

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> bool:
        """False: something is in the way, for now."""
        try:
            await work()
        except SyncError:
            raise
        except (OSError, LedgerError) as error:
            self._leftovers = True
            self._trouble.meet(error)
            return False
        self._trouble.clear()
        return True

    async def _rest(self) -> bool:
        """Wait until there is something to look at; finish meanwhile what was taken. False as of `_attempt`."""
        while self._letting_go and not await self._hinted(0.0 if self._letting_go.unlinking else _LET_GO_SECONDS):
            if not await self._attempt(self._letting_go.step):
                return False
        due = self._intake.unready.due_in()
        longest = self._rules().settings.scan_interval
        await self._hinted(longest if due is None else min(due, longest))
        return True

    async def _hinted(self, within: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._hint.wait()
        return self._hint.is_set()

    # -- taking

    async def _look_through(self) -> None:
        await self._take_leftovers()
        await self._take(self._intake.incoming())
        if self._intake.more:
            self._hint.set()

    async def _take_leftovers(self) -> None:
        if self._leftovers:
            await self._recall()
            await self._take(self._intake.leftovers())
            self._leftovers = False

    async def _take(self, slices: Slices) -> None:
        """Claim each slice while the one before it is being committed."""
        with contextlib.closing(slices):
            more = True
            while more:
                claims, more = await self._lane.call(self._advance, slices)
                self._submit_slice(claims)
                # Where nothing else has come in, there is time for that later.
                if self._letting_go.unlinking and (more or self._hint.is_set()):
                    await self._letting_go.step()
                await self._hear(but=1)
                if self._letting_go.many:
                    await self._letting_go.remember()
        # What comes in meanwhile is looked at while this is being committed.
        await unless(self._hint, self._hear())
        if self._refused:
            await self._lane.call(self._reject_refused)

    def _advance(self, slices: Slices) -> tuple[list[Claim], bool]:
        """Reject what was refused, and claim the next slice, in one trip to the thread; False: it is the last one."""
        self._reject_refused()
        self._intake.rules = self._rules()
        try:
            return next(slices), True
        except StopIteration as end:
            return end.value, False

    def _reject_refused(self) -> None:
        # They stay until they are rejected, through a full disk too.
        self._intake.reject(self._refused)
        self._refused = []

    def _submit_slice(self, claims: Sequence[Claim]) -> None:
        good = [(claim, claim.run) for claim in claims if isinstance(claim.run, RunSpec)]
        self._refused += [(claim, claim.run) for claim in claims if isinstance(claim.run, RequestError)]
        if good:
            self._number += 1
            came_in = Slice(self._number, [claim.file for claim, _ in good])
            answers = self._submit([run for _, run in good], came_in)
            self._submitted.append(_Submitted([claim for claim, _ in good], came_in, answers))

    async def _hear(self, *, but: int = 0) -> None:
        """Take in what the ledger says of the slices that were submitted, `but` the last ones."""
        while len(self._submitted) > but:
            # Who is cancelled while it waits hears it later.
            await asyncio.wait([self._submitted[0].answers])
            claims, came_in, future = self._submitted.popleft()
            answers = future.result()
            self._refused += [
                (claim, _used_before(answer)) for claim, answer in zip(claims, answers, strict=True) if answer.duplicate
            ]
            if files := [file for file, answer in zip(came_in.files, answers, strict=True) if not answer.duplicate]:
                self._letting_go.add(Slice(came_in.number, files))

    # -- letting go

    async def _recall(self) -> None:
        """Let go of all that the ledger keeps in mind, wherever a crash or a power cut left it."""
        while self._submitted:
            with contextlib.suppress(LedgerError):
                await self._hear()
        slices = await self._ledger.slices()
        self._number = max([self._number, *(each.number for each in slices)])
        await self._lane.call(
            self._intake.bring_back, [file for each in slices if not each.named for file in each.files]
        )
        self._letting_go.begin_anew(slices)
        await self._let_go_of_all()

    async def _let_go_of_all(self) -> None:
        await self._hear()
        while self._letting_go:
            await self._letting_go.step()


class _Submitted(NamedTuple):
    """A slice on its way into the ledger."""

    claims: list[Claim]
    came_in: Slice
    answers: "asyncio.Future[list[Submitted]]"


def _used_before(answer: Submitted) -> RequestError:
    return RequestError(
        "run_id", f"{answer.run_id!r} was used before, by a run that is {answer.state}; choose another one"
    )
