"""The JobResult of a run that has ended, as the ledger has it."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from craft_easy_jobd.ledger import Ended
from craft_easy_jobd.states import RunState
from craft_easy_jobs.model import JobResult


def job_result(ended: Ended) -> JobResult:
    """What is published of a run; `result`, `params` and `logs` stay the JSON that they are (`msgspec.Raw`)."""
    run, spec, result = ended.run, ended.run.spec, ended.run.result
    if result is None:
        raise ValueError(f"run {spec.run_id} has not ended")
    started = _moment(result.started_at)
    # A clock that was set back meanwhile makes no run end before it began.
    completed = max(started, _moment(result.completed_at))
    return JobResult(
        job_name=spec.job,
        run_id=spec.run_id,
        status="completed" if result.state is RunState.COMPLETED else "failed",
        started_at=started,
        completed_at=completed,
        duration_seconds=(completed - started).total_seconds(),
        result=_json(result.result),
        error=result.error,
        logs=_json(ended.logs),
        reason=result.reason,
        attempts=result.attempts,
        tenant_id=spec.tenant_id,
        scope=spec.scope,
        params=_json(spec.params),
        parent_run_id=spec.parent_run_id,
        requested_by=spec.requested_by,
        warnings=run.warnings,
        cpu_seconds=result.cpu_seconds,
        peak_rss_bytes=result.peak_rss_bytes,
        worker=result.worker,
        code_version=result.code_version,
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _json(data: bytes) -> Any:
    return msgspec.Raw(data)
