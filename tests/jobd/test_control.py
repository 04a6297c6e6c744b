"""The control API: a real server on a real socket and a real ledger."""

import http.client
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from craft_easy_jobd.control import Control, listen
from craft_easy_jobd.errors import RootLockedError, SettingsError
from craft_easy_jobd.ledger import Run
from craft_easy_jobd.settings import Settings
from craft_easy_jobs.model import decode_result
from tests.jobd.serving import CHAINS, JOBS, TENANTS, Answer, Desk, Served, serving
from tests.support.waiting import wait_until

NOBODY = 65534


@pytest.fixture
def served(short_dir: Path) -> Iterator[Served]:
    with serving(short_dir) as served:
        yield served


def problem(answer: Answer, status: int) -> dict[str, Any]:
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = answer.document
    assert (document["type"], document["status"]) == ("about:blank", status)
    assert document["title"]
    return document


def run_ids(served: Served, query: str = "") -> list[str]:
    return [run["run_id"] for run in served.get(f"/v1/runs{query}")["runs"]]


# -- the daemon


def test_status_and_jobs(served: Served) -> None:
    status = served.get("/v1/status")
    assert {"pid", "version", "state", "runs", "workers"} <= status.keys()
    assert status["workers"][0]["name"] == "w1"
    assert [job["name"] for job in served.get("/v1/jobs")["jobs"]] == [job.name for job in JOBS]


def test_chains_are_shown_without_the_authors_files(served: Served) -> None:
    close, send = served.get("/v1/chains")["chains"]
    assert (close["name"], close["description"]) == ("close", "Closes a month")
    assert close["steps"][1] == {
        "job": "export",
        "params": {},
        "depends_on": ["settlement"],
        "on_failure": "stop",
        "retries": 0,
        "retry_delay_seconds": 60,
    }
    assert CHAINS[1].source
    assert send.keys() == {"name", "description", "steps"}


def test_tenants_are_shown_as_a_tree(served: Served) -> None:
    served.desk.directory = TENANTS
    tenants = served.get("/v1/tenants")["tenants"]
    assert [(tenant["depth"], tenant["id"]) for tenant in tenants] == [
        (0, "acme"),
        (1, "acme-north"),
        (0, "gone"),
        (0, "t1"),
    ]
    assert tenants[1] == {"id": "acme-north", "depth": 1, "parent": "acme", "active": True, "name": ""}
    assert (tenants[0]["name"], tenants[2]["active"]) == ("Acme Ltd", False)


def test_no_tenants_is_a_404_that_names_the_setting(served: Served) -> None:
    assert "the setting 'tenants'" in problem(served.call("GET", "/v1/tenants"), 404)["detail"]


def test_tenants_that_no_worker_told_yet_are_a_503(short_dir: Path) -> None:
    with serving(short_dir, tenants="billing.tenants:all_of_them") as served:
        assert "billing.tenants:all_of_them" in problem(served.call("GET", "/v1/tenants"), 503)["detail"]


def test_stop_goes_one_rung_down(served: Served) -> None:
    answer = served.call("POST", "/v1/stop")
    assert (answer.status, answer.document) == (202, {"state": "draining", "ladder": 1})
    assert served.desk.stops == 1


def test_a_drain_goes_no_further_down(served: Served) -> None:
    for _ in range(2):
        answer = served.call("POST", "/v1/drain")
        assert (answer.status, answer.document) == (202, {"state": "draining", "ladder": 1})


def test_a_reload_answers_what_is_in_force_or_why_it_was_refused(served: Served) -> None:
    answer = served.call("POST", "/v1/reload")
    assert (answer.status, answer.document) == (200, {"generation": 2, "code_version": "0123456789ab", "jobs": 3})
    served.desk.refusal = "jobs module 'billing': syntax error: invalid syntax (billing.py:3)"
    answer = served.call("POST", "/v1/reload")
    assert (answer.status, answer.headers["Content-Type"]) == (409, "application/problem+json")
    assert "billing.py:3" in answer.document["detail"]


