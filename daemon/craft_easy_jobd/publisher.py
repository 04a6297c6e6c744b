"""From the ledger to results/, the supervisor's side: keeps the publishing process there, and marks what it wrote."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

import msgspec

from craft_easy_jobd.errors import FolderError, NotPermittedError
from craft_easy_jobd.folders import SyncError
from craft_easy_jobd.ledger import Ledger, RunEnd
from craft_easy_jobd.publishing import Answer, Broken, Durable, Options, decode_answer
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.trouble import Trouble
from craft_easy_jobd.worker_process import KILL_SECONDS, signal_name

logger = logging.getLogger("craft_easy_jobd.publisher")

MODULE = "craft_easy_jobd.publishing"
_MARK_AGAIN_SECONDS = 0.2
_BROKEN = {each.exit_code: each for each in (FolderError, NotPermittedError)}
# It has so long to end when it is let go: for the batch that it is writing.
_LEAVE_SECONDS = 5.0
# Without a word for so long it is said to hang. Whoever waits for all to be published gives up after the longer time,
# or after so many processes that died of it.
_SLOW_SECONDS = 10.0
_SILENT_SECONDS = 60.0
_HOPELESS_DEATHS = 3
_PACKET_BYTES = 1024 * 1024


class Helper(Protocol):
    """A process, as of asyncio.subprocess."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def kill(self) -> None: ...
    async def wait(self) -> int: ...


# (module, its options, a file descriptor for it) -> the process
StartHelper = Callable[[str, msgspec.Struct, int], Awaitable[Helper]]


class Publisher:
    """Has one publishing process at a time, and another one when it dies.

    Args:
        published: called with the run ids whose files are durable.

    Attributes:
        pid: of the process, None while there is none.
        looked: set once the results folder was looked at, and used or found to be out of reach for now.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        *,
        start: StartHelper,
        published: Callable[[Sequence[str]], None],
    ) -> None:
        self.pid: int | None = None
        self.looked = asyncio.Event()
        self._settings = settings
        self._ledger = ledger
        self._start = start
        self._published = published
        self._trouble = Trouble(logger)
        self._deaths = 0
        self._sock: socket.socket | None = None
        # Asked to look, and not answered yet; what wakes it meanwhile asks again after the answer.
        self._looking = False
        self._woken = True
        self._word_at = 0.0
        self._waiting: list[asyncio.Future[bool]] = []
        self._answered_next: list[asyncio.Future[bool]] = []

    @property
    def problem(self) -> str | None:
        """What keeps results from being published, None when nothing does."""
        problem = self._trouble.problem
        if self._looking and time.monotonic() - self._word_at > _SLOW_SECONDS:
            problem = f"the publishing process {self.pid} says nothing; does the disk under the results hang?"
        return problem and f"results: {problem}"

    def wake(self) -> None:
        """Runs have ended."""
        self._woken = True
        self._ask()

    async def run(self) -> None:
        """Publish what is there and what comes, until cancelled.

        Raises:
            FolderError: the results folder cannot be used.
            SyncError: the disk failed; nothing was marked as published that may not be there.
        """
        while True:
            try:
                self._lost(await self._one_life())
            except OSError as error:
                self._lost(f"cannot start the publishing process: {error.strerror}")
            # One death may have been an accident.
            await asyncio.sleep(0 if self._deaths == 1 else self._trouble.delay)

    async def drain(self) -> bool:
        """Publish all that is there. False: something is in the way, see `problem`. Only while `run` runs."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        # Those before are not to its account.
        self._deaths = 0
        self.wake()
        begun = time.monotonic()
        while not answer.done() and (patience := max(begun, self._word_at) + _SILENT_SECONDS - time.monotonic()) > 0:
            await asyncio.wait({answer}, timeout=patience)
        return answer.done() and answer.result()

    async def _one_life(self) -> str:
        """Have a process until it has ended; returns how it did."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs:
                process = await self._start(MODULE, self._options(theirs.fileno()), theirs.fileno())
            self.pid, self._sock = process.pid, ours
            try:
                self.wake()
                await self._listen(ours)
            finally:
                self._sock = None
                ours.close()
                await _let_go(process)
            if process.returncode is None:
                # Only one may write at a time.
                self._trouble.meet(OSError(f"SIGKILL does not end process {process.pid}: it hangs in the kernel"))
            code = await process.wait()
            self.pid = None
            died = f"was killed by {signal_name(-code)}" if code < 0 else f"ended by itself with code {code}"
            return f"the publishing process {died}"

    def _options(self, fd: int) -> Options:
        settings = self._settings
        return Options(fd=fd, ledger=str(settings.ledger_path), results=str(settings.results_dir))

    def _lost(self, problem: str) -> None:
        self._trouble.meet(ChildProcessError(problem))
        self._deaths += 1
        self._looking = False
        self._waiting += self._answered_next
        self._answered_next = []
        if self._deaths >= _HOPELESS_DEATHS:
            self.looked.set()
            _settle(self._waiting, answer=False)
            self._waiting = []

    async def _listen(self, sock: socket.socket) -> None:
        """Take in what it says until it is gone."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while packet := await loop.sock_recv(sock, _PACKET_BYTES):
                self._take(decode_answer(packet))

    def _ask(self) -> None:
        if self._sock is None or self._looking or not self._woken:
            return
        self._looking, self._woken, self._word_at = True, False, time.monotonic()
        self._answered_next, self._waiting = self._waiting, []
        # Whoever listens notices when it is gone.
        with contextlib.suppress(OSError):
            self._sock.send(b"\n")

    def _take(self, answer: Answer) -> None:
        self._word_at = time.monotonic()
        match answer:
            case Durable():
                self._mark(answer.ends)
                self._published(answer.run_ids)
            case Broken():
                raise _BROKEN.get(answer.exit_code, SyncError)(answer.problem)
            case _:
                self._has_looked(answer.problem)

    def _has_looked(self, problem: str | None) -> None:
        self._looking = False
        self._deaths = 0
        if problem is None:
            self._trouble.clear()
        else:
            self._trouble.meet(OSError(problem))
            asyncio.get_running_loop().call_later(self._trouble.delay, self.wake)
        self.looked.set()
        _settle(self._answered_next, answer=problem is None)
        self._answered_next = []
        self._ask()

    def _mark(self, ends: Sequence[RunEnd]) -> None:
        # Not waited for: the mark may come with a later commit.
        self._ledger.mark_published(ends).add_done_callback(partial(self._marked, ends))

    def _marked(self, ends: Sequence[RunEnd], answer: "asyncio.Future[None]") -> None:
        if not answer.cancelled() and answer.exception() is not None:
            # The results are out; that the ledger cannot be written is said by those whose news it cannot take.
            asyncio.get_running_loop().call_later(_MARK_AGAIN_SECONDS, self._mark, ends)


def _settle(waiting: list["asyncio.Future[bool]"], *, answer: bool) -> None:
    for each in waiting:
        if not each.done():
            each.set_result(answer)


async def _let_go(process: Helper) -> None:
    """Wait for its end, and kill it when that does not come; not for ever."""
    try:
        if await _ends(process, _LEAVE_SECONDS):
            return
    finally:
        if process.returncode is None:
            process.kill()
    await _ends(process, KILL_SECONDS)


async def _ends(process: Helper, within: float) -> bool:
    try:
        await asyncio.wait_for(process.wait(), within)
    except TimeoutError:
        return False
    return True
