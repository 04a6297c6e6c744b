"""The shapes of the two files: Request comes in, JobResult goes out, both JSON."""

import json
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, TypedDict

import msgspec

from craft_easy_jobs.errors import RequestError, ResultValueError
from craft_easy_jobs.scopes import Scope

Level = Literal["info", "progress", "warning", "error"]
Status = Literal["completed", "failed", "running"]

# A bare $ would let a line feed through at the end; this form means the same in Python and in JSON Schema.
RUN_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$(?!\n)"


class LogEntry(TypedDict):
    """One line of a run's log; the specification's shape.

    `timestamp` is RFC 3339 in UTC with microseconds; `percentage` is set by progress entries only.
    """

    timestamp: str
    level: Level
    message: str
    percentage: int | None


@dataclass
class JobResult:
    """What a run left: one per request.

    The first nine fields are the specification's, in its order. `status` keeps the specification's three words;
    `reason` says why: `stopped` for a run that obeyed a stop and returned, `exception`, `timed_out`, `cancelled`,
    `interrupted`, `out_of_memory`, `worker_lost`, `invalid_params`, `unknown_job` and others for one that failed.

    `cpu_seconds` and `peak_rss_bytes` are what the last attempt used with all that it started, at least; null when it
    had no worker to itself.
    """

    job_name: str
    run_id: str
    status: Status
    started_at: datetime
    completed_at: datetime | None
    duration_seconds: float | None
    result: Any
    error: str | None
    logs: list[LogEntry]
    reason: str | None = None
    attempts: int = 1
    tenant_id: str | None = None
    scope: Scope = "tenant"
    params: dict[str, Any] = field(default_factory=dict)
    parent_run_id: str | None = None
    requested_by: str | None = None
    warnings: int = 0
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None
    worker: str | None = None
    code_version: str | None = None


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request file, version 1: what a submitter may ask for. Exactly one of `job` and `chain`."""

    job: str | None = None
    chain: str | None = None
    params: dict[str, Any] = {}
    tenant_id: str | None = None
    all_tenants: bool = False
    run_id: Annotated[str, msgspec.Meta(pattern=RUN_ID_PATTERN)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1_000_000, le=1_000_000)] = 0
    not_before: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    validate: bool = True


_encode = msgspec.json.Encoder().encode
_request_decoder = msgspec.json.Decoder(Request)
_FIELD = re.compile(r" - at `\$\.?(?:key in )?([^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)


def decode_request(data: bytes) -> Request:
    """Read a request file.

    Raises:
        RequestError: names the key that is wrong; its field is `json` when the bytes are no JSON at all.
    """
    try:
        request = _request_decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("json", f"this is not JSON: {error}") from None
    return check_request(request)


def convert_request(value: Any) -> Request:
    """As `decode_request`, for a value that is already decoded JSON."""
    try:
        return check_request(msgspec.convert(value, Request))
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None


def check_request(request: Request) -> Request:
    """The rules that types cannot say; returns the request itself.

    Raises:
        RequestError: when not exactly one of `job` and `chain` is given.
    """
    if (request.job is None) == (request.chain is None):
        raise RequestError("job", "give exactly one of 'job' and 'chain'")
    return request


def _explain(text: str) -> RequestError:
    if unknown := _UNKNOWN.match(text):
        keys = ", ".join(Request.__struct_fields__)
        return RequestError(unknown[1], f"unknown key; a request has: {keys}")
    where = _FIELD.search(text)
    return RequestError(where[1] if where else "", _FIELD.sub("", text).replace("`", "'"))


def utc_now() -> datetime:
    return datetime.now(UTC)


def timestamp(seconds: float) -> str:
    """Unix seconds in the form of all our files: RFC 3339, UTC, microseconds; `2026-04-05T10:30:45.123456+00:00`."""
    second, microsecond = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_whole_second(second)}.{microsecond:06d}+00:00"


@lru_cache(maxsize=256)
def _whole_second(second: int) -> str:
    # Most of what is written down at a time happened in the same few seconds.
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def encode_value(value: Any) -> bytes:
    """A job's return value as JSON; never a silent conversion.

    Tuples become arrays. Keys must be strings, numbers finite.

    Raises:
        ResultValueError: names the path of the first value that JSON cannot hold.
    """
    try:
        data = msgspec.json.encode(value)
        if msgspec.json.decode(data) == value:
            return data
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass
    # The quick way converts silently (sets, int keys, NaN) or refuses big integers: look at each value.
    try:
        _require_json(value, "result")
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except RecursionError:
        raise ResultValueError("result", "nested too deeply or within itself; JSON cannot hold it") from None
    except UnicodeEncodeError:
        raise ResultValueError("result", "holds text with lone surrogates, which UTF-8 cannot encode") from None


def _require_json(value: Any, path: str) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ResultValueError(path, f"{value!r} is no JSON number; return None or a string instead")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ResultValueError(path, f"the key {key!r} is a {type(key).__name__}; JSON keys are strings")
            _require_json(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_json(item, f"{path}[{index}]")
    elif value is not None and not isinstance(value, str | int):
        kind = type(value).__name__
        raise ResultValueError(path, f"JSON cannot hold a {kind}; return strings, numbers, lists and dicts")


def encode_result(result: JobResult) -> bytes:
    """The JobResult file's bytes: one JSON object, timestamps in UTC with microseconds, a line feed at the end.

    `result`, `params` and `logs` may be `msgspec.Raw`: what is already JSON is not encoded again.
    """
    started_at = timestamp(result.started_at.timestamp())
    completed_at = result.completed_at and timestamp(result.completed_at.timestamp())
    return _encode({**vars(result), "started_at": started_at, "completed_at": completed_at}) + b"\n"


def decode_result(data: bytes) -> JobResult:
    """Read a JobResult file, of this or an earlier version; keys of later versions are passed over.

    Raises:
        msgspec.ValidationError: it is no JobResult.
    """
    return msgspec.json.decode(data, type=JobResult)
