"""Submit, watch, cancel and retry runs from Python, over the daemon's control socket or by dropping a request file."""

import json
import os
import stat
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from craft_easy_jobs.control_socket import ANSWER_SECONDS, ControlSocket
from craft_easy_jobs.errors import ApiError, CraftEasyJobsError, DaemonUnavailableError, RequestError
from craft_easy_jobs.places import find_places
from craft_easy_jobs.run_ids import new_run_id

if TYPE_CHECKING:
    from datetime import datetime

    from craft_easy_jobs.model import JobResult, LogEntry

Spool = Literal["never", "auto", "always"]
Document = dict[str, Any]

LONG_POLL_SECONDS = 30.0
# The daemon gives it up by itself, when its setting `reload_timeout` says so.
RELOAD_SECONDS = 600.0
FINAL_STATES = ("completed", "failed")

_BATCH_REQUESTS = 1000
_BATCH_BYTES = 8 * 1024 * 1024
_PAGE = 1000


class Client:
    """A daemon's client; opens a connection per call and may be used from several threads.

    Args:
        socket: path of the control socket; None: that of the root.
        root: the daemon's root, for the spool and the results when it is down. None: ./var, or where no daemon has been
            there, the service of this machine if one is installed.

    Every call may raise DaemonUnavailableError (nobody answers, or not to the end) and ApiError (refused).
    """

    def __init__(self, socket: str | None = None, *, root: str | None = None) -> None:
        self._places = find_places(root)
        self._daemon = ControlSocket(socket or str(self._places.socket))

    # -- the daemon
    def status(self) -> Document:
        """What the daemon says of itself."""
        return dict(self._daemon.call("GET", "/v1/status"))

    def jobs(self) -> list[Document]:
        """The jobs that the daemon can run, sorted by name."""
        return list(self._daemon.call("GET", "/v1/jobs")["jobs"])

    def chains(self) -> list[Document]:
        """The chains that the daemon can run, sorted by name."""
        return list(self._daemon.call("GET", "/v1/chains")["chains"])

    def tenants(self) -> list[Document]:
        """The daemon's tenants with their depth, each before those below it; ApiError 404 when it has no directory."""
        return list(self._daemon.call("GET", "/v1/tenants")["tenants"])

    def reload(self) -> Document:
        """Have settings, tenants and job modules read anew, or refused as a whole (409); returns what is in force."""
        return dict(self._daemon.call("POST", "/v1/reload", timeout=RELOAD_SECONDS))

    def drain(self) -> Document:
        """Have the daemon end once its runs have: the first rung of its stop ladder, however often it is asked."""
        return dict(self._daemon.call("POST", "/v1/drain"))

    def stop(self) -> Document:
        """Go one rung down the daemon's stop ladder, as SIGTERM does."""
        return dict(self._daemon.call("POST", "/v1/stop"))

    # -- asking for runs
    def submit(
        self,
        job: str | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        chain: str | None = None,
        tenant_id: str | None = None,
        all_tenants: bool = False,
        priority: int = 0,
        not_before: "datetime | str | None" = None,
        run_id: str | None = None,
        validate: bool = True,
        spool: Spool = "never",
    ) -> str:
        """Ask for a run of a job or a chain and return its run_id; it is durable when this returns.

        Args:
            chain: instead of a job.
            all_tenants: run once for each active tenant; for jobs that are `per_tenant`, and chains of such.
            not_before: when it may start; a datetime with its time zone, or RFC 3339.
            run_id: makes the call safe to repeat: an id that was used before is refused (ApiError 409).
            spool: `auto` drops a request file when the daemon does not answer, `always` never asks the daemon.
        """
        request = {
            "job": job,
            "chain": chain,
            "params": dict(params or {}),
            "tenant_id": tenant_id,
            "all_tenants": all_tenants,
            "priority": priority,
            "not_before": not_before if not_before is None or isinstance(not_before, str) else not_before.isoformat(),
            "run_id": run_id or new_run_id(),
            "validate": validate,
        }
        if spool == "always":
            return self.drop(request)
        try:
            return str(self._daemon.call("POST", "/v1/runs", body=_encode(request))["run_id"])
        except DaemonUnavailableError as error:
            if spool == "never":
                raise
            # The same run_id: should the daemon have taken the request before it broke off, this is a duplicate.
            dropped = self.drop(request)
            _say_dropped(error)
            return dropped

    def submit_many(self, requests: Iterable[Mapping[str, Any]]) -> list[str | ApiError]:
        """Ask for many runs, in batches; returns the run_id or the refusal of each, in order.

        Args:
            requests: request objects as in a request file.
        """
        return [
            each["run_id"] if "run_id" in each else ApiError(each["status"], each["detail"], each.get("field", ""))
            for batch in _batches(map(_encode, requests))
            for each in self._daemon.call("POST", "/v1/runs", body=b"[" + b",".join(batch) + b"]")
        ]

    def drop(self, request: Mapping[str, Any]) -> str:
        """Put a request file into incoming/, durably, for a daemon that is not there now.

        Raises:
            RequestError: it is no request; whether the job exists is seen when the daemon reads it.
        """
        from craft_easy_jobs.model import decode_request

        run_id = str(request.get("run_id") or new_run_id())
        content = _encode({**request, "run_id": run_id})
        decode_request(content)
        incoming = self._places.incoming
        # Nobody guesses it, and another request with this run_id that still waits there is not replaced.
        name = f"{run_id}.{os.urandom(16).hex()}.json"
        try:
            _write_durably(incoming, name, content)
        except FileNotFoundError:
            raise DaemonUnavailableError(str(incoming), "no such folder") from None
        except OSError as error:
            raise CraftEasyJobsError(f"cannot drop a request into {incoming}: {error.strerror}") from None
        return run_id

    # -- runs
    def get(self, run_id: str, *, wait: float = 0.0) -> Document:
        """A run; with `wait` (seconds, at most 60) it waits so long for the end of the run."""
        query = {"wait": wait or None}
        return dict(self._daemon.call("GET", _run_path(run_id), query=query, timeout=ANSWER_SECONDS + wait))

    def runs(
        self,
        *,
        states: Iterable[str] = (),
        job: str | None = None,
        tenant_id: str | None = None,
        parent: str | None = None,
        limit: int | None = 100,
    ) -> Iterator[Document]:
        """Runs, newest first, at most `limit` of them; fetched page by page while you iterate."""
        after = None
        while limit is None or limit > 0:
            page_size = _PAGE if limit is None else min(limit, _PAGE)
            query = {"job": job, "tenant": tenant_id, "parent": parent, "after": after, "limit": page_size}
            page = self._daemon.call("GET", "/v1/runs", query={**query, "state": list(states)})
            yield from page["runs"]
            after = page["next"]
            if after is None:
                return
            limit = limit if limit is None else limit - page_size

    def cancel(self, run_id: str, force: bool = False) -> str:
        """Ask a run to stop; returns the state that it is in after that.

        Args:
            force: do not leave it to the job; cancel it, and after its grace time kill its worker.
        """
        answer = self._daemon.call("POST", _run_path(run_id, "/cancel"), body=_encode({"force": force}))
        return str(answer["state"])

    def retry(self, run_id: str) -> str:
        """Run a failed run again; of a run with children only those that failed. Returns the state it is in after.

        A chain goes on at its failed steps. A run that has not failed is refused (ApiError 409).
        """
        return str(self._daemon.call("POST", _run_path(run_id, "/retry"))["state"])

    def logs(self, run_id: str, follow: bool = False) -> "Iterator[LogEntry]":
        """The run's log entries; `follow` goes on until the run has ended."""
        for line in self._daemon.lines(_run_path(run_id, "/logs"), query={"follow": "true"} if follow else {}):
            if line:
                yield json.loads(line)

    def wait(self, run_id: str, timeout: float | None = None) -> "JobResult":
        """Wait for the end of a run and return its result.

        Raises:
            TimeoutError: it has not ended within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LONG_POLL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
            state = self.get(run_id, wait=min(left, LONG_POLL_SECONDS))["state"]
            if state in FINAL_STATES:
                return self.result(run_id)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"run {run_id} is {state} and has not ended within {timeout:g} s")

    def result(self, run_id: str) -> "JobResult":
        """The result of a run that has ended; read from its file when the daemon is down."""
        from craft_easy_jobs.model import decode_result

        try:
            return decode_result(self._daemon.read("GET", _run_path(run_id, "/result")))
        except DaemonUnavailableError:
            file = self._places.results / f"{urllib.parse.quote(run_id, safe='')}.json"
            if not file.is_file():
                raise
            return decode_result(file.read_bytes())


def _run_path(run_id: str, rest: str = "") -> str:
    return f"/v1/runs/{urllib.parse.quote(run_id, safe='')}{rest}"


def _encode(request: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(request, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError("params", f"JSON cannot hold them: {error}") from None


def _batches(requests: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for request in requests:
        if len(batch) == _BATCH_REQUESTS or (size + len(request) > _BATCH_BYTES and batch):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += len(request)
    if batch:
        yield batch


def _write_durably(folder: Path, name: str, content: bytes) -> None:
    """The file is there whole or not at all, and stays there after a power cut.

    The folder need not be listable: that of many users is not.
    """
    draft = folder / f".{name}.tmp"
    mode = _mode_in(folder)
    try:
        with draft.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            draft.rename(folder / name)
            _make_name_durable(folder, file.fileno())
    finally:
        draft.unlink(missing_ok=True)


def _mode_in(folder: Path) -> int | None:
    """The mode that lets the daemon read a file in its incoming/, None: that of any file of ours.

    A folder that hands its group on has one that the daemon is in; nobody else is to read the file then. Members of
    that group still can if they know its name, so names must not be guessable.
    """
    status = folder.stat()
    if status.st_uid == os.geteuid():
        return None
    return 0o640 if status.st_mode & stat.S_ISGID else 0o644


def _make_name_durable(folder: Path, file: int) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        # A journaling file system writes the rename of a file no later than the file's next sync.
        os.fsync(file)
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _say_dropped(error: DaemonUnavailableError) -> None:
    import logging

    logging.getLogger("craft_easy_jobs.client").warning("%s; the request waits in the spool", error)
