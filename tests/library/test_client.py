"""The client: over a real control socket, and over the spool when nobody answers."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from craft_easy_jobs.client import Client
from craft_easy_jobs.errors import ApiError, CraftEasyJobsError, DaemonUnavailableError, RequestError
from craft_easy_jobs.model import JobResult, decode_request, encode_result
from craft_easy_jobs.places import Places, find_places
from tests.jobd.serving import JOBS, TENANTS, Served, serving
from tests.support.waiting import wait_until


@pytest.fixture
def served(short_dir: Path) -> Iterator[Served]:
    with serving(short_dir) as served:
        yield served


@pytest.fixture
def client(short_dir: Path) -> Client:
    return Client(root=str(short_dir))


def incoming(root: Path) -> Path:
    folder = root / "spool" / "incoming"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_without_a_root_the_service_is_found_where_no_daemon_has_been(tmp_path: Path) -> None:
    service = Places(tmp_path / "control.sock", tmp_path / "incoming", tmp_path / "results")
    development = tmp_path / "var"

    def found(root: str | None = None) -> Places:
        return find_places(root, development=development, service=service)

    below_var = Places(development / "control.sock", development / "spool/incoming", development / "results")
    assert found() == below_var
    service.incoming.mkdir()
    assert found() == service
    assert found("/elsewhere").socket == Path("/elsewhere/control.sock")
    development.mkdir()
    assert found() == service
    below_var.incoming.mkdir(parents=True)
    assert found() == below_var


# -- with a daemon


def test_status_jobs_drain_and_stop(served: Served, client: Client) -> None:
    assert client.status()["pid"] == os.getpid()
    assert [job["name"] for job in client.jobs()] == [job.name for job in JOBS]
    assert client.drain() == {"state": "draining", "ladder": 1}
    assert client.stop() == {"state": "draining", "ladder": 2}


def test_the_socket_may_lie_elsewhere(served: Served, short_dir: Path) -> None:
    assert Client(str(short_dir / "control.sock"), root="/nowhere").status()["state"] == "running"


def test_submit_passes_everything_on(served: Served, client: Client) -> None:
    later = datetime(2999, 1, 1, tzinfo=UTC)
    run_id = client.submit("settlement", {"period": "2026-03"}, tenant_id="t1", priority=5, not_before=later)
    run = client.get(run_id)
    assert (run["job"], run["params"], run["tenant_id"], run["priority"]) == (
        "settlement",
        {"period": "2026-03"},
        "t1",
        5,
    )
    assert (run["state"], run["next_at"]) == ("scheduled", "2999-01-01T00:00:00.000000+00:00")


def test_chains_and_tenants(served: Served, client: Client) -> None:
    assert [chain["name"] for chain in client.chains()] == ["close", "send"]
    with pytest.raises(ApiError, match="no tenant directory is configured") as caught:
        client.tenants()
    assert caught.value.status == 404
    served.desk.directory = TENANTS
    assert [tenant["id"] for tenant in client.tenants()] == ["acme", "acme-north", "gone", "t1"]


def test_submit_for_all_tenants_and_of_a_chain(served: Served, client: Client) -> None:
    served.desk.directory = TENANTS
    assert client.get(client.submit("statement", all_tenants=True))["kind"] == "fan_out"
    run = client.get(client.submit(chain="close", params={"period": "2026-03"}, tenant_id="t1"))
    assert (run["kind"], run["job"], run["params"], run["tenant_id"]) == ("chain", "close", {"period": "2026-03"}, "t1")
    with pytest.raises(ApiError, match="give exactly one of 'job' and 'chain'"):
        client.submit("export", chain="close")


def test_a_chain_may_be_dropped(client: Client, short_dir: Path) -> None:
    folder = incoming(short_dir)
    client.submit(chain="close", all_tenants=True, spool="auto")
    [file] = folder.iterdir()
    request = decode_request(file.read_bytes())
    assert (request.job, request.chain, request.all_tenants) == (None, "close", True)


def test_submit_is_refused_with_the_daemons_words(served: Served, client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.submit("settlement", {"period": 7})
    assert (caught.value.status, caught.value.field) == (422, "params.period")
    client.submit("settlement", {"period": 7}, validate=False, run_id="once")
    with pytest.raises(ApiError, match="'once' was used before") as caught:
        client.submit("export", run_id="once")
    assert caught.value.status == 409
    with pytest.raises(ApiError, match="no such run: nope"):
        client.get("nope")


def test_params_that_json_cannot_hold_are_named(client: Client) -> None:
    for params in ({"n": float("nan")}, {"s": {1, 2}}):
        with pytest.raises(RequestError, match="params: JSON cannot hold them"):
            client.submit("export", params)


def test_submit_many_answers_each_in_order(served: Served, client: Client) -> None:
    requests = [{"job": "export", "run_id": f"r{number}"} for number in range(2300)]
    requests[1500] = {"job": "nope"}
    answers = client.submit_many(requests)
    refused = answers.pop(1500)
    assert answers == [f"r{number}" for number in range(2300) if number != 1500]
    assert isinstance(refused, ApiError)
    assert (refused.status, refused.field) == (422, "job")


def test_runs_go_on_from_page_to_page(served: Served, client: Client) -> None:
    client.submit_many({"job": "export", "run_id": f"r{number}", "tenant_id": "t"} for number in range(2300))
    newest_first = [f"r{number}" for number in reversed(range(2300))]
    assert [run["run_id"] for run in client.runs(limit=None)] == newest_first
    assert [run["run_id"] for run in client.runs(limit=1200, tenant_id="t")] == newest_first[:1200]
    assert list(client.runs(states=["failed", "completed"])) == []


def test_wait_returns_the_result(served: Served, client: Client) -> None:
    lease = served.begin(run_id="a")
    results: list[JobResult] = []
    waiter = threading.Thread(target=lambda: results.append(client.wait("a", timeout=30)))
    waiter.start()
    wait_until(lambda: served.desk.bell._listeners)
    served.say(lease, "hello")
    served.end(lease, {"n": 1})
    waiter.join(30)
    [result] = results
    assert (result.run_id, result.status, result.result) == ("a", "completed", {"n": 1})
    assert [entry["message"] for entry in result.logs] == ["hello"]


def test_wait_has_a_limit(served: Served, client: Client) -> None:
    served.begin(run_id="a")
    with pytest.raises(TimeoutError, match=r"run a is running and has not ended within 0\.05 s"):
        client.wait("a", timeout=0.05)
    with pytest.raises(ApiError, match="run a is running and has no result yet"):
        client.result("a")


def test_logs_and_following(served: Served, client: Client) -> None:
    lease = served.begin(run_id="a")
    served.say(lease, "one", "two")
    assert [entry["message"] for entry in client.logs("a")] == ["one", "two"]
    following = client.logs("a", follow=True)
    assert [next(following)["message"], next(following)["message"]] == ["one", "two"]
    served.say(lease, "three")
    assert next(following)["message"] == "three"
    served.end(lease)
    assert list(following) == []


def test_a_follower_may_leave(served: Served, client: Client) -> None:
    served.say(served.begin(run_id="a"), "one")
    following = client.logs("a", follow=True)
    next(following)
    following.close()  # type: ignore[attr-defined]
    wait_until(lambda: not served.tasks())


def test_cancel(served: Served, client: Client) -> None:
    client.submit("export", run_id="a")
    assert client.cancel("a") == "failed"
    served.begin(run_id="b")
    assert client.cancel("b", force=True) == "stopping"
    assert served.desk.forced == ["b"]


def test_retry(served: Served, client: Client) -> None:
    lease = served.begin(run_id="a")
    served.end(lease, error="no", reason="exception")
    assert client.retry("a") == "queued"
    served.end(served.claim())
    with pytest.raises(ApiError, match="run a is completed; only a run that has failed") as caught:
        client.retry("a")
    assert caught.value.status == 409


def test_wait_returns_the_table_of_a_fan_out(served: Served, client: Client) -> None:
    served.desk.directory = TENANTS
    [acme, north, t1] = served.begin_family(3, job="statement", run_id="f", all_tenants=True)
    results: list[JobResult] = []
    waiter = threading.Thread(target=lambda: results.append(client.wait("f", timeout=30)))
    waiter.start()
    wait_until(lambda: served.desk.bell._listeners)
    served.end(acme, error="no", reason="exception")
    served.end(north)
    assert not results
    served.end(t1)
    waiter.join(30)
    [result] = results
    assert (result.status, result.result["counts"]) == ("failed", {"completed": 2, "failed": 1})
    assert result.result["tenants"]["acme"]["reason"] == "exception"


# -- without one


def test_nobody_there_is_one_clear_error(client: Client, short_dir: Path) -> None:
    calls = [
        client.status,
        client.jobs,
        client.chains,
        client.tenants,
        client.stop,
        lambda: client.submit("export"),
        lambda: client.submit_many([{"job": "export"}]),
        lambda: client.get("a"),
        lambda: list(client.runs()),
        lambda: client.wait("a"),
        lambda: client.result("a"),
        lambda: client.cancel("a"),
        lambda: client.retry("a"),
        lambda: list(client.logs("a")),
    ]
    for call in calls:
        with pytest.raises(DaemonUnavailableError, match=r"no daemon answers on .*control\.sock \(No such file"):
            call()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(short_dir / "control.sock"))
    left.close()
    with pytest.raises(DaemonUnavailableError, match="Connection refused"):
        client.status()


def test_a_path_that_is_too_long_is_said() -> None:
    with pytest.raises(DaemonUnavailableError, match="path too long"):
        Client("/" + "s" * 200).status()


@contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[None]:
    """A server that says these bytes to one caller after the other and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_a_daemon_that_dies_in_mid_answer_is_no_traceback(client: Client, short_dir: Path, answer: bytes) -> None:
    with answering(short_dir / "control.sock", answer), pytest.raises(DaemonUnavailableError):
        client.status()


