"""The request and the result of each version load, and what we write now is what we wrote then."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from craft_easy_jobs.model import Request, decode_request, decode_result, encode_result

HERE = Path(__file__).parent


def test_request_1() -> None:
    request = decode_request((HERE / "request-1.json").read_bytes())
    assert request == Request(
        job="settlement",
        params={"period": "2026-03", "rows": [1, 2.5, None, True, "å"]},
        tenant_id="tenant_664abc",
        run_id="2026-03.tenant_664abc",
        priority=-5,
        not_before=datetime(2026, 4, 1, 2, tzinfo=timezone(timedelta(hours=2))),
    )


def test_request_1_with_defaults() -> None:
    request = decode_request((HERE / "request-1-least.json").read_bytes())
    assert request == Request(job="token-cleanup")
    assert (request.params, request.priority, request.validate) == ({}, 0, True)


def test_result_1() -> None:
    data = (HERE / "result-1.json").read_bytes()
    result = decode_result(data)
    assert result.started_at == datetime(2026, 4, 5, 10, 30, 45, 123456, UTC)
    assert (result.status, result.reason, result.attempts, result.warnings) == ("completed", "stopped", 2, 1)
    assert [entry["level"] for entry in result.logs] == ["info", "progress", "warning"]
    assert encode_result(result) == data


def test_a_result_of_a_later_version_loads() -> None:
    document = json.loads((HERE / "result-1.json").read_bytes())
    later = json.dumps({**document, "invented_later": {"x": 1}}).encode()
    assert decode_result(later) == decode_result((HERE / "result-1.json").read_bytes())


def test_a_result_without_our_fields_loads() -> None:
    document = json.loads((HERE / "result-1.json").read_bytes())
    nine = dict(list(document.items())[:9])
    assert decode_result(json.dumps(nine).encode()).reason is None
