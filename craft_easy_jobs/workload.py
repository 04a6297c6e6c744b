"""The attempts that a worker carries out, each as an asyncio task with its own JobContext."""

import asyncio
import contextvars
import os
import socket
import time
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any, NamedTuple, NoReturn

import msgspec

from craft_easy_jobs.belongings import Belongings
from craft_easy_jobs.board import Board, Mark
from craft_easy_jobs.context import JobContext
from craft_easy_jobs.definition import JobDefinition, registry
from craft_easy_jobs.errors import ParamProblem, ParamsError, ResultValueError, TenantError, UnknownJobError
from craft_easy_jobs.failures import describe
from craft_easy_jobs.model import LogEntry, encode_value, timestamp
from craft_easy_jobs.orphans import EX_UNAVAILABLE
from craft_easy_jobs.params import ParamsValidator
from craft_easy_jobs.tenants import list_tenants
from craft_easy_jobs.thinning import Thinning
from craft_easy_jobs.usage import Usage
from craft_easy_jobs.wire import (
    BEAT_SECONDS,
    AskTenants,
    Beat,
    Cancel,
    Entries,
    Link,
    Outcome,
    Quit,
    Start,
    Tenants,
    ToWorker,
)

MAX_ERROR_CHARACTERS = 10_000

_LOG_CUT = "the log ends here: one attempt may write {} bytes (max_log_bytes of the settings); the job goes on"
_LEFT_OUT = "{} entries were left out here: one attempt may write {} a second (max_log_rate of the settings)"
# A job that does not let the loop turn is heard, and hears a stop, this often: when it logs or asks should_stop().
_CATCH_UP_SECONDS = 0.1

_encode = msgspec.json.Encoder().encode
_decode_params = msgspec.json.Decoder(dict[str, Any]).decode


class Bounds(NamedTuple):
    """What one attempt may give: bytes of JSON in its log and as its result, and log entries a second."""

    log_bytes: int = 16 * 1024 * 1024
    result_bytes: int = 64 * 1024 * 1024
    log_rate: int = 1000


class Workload:
    """All that the supervisor asked for and that was not reported yet.

    Attributes:
        measured: CPU time and memory of the process are those of the attempt, for there is one slot only.
        finished: the supervisor will ask for no more, and all is reported; the loop is stopped then.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        validators: Mapping[str, ParamsValidator],
        board: Board,
        *,
        slots: int,
        bounds: Bounds = Bounds(),  # noqa: B008 (immutable)
        tenants: str | None = None,
        credentials: str | None = None,
    ) -> None:
        self.loop = loop
        self.thread = get_ident()
        self.measured = slots == 1
        self.bounds = bounds
        self.credentials = credentials
        self._tenants = tenants
        self.finished = False
        self._validators = validators
        self._board = board
        board.watch(loop)
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._speakers: list[Attempt] = []
        self._quitting = False
        self._caught_up = 0.0
        self._clean_context = contextvars.copy_context()
        self._link = Link(loop, sock, ToWorker, self._received, lose_supervisor)
        self._beat_due = time.monotonic()
        self._beat()

    def speak(self, attempt: "Attempt") -> None:
        """Send the attempt's entries at the end of this turn of the loop."""
        if not self._speakers:
            self.loop.call_soon(self._send_entries)
        self._speakers.append(attempt)

    def end(self, attempt: "Attempt", outcome: Outcome) -> None:
        """Report an outcome, after the log."""
        del self._attempts[outcome.run_id, outcome.token]
        if entries := attempt.take_entries():
            self._link.send(entries)
        self._link.send(outcome)
        self._finish_if_idle()

    def catch_up(self) -> None:
        """Send and receive now, if that was not done for long; called from within jobs."""
        now = time.monotonic()
        if now - self._caught_up < _CATCH_UP_SECONDS or get_ident() != self.thread:
            return
        self._caught_up = now
        self._send_entries()
        self._link.flush()
        # Attempts that come in now must not inherit the context variables of the job that called.
        self._clean_context.run(self._link.receive)

    def _send_entries(self) -> None:
        for attempt in self._speakers:
            if entries := attempt.take_entries():
                self._link.send(entries)
        self._speakers.clear()

    def _received(self, frame: list[ToWorker]) -> None:
        for message in frame:
            if isinstance(message, Start):
                self._start(message)
            elif isinstance(message, AskTenants):
                self.loop.run_in_executor(None, self._list_tenants)
            elif isinstance(message, Quit):
                self._quitting = True
                self._finish_if_idle()
            elif attempt := self._attempts.get((message.run_id, message.token)):
                attempt.stop(cut=isinstance(message, Cancel))

    def _start(self, start: Start) -> None:
        try:
            definition = registry[start.job]
            params = self._params(start)
        except UnknownJobError as error:
            self._link.send(Outcome(start.run_id, start.token, **_raised("unknown_job", str(error))))
        except ParamsError as error:
            self._link.send(Outcome(start.run_id, start.token, **_raised("invalid_params", str(error))))
        else:
            attempt = self._attempts[start.run_id, start.token] = Attempt(self, start, definition, params)
            work, context = self._board.marked(attempt.carry_out(), Mark(start.run_id, start.token))
            attempt.task = self.loop.create_task(work, name=start.run_id, context=context)

    def _list_tenants(self) -> None:
        """In a thread: the callable may ask a database."""
        try:
            answer = Tenants(list_tenants(self._tenants or ""))
        except TenantError as error:
            answer = Tenants(error=str(error))
        self.loop.call_soon_threadsafe(self._link.send, answer)

    def _params(self, start: Start) -> dict[str, Any]:
        try:
            params = _decode_params(start.params)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ParamsError(start.job, [ParamProblem("params", str(error))]) from None
        if start.validate and start.job in self._validators:
            self._validators[start.job].check(params)
        return params

    def _finish_if_idle(self) -> None:
        if self._quitting and not self._attempts:
            self.finished = True
            self._link.finish()
            self.loop.stop()

    def _beat(self) -> None:
        """Say that the loop turns, and how late it does."""
        now = time.monotonic()
        self._link.send(Beat(now - self._beat_due, len(self._attempts)))
        self._beat_due = now + BEAT_SECONDS
        self.loop.call_later(BEAT_SECONDS, self._beat)