def test_the_size_of_a_body_follows_the_settings_in_force(short_dir: Path) -> None:
    request = {"job": "export", "params": {"text": "x" * 2000}}
    with serving(short_dir / "var", max_request_bytes=20) as served:
        assert served.call("POST", "/v1/runs", request).status == 413
        served.desk.settings = Settings(root=str(served.root), max_request_bytes=3000)
        assert served.call("POST", "/v1/runs", request).status == 202
        assert served.call("POST", "/v1/runs", [request] * 90).status == 202
        assert served.call("POST", "/v1/runs", [request] * 100).status == 413


def test_the_openapi_document_is_valid_and_whole(served: Served) -> None:
    document = served.get("/openapi.json")
    validate(document)
    assert sorted(document["paths"]) == [
        "/openapi.json",
        "/v1/chains",
        "/v1/drain",
        "/v1/jobs",
        "/v1/reload",
        "/v1/runs",
        "/v1/runs/{run_id}",
        "/v1/runs/{run_id}/cancel",
        "/v1/runs/{run_id}/logs",
        "/v1/runs/{run_id}/result",
        "/v1/runs/{run_id}/retry",
        "/v1/status",
        "/v1/stop",
        "/v1/tenants",
    ]
    listing = document["paths"]["/v1/runs"]["get"]
    assert [each["name"] for each in listing["parameters"]] == ["state", "job", "tenant", "parent", "after", "limit"]
    assert {"Request", "RunDocument", "Status", "Problem", "JobResult"} <= document["components"]["schemas"].keys()


# -- submit


def test_a_request_is_durable_when_it_is_accepted(served: Served) -> None:
    request = {"job": "export", "params": {"n": [1, 2.5]}, "tenant_id": "t1", "priority": 3}
    answer = served.call("POST", "/v1/runs", request)
    run_id = answer.document["run_id"]
    assert (answer.status, answer.document["state"]) == (202, "queued")
    assert answer.headers["Location"] == f"/v1/runs/{run_id}"
    run = served.run(served.desk.ledger.get, run_id)
    assert run is not None
    assert (run.spec.job, run.spec.tenant_id, run.spec.priority) == ("export", "t1", 3)
    assert (run.spec.params, run.spec.requested_by) == (b'{"n":[1,2.5]}', pwd.getpwuid(os.geteuid()).pw_name)


def test_a_request_for_later_is_scheduled(served: Served) -> None:
    answer = served.call("POST", "/v1/runs", {"job": "export", "not_before": "2999-01-01T00:00:00Z"})
    assert answer.document["state"] == "scheduled"
    assert served.get(answer.headers["Location"])["next_at"] == "2999-01-01T00:00:00.000000+00:00"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, "json"),
        (b"{", 400, "json"),
        (b'{"job": "\xff"}', 400, "json"),
        (b"[" * 100_000, 400, None),
        (b'{"job": "export", "params": ' + b'{"a":' * 100_000, 400, "json"),
        (b"[1,", 400, None),
        (b"7", 422, None),
        (b"null", 422, None),
        (b"{}", 422, "job"),
        (b'{"job": 7}', 422, "job"),
        (b'{"job": "export", "chain": "c"}', 422, "job"),
        (b'{"job": "exprt"}', 422, "job"),
        (b'{"job": "export", "jbo": 1}', 422, "jbo"),
        (b'{"job": "export", "params": []}', 422, "params"),
        (b'{"job": "settlement", "params": {"period": 7}}', 422, "params.period"),
        (b'{"job": "export", "run_id": "../x"}', 422, "run_id"),
        (b'{"job": "export", "run_id": "a\\n"}', 422, "run_id"),
        (b'{"job": "export", "priority": 1e30}', 422, "priority"),
        (b'{"job": "export", "not_before": "soon"}', 422, "not_before"),
        (b'{"job": "export", "params": {"n": 1e999}}', 422, "params[...]"),
    ],
)
def test_a_request_that_is_wrong_is_refused_and_named(
    served: Served, body: bytes, status: int, field: str | None
) -> None:
    document = problem(served.call("POST", "/v1/runs", body), status)
    assert document.get("field") == field
    assert document["detail"]
    assert run_ids(served) == []