def test_a_stream_that_breaks_gives_what_came_and_then_the_error(client: Client, short_dir: Path) -> None:
    entry = json.dumps({"message": "one"}).encode() + b"\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with answering(short_dir / "control.sock", head + b"%x\r\n%b\r\n" % (len(entry), entry)):
        following = client.logs("a", follow=True)
        assert next(following)["message"] == "one"
        with pytest.raises(DaemonUnavailableError, match="broke off in mid-answer"):
            next(following)


def test_a_refusal_that_is_no_problem_document_is_shown(client: Client, short_dir: Path) -> None:
    answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nproxy"
    with answering(short_dir / "control.sock", answer), pytest.raises(ApiError, match="answered 502: prox"):
        client.status()


def test_a_silent_daemon_is_given_up(client: Client, short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "control.sock"))
        listener.listen()
        with pytest.raises(DaemonUnavailableError, match=r"no answer within 0\.05 s"):
            client._daemon.call("GET", "/v1/status", timeout=0.05)


@contextmanager
def crowded(path: Path) -> Iterator[socket.socket]:
    """A control socket that nobody serves for now, with as many clients waiting as it holds."""
    with ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                waiting.connect(str(path))
        yield listener


def test_where_many_wait_already_a_client_waits_as_long_as_for_an_answer(client: Client, short_dir: Path) -> None:
    with crowded(short_dir / "control.sock"):
        begun = time.monotonic()
        with pytest.raises(DaemonUnavailableError, match=r"no answer within 0\.3 s"):
            client._daemon.call("GET", "/v1/status", timeout=0.3)
        assert time.monotonic() - begun >= 0.3


