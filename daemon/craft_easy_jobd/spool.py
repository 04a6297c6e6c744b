"""The spool: requests that are dropped as files become runs in the ledger."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from craft_easy_jobd.admission import Catalogue
from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.folders import SyncError
from craft_easy_jobd.intake import Claim, Intake, Slices
from craft_easy_jobd.lane import Lane
from craft_easy_jobd.ledger import Run, RunSpec, Submitted
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.trouble import Trouble
from craft_easy_jobd.watching import Watch
from craft_easy_jobs.errors import RequestError

logger = logging.getLogger("craft_easy_jobd.spool")

Submit: TypeAlias = Callable[[Sequence[RunSpec]], Awaitable[list[Submitted]]]
Find: TypeAlias = Callable[[str], Awaitable[Run | None]]
Answers: TypeAlias = list[tuple[Claim, RequestError | None]]


class Spool:
    """Owns incoming/, claimed/ and rejected/.

    A request is claimed durably, then committed by `submit`, then unlinked: whatever happens in between, what lies in
    claimed/ is submitted again under the same run id, and the ledger knows whether it has it. `submit` and
    `find` (the ledger's `get`) are called on the loop, `catalogue` in the spool's thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        submit: Submit,
        catalogue: Callable[[], Catalogue],
        find: Find,
    ) -> None:
        self._settings = settings
        self._submit = submit
        self._catalogue = catalogue
        self._find = find
        self._hint = asyncio.Event()
        self._accepting = asyncio.Event()
        self._accepting.set()
        self._watch = Watch(settings.incoming_dir, self._hint.set)
        self._intake = Intake(settings, catalogue(), before_look=self._watch.renew)
        self._lane = Lane("spool")
        self._trouble = Trouble(logger)
        self._leftovers = True
        self._answers: Answers = []

    @property
    def problem(self) -> str | None:
        """What keeps requests from being taken, None when nothing does."""
        return self._trouble.problem and f"spool: {self._trouble.problem}"

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
                    await self._accepting.wait()
                    self._hint.clear()
                    if await self._attempt(self._look_through):
                        await self._rest()
                    else:
                        await asyncio.sleep(self._trouble.delay)
        finally:
            self.close()

    def pause(self) -> None:
        """Take no more after the slice that is under way."""
        self._accepting.clear()

    def resume(self) -> None:
        self._accepting.set()

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

    async def _look_through(self) -> None:
        await self._take_leftovers()
        await self._take(self._intake.incoming(), self._admit)

    async def _take_leftovers(self) -> None:
        if self._leftovers:
            await self._take(self._intake.leftovers(), self._admit_again)
            self._leftovers = False

    async def _take(self, slices: Slices, admit: Callable[[list[Claim]], Awaitable[Answers]]) -> None:
        with contextlib.closing(slices):
            while (claims := await self._lane.call(self._advance, slices)) is not None:
                if claims:
                    self._answers = await admit(claims)
                if not self._accepting.is_set():
                    slices.close()

    def _advance(self, slices: Slices) -> list[Claim] | None:
        """Settle the last slice and claim the next one, in one trip to the thread."""
        # Answers stay until they are settled, through a full disk too: a duplicate is known as one only here.
        self._intake.settle(self._answers)
        self._answers = []
        self._intake.catalogue = self._catalogue()
        return next(slices, None)

    async def _admit(self, claims: list[Claim]) -> Answers:
        answers = await self._submit(_specs(claims))
        return [(claim, _refusal(answer)) for claim, answer in zip(claims, answers, strict=True)]

    async def _admit_again(self, claims: list[Claim]) -> Answers:
        """A duplicate is a run that the ledger got before its file could be unlinked."""
        if specs := _specs(claims):
            await self._submit(specs)
        return [(claim, await self._still_refused(claim)) for claim in claims]

    async def _still_refused(self, claim: Claim) -> RequestError | None:
        if isinstance(claim.run, RunSpec) or await self._find(claim.run_id) is not None:
            return None
        return claim.run

    async def _rest(self) -> None:
        due = self._intake.unready.due_in()
        longest = self._settings.scan_interval
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest if due is None else min(due, longest)):
                await self._hint.wait()


def _specs(claims: Sequence[Claim]) -> list[RunSpec]:
    return [claim.run for claim in claims if isinstance(claim.run, RunSpec)]


def _refusal(answer: Submitted) -> RequestError | None:
    if not answer.duplicate:
        return None
    return RequestError(
        "run_id", f"{answer.run_id!r} was used before, by a run that is {answer.state}; choose another one"
    )