def test_an_unknown_job_is_answered_with_a_guess(served: Served) -> None:
    document = problem(served.call("POST", "/v1/runs", {"job": "exprt"}), 422)
    assert document["detail"] == "job: unknown job 'exprt'; did you mean 'export'?"


def test_a_run_id_serves_once(served: Served) -> None:
    assert served.call("POST", "/v1/runs", {"job": "export", "run_id": "once"}).status == 202
    document = problem(served.call("POST", "/v1/runs", {"job": "export", "run_id": "once"}), 409)
    assert document["field"] == "run_id"
    assert "'once' was used before; that run is queued" in document["detail"]


def test_of_an_array_each_is_answered_in_its_place(served: Served) -> None:
    good, twice = {"job": "export", "run_id": "a"}, {"job": "settlement", "run_id": "a"}
    answer = served.call("POST", "/v1/runs", [{"job": "exprt"}, good, 7, {"job": "settlement"}, twice])
    assert answer.status == 202
    unknown, first, wrong, second, duplicate = answer.document
    assert first == {"run_id": "a", "state": "queued"}
    assert second["state"] == "queued"
    assert [each["status"] for each in (unknown, wrong, duplicate)] == [422, 422, 409]
    assert run_ids(served) == [second["run_id"], "a"]


def test_an_array_is_limited_and_may_be_empty(served: Served) -> None:
    assert served.call("POST", "/v1/runs", []).document == []
    assert len(served.call("POST", "/v1/runs", [{"job": "export"}] * 1000).document) == 1000
    problem(served.call("POST", "/v1/runs", [{"job": "export"}] * 1001), 413)
    assert served.run(served.desk.ledger.find, limit=2000).__len__() == 1000


def test_bodies_are_limited(short_dir: Path) -> None:
    with serving(short_dir, max_request_bytes=1000) as served:
        exact, large = ({"job": "export", "params": {"text": "x" * size}} for size in (959, 960))
        assert len(json.dumps(exact)) == 1000
        assert served.call("POST", "/v1/runs", exact).status == 202
        assert (
            "may have 1000 bytes, this one has 1001" in problem(served.call("POST", "/v1/runs", large), 413)["detail"]
        )
        accepted, refused = served.call("POST", "/v1/runs", [exact, large]).document
        assert (accepted["state"], refused["status"]) == ("queued", 413)
        problem(served.call("POST", "/v1/runs", b"[" + b" " * 64_000), 413)
        assert len(run_ids(served)) == 2


# -- runs


def test_runs_are_listed_newest_first_page_by_page(served: Served) -> None:
    requests = [{"job": "export", "run_id": f"r{number}"} for number in range(5)]
    served.call("POST", "/v1/runs", requests)
    first = served.get("/v1/runs?limit=2")
    second = served.get(f"/v1/runs?limit=2&after={first['next']}")
    third = served.get(f"/v1/runs?limit=2&after={second['next']}")
    pages = [[run["run_id"] for run in page["runs"]] for page in (first, second, third)]
    assert (pages, third["next"]) == ([["r4", "r3"], ["r2", "r1"], ["r0"]], None)


def test_runs_are_filtered(served: Served) -> None:
    served.call("POST", "/v1/runs", [{"job": "export", "run_id": "a", "tenant_id": "t1"}])
    served.end(served.claim())
    served.end(served.begin(run_id="b", tenant_id="t2"), error="no")
    served.call("POST", "/v1/runs", [{"job": "settlement", "run_id": "c"}])
    assert run_ids(served) == ["c", "b", "a"]
    assert run_ids(served, "?state=failed&state=completed") == ["b", "a"]
    assert run_ids(served, "?job=settlement") == ["c"]
    assert run_ids(served, "?tenant=t1") == ["a"]
    assert run_ids(served, "?parent=a") == []
    assert run_ids(served, "?job=export&state=queued") == []