def test_who_waits_where_many_do_gets_an_answer_in_the_end(client: Client, short_dir: Path) -> None:
    answers: list[object] = []
    with crowded(short_dir / "control.sock") as listener:
        asking = threading.Thread(target=lambda: answers.append(client.status()))
        asking.start()
        listener.settimeout(30)
        while asking.is_alive():
            connection, _ = listener.accept()
            with connection:
                # Those who only wait say nothing.
                connection.settimeout(0.5)
                with suppress(TimeoutError):
                    assert connection.recv(4096).startswith(b"GET /v1/status ")
                    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"pid": 1234}')
                    asking.join(30)
    assert answers == [{"pid": 1234}]


# -- the spool and the results


def test_drop_leaves_a_whole_request_and_nothing_else(client: Client, short_dir: Path) -> None:
    folder = incoming(short_dir)
    run_id = client.drop({"job": "export", "params": {"n": 1}, "tenant_id": "t1"})
    [file] = folder.iterdir()
    request = decode_request(file.read_bytes())
    assert (request.job, request.run_id, request.params, request.tenant_id) == ("export", run_id, {"n": 1}, "t1")
    assert file.suffix == ".json"
    assert stat.S_ISREG(file.lstat().st_mode)
    assert file.stat().st_nlink == 1


def test_drop_does_not_replace_a_request_that_waits(client: Client, short_dir: Path) -> None:
    folder = incoming(short_dir)
    for job in ("export", "settlement"):
        assert client.drop({"job": job, "run_id": "same"}) == "same"
    assert sorted(decode_request(file.read_bytes()).job or "" for file in folder.iterdir()) == ["export", "settlement"]


