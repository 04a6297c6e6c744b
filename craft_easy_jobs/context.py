"""JobContext: what a job function receives."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from craft_easy_jobs.credentials import Folder, read_credential
from craft_easy_jobs.failures import printable
from craft_easy_jobs.model import Level, LogEntry, timestamp
from craft_easy_jobs.scopes import Scope

logger = logging.getLogger("craft_easy_jobs.run")
# Without one, logging prints warnings of programs that configured nothing; the log is in the result anyway.
logger.addHandler(logging.NullHandler())

_LOGGING_LEVELS: dict[Level, int] = {
    "info": logging.INFO,
    "progress": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class JobContext:
    """Parameters, tenant, log and stop flag of one run.

    `upstream`: in a chain, what the steps that completed before returned, by their jobs' names.
    `credentials`: folder of the files that `credential` reads.
    `emit` is called with each log entry as it is written: the runner prints it, the worker sends it on.
    When it returns False, the entry is not kept here either.
    """

    def __init__(
        self,
        run_id: str,
        job_name: str,
        params: dict[str, Any] | None = None,
        tenant_id: str | None = None,
        scope: Scope = "tenant",
        sub_tenant_ids: Sequence[str] = (),
        *,
        attempt: int = 1,
        upstream: dict[str, Any] | None = None,
        emit: Callable[[LogEntry], object] | None = None,
        credentials: Folder | None = None,
    ) -> None:
        self.run_id = run_id
        self.job_name = job_name
        self.params: dict[str, Any] = {} if params is None else params
        self.tenant_id = tenant_id
        self.scope: Scope = scope
        self.sub_tenant_ids: list[str] = list(sub_tenant_ids)
        self.attempt = attempt
        self.upstream: dict[str, Any] = {} if upstream is None else upstream
        self._emit = emit
        self._credentials = credentials
        self._logs: list[LogEntry] = []
        self._stop_requested = False

    async def log(self, message: str) -> None:
        """Write an info line to the run's log."""
        self._write("info", message)

    async def progress(self, message: str, percentage: int | None = None) -> None:
        """Say how far the run is; `percentage` is 0 to 100, and brought into these limits if it is not."""
        self._write("progress", message, percentage)

    async def warning(self, message: str) -> None:
        """Write what an operator should see; the run goes on."""
        self._write("warning", message)

    async def error(self, message: str) -> None:
        """Write a non-fatal error; the run goes on. To fail it, raise."""
        self._write("error", message)

    def should_stop(self) -> bool:
        """True once the job was asked to stop: clean up and return."""
        return self._stop_requested

    def request_stop(self) -> None:
        """Ask the job to stop; may be called from any thread, twice too."""
        self._stop_requested = True

    def iter_tenant_ids(self) -> list[str]:
        """The tenants to process, by scope: the tenant; the parent and its descendants; none for `system`."""
        if self.scope == "system" or self.tenant_id is None:
            return []
        if self.scope == "parent_tenant":
            return [self.tenant_id, *self.sub_tenant_ids]
        return [self.tenant_id]

    def credential(self, name: str) -> str:
        """A secret by its name, such as a password: the text of its file as it is now, with nothing stripped.

        Raises:
            CredentialError: there is none of this name, or it is no UTF-8 text; it says which there are.
        """
        return read_credential(self._credentials, name)

    def get_logs(self) -> list[dict[str, Any]]:
        """A copy of the log so far: `timestamp`, `level`, `message`, `percentage` of each entry."""
        return [dict(entry) for entry in self._logs]

    def _write(self, level: Level, message: str, percentage: int | None = None) -> None:
        entry: LogEntry = {
            "timestamp": timestamp(time.time()),
            "level": level,
            "message": printable(str(message)),
            "percentage": None if percentage is None else min(max(int(percentage), 0), 100),
        }
        # Who takes the entries also says when they are too many to keep.
        if self._emit is None or self._emit(entry) is not False:
            self._logs.append(entry)
        if logger.isEnabledFor(_LOGGING_LEVELS[level]):
            facts = {"run_id": self.run_id, "job": self.job_name, "tenant": self.tenant_id}
            logger.log(_LOGGING_LEVELS[level], "%s", entry["message"], extra=facts)