def test_a_run_shows_all_that_is_known_of_it(served: Served) -> None:
    lease = served.begin("settlement", run_id="a", params={"period": "2026-03"}, tenant_id="t1", priority=2)
    served.say(lease, "one", "two")
    served.say(lease, "three", level="warning")
    running = served.get("/v1/runs/a")
    assert (running["state"], running["attempt"], running["completed_at"], running["result"]) == (
        "running",
        1,
        None,
        None,
    )
    served.end(lease, {"sum": 12345678901234567890123})
    run = served.get("/v1/runs/a")
    times = [datetime.fromisoformat(run.pop(key)) for key in ("requested_at", "started_at", "completed_at")]
    assert all(moment.utcoffset() is not None for moment in times)
    assert run.pop("duration_seconds") == pytest.approx((times[2] - times[1]).total_seconds(), abs=1e-5)
    assert run == {
        "run_id": "a",
        "kind": "job",
        "job": "settlement",
        "step": None,
        "state": "completed",
        "reason": None,
        "tenant_id": "t1",
        "scope": "tenant",
        "priority": 2,
        "attempt": 1,
        "failures": 0,
        "interruptions": 0,
        "cancel_requested": False,
        "requested_by": "tester",
        "next_at": None,
        "params": {"period": "2026-03"},
        "result": {"sum": 12345678901234567890123},
        "error": None,
        "warnings": 1,
        "log_count": 3,
        "parent_run_id": None,
        "steps": None,
        "published": False,
    }


def test_a_fan_out_has_a_child_run_for_each_tenant(served: Served) -> None:
    served.desk.directory = TENANTS
    served.begin_family(3, job="statement", run_id="f", all_tenants=True)
    run = served.get("/v1/runs/f")
    assert (run["kind"], run["job"], run["state"], run["steps"]) == ("fan_out", "statement", "running", None)
    children = served.get("/v1/runs?parent=f")["runs"]
    assert [(child["kind"], child["tenant_id"], child["parent_run_id"]) for child in children] == [
        ("job", "t1", "f"),
        ("job", "acme-north", "f"),
        ("job", "acme", "f"),
    ]


def test_a_chain_shows_its_steps_and_a_child_which_it_is(served: Served) -> None:
    [lease] = served.begin_family(1, chain="close", run_id="c")
    run = served.get("/v1/runs/c")
    assert (run["kind"], run["job"], run["state"]) == ("chain", "close", "running")
    assert [(step["job"], step["depends_on"], step["on_failure"]) for step in run["steps"]] == [
        ("settlement", [], "stop"),
        ("export", ["settlement"], "stop"),
    ]
    child = served.get(f"/v1/runs/{lease.run_id}")
    assert (child["kind"], child["step"], child["parent_run_id"], child["steps"]) == ("job", "settlement", "c", None)


def test_waiting_for_a_run_ends_with_it(served: Served) -> None:
    lease = served.begin(run_id="a")
    answers: list[Answer] = []
    waiter = threading.Thread(target=lambda: answers.append(served.call("GET", "/v1/runs/a?wait=60")))
    waiter.start()
    wait_until(lambda: served.desk.bell._listeners)
    served.say(lease, "still at it")
    assert not answers
    served.end(lease, error="no", reason="exception")
    waiter.join(30)
    assert [(answer.document["state"], answer.document["reason"]) for answer in answers] == [("failed", "exception")]


def test_waiting_for_a_run_has_a_limit(served: Served) -> None:
    served.begin(run_id="a")
    assert served.get("/v1/runs/a?wait=0.05")["state"] == "running"
    assert not served.desk.bell._listeners
    problem(served.call("GET", "/v1/runs/a?wait=61"), 400)