def test_drop_refuses_what_is_no_request(client: Client, short_dir: Path) -> None:
    folder = incoming(short_dir)
    for request, field in (({"job": 7}, "job"), ({}, "job"), ({"job": "export", "run_id": "../x"}, "run_id")):
        with pytest.raises(RequestError) as caught:
            client.drop(request)
        assert caught.value.field == field
    assert list(folder.iterdir()) == []


def test_drop_names_what_is_in_its_way(client: Client, short_dir: Path) -> None:
    with pytest.raises(DaemonUnavailableError, match=r"spool/incoming \(no such folder\)"):
        client.drop({"job": "export"})
    (short_dir / "spool").write_text("")
    with pytest.raises(CraftEasyJobsError, match=r"cannot drop a request into .*: Not a directory"):
        client.drop({"job": "export"})


def test_submit_drops_only_when_asked(client: Client, short_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = incoming(short_dir)
    with pytest.raises(DaemonUnavailableError):
        client.submit("export")
    assert list(folder.iterdir()) == []
    run_id = client.submit("export", run_id="a", spool="auto")
    assert run_id == "a"
    assert "the request waits in the spool" in caplog.text
    assert len(list(folder.iterdir())) == 1


def test_submit_may_leave_the_daemon_out(served: Served, client: Client, short_dir: Path) -> None:
    folder = incoming(short_dir)
    client.submit("export", spool="auto")
    assert list(folder.iterdir()) == []
    client.submit("export", spool="always")
    assert len(list(folder.iterdir())) == 1


def test_results_are_read_from_their_files_when_the_daemon_is_down(client: Client, short_dir: Path) -> None:
    now = datetime.now(UTC)
    expected = JobResult("export", "a", "completed", now, now, 0.0, {"n": 1}, None, [])
    (short_dir / "results").mkdir()
    (short_dir / "results" / "a.json").write_bytes(encode_result(expected))
    assert client.result("a") == expected
    (short_dir / "secret.json").write_bytes(encode_result(expected))
    for missing in ("b", "../secret"):
        with pytest.raises(DaemonUnavailableError):
            client.result(missing)


def test_importing_the_client_brings_no_loop_and_no_server() -> None:
    heavy = ["asyncio", "aiohttp", "msgspec", "uvloop", "jsonschema", "rich"]
    code = f"import sys, craft_easy_jobs.client; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