class Attempt:
    """One attempt under way: its context, its task, and the log that was not sent yet."""

    task: asyncio.Task[None]

    def __init__(self, workload: Workload, start: Start, definition: JobDefinition, params: dict[str, Any]) -> None:
        self._workload = workload
        self._start = start
        self._definition = definition
        self._context = _Context(
            start.run_id,
            start.job,
            params,
            start.tenant_id,
            start.scope,
            start.sub_tenant_ids,
            attempt=start.attempt,
            upstream=msgspec.json.decode(start.upstream),
            emit=self._emit,
            credentials=workload.credentials,
        )
        self._context.catch_up = workload.catch_up
        self._belongings = Belongings()
        self._cut = False
        self._log_room = workload.bounds.log_bytes
        self._thinning = Thinning(workload.bounds.log_rate)
        self._forget()

    async def carry_out(self) -> None:
        """Run the job and report how it ended; nothing that it raises comes out."""
        usage = Usage() if self._workload.measured else None
        self._belongings.own()
        try:
            value = await self._definition.function(self._context)
        except BaseException as error:
            ending = self._failed(error)
        else:
            ending = _returned(value, self._workload.bounds.result_bytes)
        self._tell_left_out()
        if self._cut:
            # Its supervisor kills this process when that takes longer than the grace.
            await self._belongings.end()
        if usage is not None:
            ending |= usage.so_far()
        # The base's method: the attempt is over and need not catch up.
        ending["obeyed_stop"] = JobContext.should_stop(self._context)
        self._workload.end(self, Outcome(self._start.run_id, self._start.token, **ending))
        self._log_room = 0

    def stop(self, *, cut: bool) -> None:
        """Ask the job to stop; with `cut` cancel its task too."""
        self._context.request_stop()
        if cut:
            self._cut = True
            # Not at once: a task that is cancelled before its first step would never run, so never report.
            self._workload.loop.call_soon(self.task.cancel)

    def take_entries(self) -> Entries | None:
        """The log since the last time, as a message; None when there is none."""
        if not self._entries:
            return None
        start = self._start
        joined = b",".join(self._entries)
        taken = Entries(start.run_id, start.token, joined, len(self._entries), self._warnings, self._progress)
        self._forget()
        return taken

    def _forget(self) -> None:
        self._entries: list[bytes] = []
        self._warnings = 0
        self._progress: tuple[str, int | None] | None = None

    def _emit(self, entry: LogEntry) -> bool:
        """Keep an entry for the next frame; False: what is written from here on is dropped."""
        if get_ident() != self._workload.thread:
            self._workload.loop.call_soon_threadsafe(self._emit, entry)
            return self._log_room > 0
        if self._log_room <= 0:
            return False
        kept = self._thinning.passes()
        if kept:
            if self._thinning.left_out:
                self._tell_left_out()
            self._keep(entry)
        self._workload.catch_up()
        return kept

    def _tell_left_out(self) -> None:
        if left_out := self._thinning.told():
            message = _LEFT_OUT.format(left_out, self._workload.bounds.log_rate)
            self._keep(LogEntry(timestamp=timestamp(time.time()), level="warning", message=message, percentage=None))

    def _keep(self, entry: LogEntry) -> None:
        data = _encode(entry)
        self._log_room -= len(data)
        if self._log_room <= 0:
            message = _LOG_CUT.format(self._workload.bounds.log_bytes)
            entry = {**entry, "level": "warning", "message": message, "percentage": None}
            data = _encode(entry)
        if not self._entries:
            self._workload.speak(self)
        self._entries.append(data)
        level = entry["level"]
        if level == "progress":
            self._progress = (entry["message"], entry["percentage"])
        elif level != "info":
            self._warnings += 1

    def _failed(self, error: BaseException) -> dict[str, Any]:
        if self._cut and isinstance(error, asyncio.CancelledError):
            return {"kind": "cancelled"}
        # Without our own frame, the traceback begins in the job's function.
        return _raised("exception", describe(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)))


class _Context(JobContext):
    """A context that hears a stop even while its job does not let the loop turn."""

    catch_up: Callable[[], None]

    def should_stop(self) -> bool:
        self.catch_up()
        return super().should_stop()


def _returned(value: Any, most: int) -> dict[str, Any]:
    try:
        data = encode_value(value)
    except ResultValueError as error:
        return _raised("result_invalid", str(error))
    except Exception as error:
        return _raised("result_invalid", f"result: cannot be read: {describe(error)}")
    if len(data) > most:
        problem = f"result: {len(data)} bytes of JSON, at most {most} (max_result_bytes of the settings)"
        return _raised("result_invalid", f"{problem}; store it and return where")
    return {"kind": "returned", "result": data}


def _raised(reason: str, error: str) -> dict[str, Any]:
    return {"kind": "raised", "reason": reason, "error": error[:MAX_ERROR_CHARACTERS]}


def lose_supervisor(problem: str) -> NoReturn:
    """End at once: nobody would take the outcomes, and a restarted supervisor starts these runs again."""
    if problem:
        os.write(2, f"craft-easy-jobs worker: cannot understand the supervisor: {problem}\n".encode())
    os._exit(EX_UNAVAILABLE)