def test_waiting_looks_again_only_when_the_bell_rings(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = served.begin(run_id="a")
    looks = []
    get = served.desk.ledger.get

    async def counted(run_id: str) -> Run | None:
        looks.append(run_id)
        return await get(run_id)

    monkeypatch.setattr(served.desk.ledger, "get", counted)
    waiter = threading.Thread(target=served.get, args=("/v1/runs/a?wait=0.3",))
    waiter.start()
    wait_until(lambda: looks)
    served.say(lease, "still at it")
    waiter.join(30)
    assert len(looks) <= 2


def test_the_result_is_that_of_the_file(served: Served) -> None:
    lease = served.begin(run_id="a", params={"n": 1})
    served.say(lease, *(f"line {number}" for number in range(2500)))
    assert problem(served.call("GET", "/v1/runs/a/result"), 409)["detail"].startswith("run a is running")
    served.end(lease, [1, "two"])
    result = decode_result(served.call("GET", "/v1/runs/a/result").body)
    assert (result.job_name, result.run_id, result.status, result.result) == ("export", "a", "completed", [1, "two"])
    assert [entry["message"] for entry in result.logs] == [f"line {number}" for number in range(2500)]


@pytest.mark.parametrize("path", ["", "/result", "/logs", "/cancel", "/retry"])
@pytest.mark.parametrize("run_id", ["nope", "%00", "%ff", "%ED%A0%80", "a%2Fb", "x" * 2000, "%F0%9F%8D%B0"])
def test_a_run_that_is_not_there_is_a_404(served: Served, run_id: str, path: str) -> None:
    method = "POST" if path in ("/cancel", "/retry") else "GET"
    assert problem(served.call(method, f"/v1/runs/{run_id}{path}"), 404)["detail"].startswith("no such run: ")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=1&limit=2", "limit"),
        ("after=-1", "after"),
        ("after=9223372036854775808", "after"),
        ("state=happy", "state"),
        ("stat=failed", "stat"),
    ],
)
def test_a_wrong_parameter_is_named(served: Served, query: str, field: str) -> None:
    document = problem(served.call("GET", f"/v1/runs?{query}"), 400)
    assert document["field"] == field
    assert field in document["detail"]


# -- cancel


def test_cancel_ends_a_waiting_run(served: Served) -> None:
    served.call("POST", "/v1/runs", {"job": "export", "run_id": "a"})
    answer = served.call("POST", "/v1/runs/a/cancel")
    assert (answer.status, answer.document) == (200, {"run_id": "a", "state": "failed"})
    assert served.get("/v1/runs/a")["reason"] == "cancelled"


def test_cancel_asks_a_running_run(served: Served) -> None:
    served.begin(run_id="a")
    assert served.call("POST", "/v1/runs/a/cancel", {"force": False}).document["state"] == "stopping"
    assert served.desk.forced == []
    assert served.call("POST", "/v1/runs/a/cancel", {"force": True}).document["state"] == "stopping"
    assert served.desk.forced == ["a"]


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b'{"forse": true}', 422), (b'{"force": 1}', 422)])
def test_cancel_refuses_what_it_does_not_know(served: Served, body: bytes, status: int) -> None:
    served.begin(run_id="a")
    problem(served.call("POST", "/v1/runs/a/cancel", body), status)
    assert served.get("/v1/runs/a")["state"] == "running"


# -- retry


def test_retry_runs_a_failed_run_again(served: Served) -> None:
    served.end(served.begin(run_id="a"), error="no", reason="exception")
    for _ in range(2):
        answer = served.call("POST", "/v1/runs/a/retry")
        assert (answer.status, answer.document) == (200, {"run_id": "a", "state": "queued"})
    served.end(served.claim())
    assert served.get("/v1/runs/a")["state"] == "completed"


def test_retry_of_a_fan_out_runs_those_again_that_failed(served: Served) -> None:
    served.desk.directory = TENANTS
    acme, north, t1 = served.begin_family(3, job="statement", run_id="f", all_tenants=True)
    for lease in (acme, t1):
        served.end(lease)
    served.end(north, error="no", reason="exception")
    assert served.get("/v1/runs/f")["result"]["counts"] == {"completed": 2, "failed": 1}
    assert served.call("POST", "/v1/runs/f/retry").document == {"run_id": "f", "state": "queued"}
    again = served.claim()
    assert again.run_id == north.run_id
    served.end(again)
    run = served.get("/v1/runs/f")
    assert (run["state"], run["result"]["counts"]) == ("completed", {"completed": 3, "failed": 0})


def test_retry_refuses_what_has_not_failed(served: Served) -> None:
    served.end(served.begin(run_id="a"))
    text = problem(served.call("POST", "/v1/runs/a/retry"), 409)["detail"]
    assert text == "run a is completed; only a run that has failed can be run again"
    served.call("POST", "/v1/runs", {"job": "export", "run_id": "b", "not_before": "2999-01-01T00:00:00Z"})
    problem(served.call("POST", "/v1/runs/b/retry"), 409)


# -- logs


def messages(body: bytes) -> list[str]:
    return [json.loads(line)["message"] for line in body.splitlines() if line]


def test_logs_are_lines_after_a_number(served: Served) -> None:
    lease = served.begin(run_id="a")
    served.say(lease, "one\ntwo", "three")
    served.say(lease, "four", percentage=50, level="progress")
    answer = served.call("GET", "/v1/runs/a/logs")
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert messages(answer.body) == ["one\ntwo", "three", "four"]
    assert json.loads(answer.body.splitlines()[2])["percentage"] == 50
    assert messages(served.call("GET", "/v1/runs/a/logs?after=1").body) == ["three", "four"]
    assert served.call("GET", "/v1/runs/a/logs?after=3").body == b""
    assert served.call("GET", "/v1/runs/a/logs?after=99&follow=false").body == b""


def test_following_shows_each_entry_and_ends_with_the_run(served: Served) -> None:
    lease = served.begin(run_id="a")
    served.say(lease, "one")
    connection = served.connection()
    connection.request("GET", "/v1/runs/a/logs?follow=true")
    with connection.getresponse() as response:
        assert messages(response.readline()) == ["one"]
        assert response.readline() == b"\n", "no heartbeat while nothing is said"
        served.say(lease, "two", "three")
        lines = (line for line in iter(response.readline, b"") if line != b"\n")
        assert messages(next(lines)) == ["two"]
        assert messages(next(lines)) == ["three"]
        served.say(lease, "last")
        served.end(lease)
        assert [messages(line) for line in lines] == [["last"]]
    connection.close()
    wait_until(lambda: not served.desk.bell._listeners)


def test_following_a_run_that_has_ended_ends_at_once(served: Served) -> None:
    lease = served.begin(run_id="a")
    served.say(lease, "one")
    served.end(lease)
    assert messages(served.call("GET", "/v1/runs/a/logs?follow=true").body) == ["one"]


def test_a_follower_that_leaves_is_forgotten(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.begin(run_id="a")
    for _ in range(3):
        connection = served.connection()
        connection.request("GET", "/v1/runs/a/logs?follow=true")
        with connection.getresponse() as response:
            assert response.readline() == b"\n"
        connection.close()
    wait_until(lambda: not served.desk.bell._listeners)
    wait_until(lambda: not served.tasks())
    assert not caplog.records


def test_close_ends_followers_and_waiters_and_leaves_no_task(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    lease = served.begin(run_id="a")
    served.say(lease, "one")
    follower, waiter, idle = served.connection(), served.connection(), served.connect()
    follower.request("GET", "/v1/runs/a/logs?follow=true")
    waiter.request("GET", "/v1/runs/a?wait=60")
    stream = follower.getresponse()
    assert messages(stream.readline()) == ["one"]
    wait_until(lambda: len(served.desk.bell._listeners.get("a", ())) == 2)
    served.close_control()
    assert stream.read().strip() == b"", "the stream did not end in order"
    with waiter.getresponse() as answer:
        assert json.loads(answer.read())["state"] == "running"
    assert idle.recv(1) == b""
    assert served.tasks() == set()
    assert not served.socket.exists()
    assert not caplog.records
    for each in (follower, waiter, idle):
        each.close()


def test_close_is_not_held_up_by_a_client_that_does_not_read(served: Served) -> None:
    lease = served.begin(run_id="a")
    for _ in range(8):
        served.say(lease, "x" * 1_000_000)
    connection = served.connection()
    connection.request("GET", "/v1/runs/a/logs?follow=true")
    wait_until(lambda: served.desk.bell._listeners)
    served.close_control()
    assert served.tasks() == set()
    connection.close()


def test_a_ledger_that_breaks_under_a_stream_cuts_it_off(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served.begin(run_id="a")
    connection = served.connection()
    connection.request("GET", "/v1/runs/a/logs?follow=true")
    response = connection.getresponse()

    async def broken(run_id: str) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(served.desk.ledger, "get", broken)
    served.ring("a")
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    assert [record.message for record in caplog.records] == ["log stream broke"]
    connection.close()
    assert "its log says why" in problem(served.call("GET", "/v1/runs/a"), 500)["detail"]


# -- HTTP


def test_what_is_no_call_of_ours_is_refused(served: Served) -> None:
    assert problem(served.call("GET", "/v1/nope"), 404)["detail"] == "GET /v1/nope: Not Found"
    answer = served.call("DELETE", "/v1/runs")
    problem(answer, 405)
    assert answer.headers["Allow"] == "GET,POST"


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_garbage_is_a_client_error(served: Served, sent: bytes) -> None:
    with served.connect() as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        status = sock.makefile("rb").readline()
    assert status == b"" or status.split()[1].startswith(b"4"), status
    assert served.get("/v1/status")["state"] == "running"


def test_a_client_that_leaves_in_the_middle_of_its_request_is_forgotten(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with served.connect() as sock:
        sock.sendall(b'POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"job":')
    wait_until(lambda: not served.tasks())
    assert run_ids(served) == []
    assert not caplog.records


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_works(served: Served) -> None:
    def curl(*args: str) -> Any:
        command = ["curl", "-sS", "--fail", "--unix-socket", str(served.socket), *args]
        return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)

    assert curl("http://localhost/v1/status")["state"] == "running"
    submitted = curl("http://localhost/v1/runs", "-d", '{"job": "export"}')
    assert curl(f"http://localhost/v1/runs/{submitted['run_id']}")["state"] == "queued"


# -- the socket and who may use it


def test_the_socket_is_for_owner_and_group(served: Served) -> None:
    assert stat.S_IMODE(served.socket.stat().st_mode) == 0o660


def test_a_socket_that_nobody_serves_is_replaced(short_dir: Path) -> None:
    path = short_dir / "control.sock"
    listen(path).close()
    assert path.is_socket()
    listen(path).close()


def test_a_socket_that_somebody_serves_is_left_alone(served: Served) -> None:
    with pytest.raises(RootLockedError, match="another daemon answers on this control socket"):
        listen(served.socket)
    assert served.get("/v1/status")["state"] == "running"


def test_what_is_in_the_place_of_the_socket_is_left_alone(short_dir: Path) -> None:
    (short_dir / "file").write_text("precious")
    with pytest.raises(SettingsError, match="is there and no socket"):
        listen(short_dir / "file")
    with pytest.raises(SettingsError, match="cannot listen there: No such file or directory"):
        listen(short_dir / "nowhere" / "control.sock")
    assert (short_dir / "file").read_text() == "precious"


async def test_a_socket_of_the_service_manager_is_served_and_kept(short_dir: Path) -> None:
    path = short_dir / "theirs.sock"
    control = Control(Desk(Settings(root=str(short_dir / "var"))), listener=listen(path))
    await control.start()
    await control.close()
    await control.close()
    assert path.is_socket()
    assert not (short_dir / "var" / "control.sock").exists()


def test_who_has_connected_before_the_close_may_still_ask(served: Served) -> None:
    with served.connect() as silent, served.connect() as slow, served.connect() as asking:
        asking.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert asking.recv(4096).startswith(b"HTTP/1.1 200 ")
        closing = threading.Thread(target=served.close_control)
        closing.start()
        wait_until(lambda: served.control._api.closing)
        slow.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = slow.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 ")
        # The client hears that the next request needs another connection.
        assert b"\r\nConnection: close\r\n" in answer
        assert slow.recv(4096) == b""
        closing.join(10)
        assert silent.recv(4096) == asking.recv(4096) == b""


async def test_close_before_start(short_dir: Path) -> None:
    await Control(Desk(Settings(root=str(short_dir)))).close()


def test_an_aiohttp_that_is_built_otherwise_is_imported_whole() -> None:
    script = """
import sys
sys.modules["aiohttp.web_app"] = None
from craft_easy_jobd.web import web
import aiohttp
print(web.Application.__name__, aiohttp.ClientSession.__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, timeout=60)
    assert done.stdout == b"Application ClientSession\n"
