"""The operator's command, as a process of its own against a real control socket."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from craft_easy_jobd import rendering
from craft_easy_jobd.daemon_cli import setting_docs
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.states import RunState
from craft_easy_jobd.status import RunningStatus
from craft_easy_jobs import __version__
from tests.jobd.serving import JOBS, TENANTS, Served, serving
from tests.support.waiting import wait_until

_BROKEN_CHAIN = """
import craft_easy_jobs.demo
from craft_easy_jobs import ChainStep, chain
chain(name="c", steps=[ChainStep(job="demo-export"), ChainStep(job="missing")])
"""
COMMAND = [sys.executable, "-m", "craft_easy_jobd"]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Done]


@pytest.fixture
def cli(short_dir: Path) -> Cli:
    """Run a command on the root of the test."""

    def run(line: str, *, root: bool = True, **environment: str) -> Done:
        words = shlex.split(line)
        options = ["--root", str(short_dir)] if root else []
        return command([*words[:1], *options, *words[1:]], cwd=short_dir, **environment)

    return run


def command(words: list[str], *, cwd: Path, **environment: str) -> Done:
    done = subprocess.run(
        [*COMMAND, *words],
        cwd=cwd,
        env={**os.environ, "TZ": "UTC", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def served(short_dir: Path) -> Iterator[Served]:
    with serving(short_dir) as served:
        yield served


# -- with no daemon


@pytest.mark.parametrize(
    "line",
    [
        "status",
        "status --json",
        "jobs",
        "chains",
        "tenants",
        "submit export",
        "submit --chain close",
        "list",
        "show a",
        "logs a -f",
        "wait a",
        "cancel a",
        "retry a",
        "drain",
        "stop",
    ],
)
def test_no_daemon_is_one_line_and_exit_code_3(cli: Cli, line: str) -> None:
    done = cli(line)
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("craft-easy-jobd: no daemon answers on /")
    assert done.err.endswith("start one: craft-easy-jobd serve\n")
    assert done.err.count("\n") == 1


def test_the_root_is_var_and_may_come_from_the_environment(cli: Cli, short_dir: Path) -> None:
    assert "on var/control.sock (" in cli("status", root=False).err
    assert "on /x/control.sock (" in cli("status", root=False, CRAFT_EASY_JOBD_ROOT="/x").err
    assert "on /y.sock (" in cli("status", CRAFT_EASY_JOBD_SOCKET="/y.sock").err
    assert "on /z.sock (" in cli("status --socket /z.sock", CRAFT_EASY_JOBD_SOCKET="/y.sock").err


def test_version_and_help(cli: Cli) -> None:
    assert cli("-V", root=False).out == cli("--version", root=False).out == f"craft-easy-jobd {__version__}\n"
    help_text = cli("-h", root=False).out
    names = "serve check status jobs chains tenants submit list show logs wait cancel retry drain stop"
    for name in names.split():
        assert f"\n  {name} " in help_text
        assert cli(f"{name} --help", root=False).code == 0


@pytest.mark.parametrize(
    "line",
    [
        "statsu",
        "submit",
        "submit export --chain close",
        "wait",
        "retry",
        "list --state happy",
        "list --limit 0",
        "submit export -p x",
    ],
)
def test_wrong_usage_is_exit_code_2(cli: Cli, line: str) -> None:
    done = cli(line, root=False)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err


# -- the daemon


def test_status_for_people(served: Served, cli: Cli) -> None:
    served.desk.problems.append("results: disk \x1b[2Jfull")
    served.desk.running.append(
        RunningStatus(
            run_id="r1",
            job="export",
            tenant_id="t1",
            scope="tenant",
            attempt=2,
            state=RunState.RUNNING,
            age_seconds=3.25,
            progress="row 5\nof 10\x07",
            percentage=50,
            worker="w1",
        )
    )
    done = cli("status")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"craft-easy-jobd {__version__}  pid {os.getpid()}  up 1h 2m  running"
    assert lines[2] == "generation 2  code 0123456789ab"
    assert "queued 0" in lines[3]
    assert lines[4] == "problem: results: disk ?[2Jfull"
    worker, run = (next(line.split() for line in lines if line.startswith(name)) for name in ("w1", "r1"))
    assert worker == ["w1", "4711", "2", "0123456789ab", "shared", "ready", "1/250", "1.5s", "48M", "1ms"]
    assert run == ["r1", "export", "t1", "running", "2", "3.2s", "w1", "50", "row", "5", "of", "10?"]


def test_reload_says_what_is_in_force_or_why_it_was_refused(served: Served, cli: Cli) -> None:
    done = cli("reload")
    assert (done.code, done.out, done.err) == (0, "generation 2  code 0123456789ab  jobs 3\n", "")
    assert cli("reload --json").document == {"generation": 2, "code_version": "0123456789ab", "jobs": 3}
    served.desk.refusal = "jobs module 'billing': syntax error: invalid syntax (billing.py:3)"
    done = cli("reload")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"craft-easy-jobd: {served.desk.refusal}\n"


def test_status_and_jobs_as_json(served: Served, cli: Cli) -> None:
    assert {"pid", "version", "state", "runs", "workers"} <= cli("status --json").document.keys()
    names = [job.name for job in JOBS]
    assert [job["name"] for job in cli("jobs --json").document] == names
    assert [line.split()[0] for line in cli("jobs").out.splitlines()] == ["JOB", *names]


def test_chains(served: Served, cli: Cli) -> None:
    close, send = cli("chains").out.split("\n\n")
    assert close.splitlines()[0] == "close  Closes a month"
    assert [line.split()[-1] for line in close.splitlines()[1:]] == ["settlement", "settlement"]
    assert "export" in close.splitlines()[2]
    assert send.startswith("send")
    assert [chain["name"] for chain in cli("chains --json").document] == ["close", "send"]


def test_tenants(served: Served, cli: Cli) -> None:
    done = cli("tenants")
    assert (done.code, done.out) == (1, "")
    assert "no tenant directory is configured; name one in the setting 'tenants'" in done.err
    served.desk.directory = TENANTS
    assert cli("tenants").out.splitlines() == [
        "TENANT        ACTIVE  NAME",
        "acme          yes     Acme Ltd",
        "  acme-north  yes     -",
        "gone          no      -",
        "t1            yes     -",
    ]
    assert [tenant["depth"] for tenant in cli("tenants --json").document] == [0, 1, 0, 0]


def test_status_imports_no_more_than_it_needs(served: Served, short_dir: Path) -> None:
    heavy = ["asyncio", "aiohttp", "msgspec", "uvloop", "jsonschema", "rich", "psutil", "sqlite3", "logging"]
    code = (
        "import sys; from craft_easy_jobd.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, "status", "--root", str(short_dir)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_stop(served: Served, cli: Cli) -> None:
    assert cli("stop").out == "draining\n"
    assert cli("stop --json").document == {"state": "draining", "ladder": 2}


def test_drain_again_is_no_stop(served: Served, cli: Cli) -> None:
    assert cli("drain").out == "draining\n"
    assert cli("drain --json").document == {"state": "draining", "ladder": 1}


def test_stop_waits_for_the_end_of_the_process_with_a_limit(served: Served, cli: Cli) -> None:
    done = cli("stop --wait --timeout 0.05")
    assert done.code == 124
    assert done.err == f"craft-easy-jobd: the daemon (pid {os.getpid()}) has not ended within 0.05 s\n"


# -- submit


def test_submit_prints_the_id(served: Served, cli: Cli) -> None:
    done = cli('submit export --tenant-id t1 --params \'{"a": 1, "b": 1}\' -p b=2 -p c=text --priority 7 --run-id r1')
    assert (done.code, done.out) == (0, "r1\n")
    assert done.err == "Its log: craft-easy-jobd logs -f r1\n"
    run = served.get("/v1/runs/r1")
    assert (run["tenant_id"], run["params"], run["priority"]) == ("t1", {"a": 1, "b": 2, "c": "text"}, 7)
    assert cli("submit export --print-id --run-id r2") == Done(0, "r2\n", "")
    assert cli("submit export --json --run-id r3") == Done(0, '{"run_id": "r3"}\n', "")


def test_submit_for_all_tenants_and_of_a_chain(served: Served, cli: Cli) -> None:
    served.desk.directory = TENANTS
    assert cli("submit statement --all-tenants --run-id f").out == "f\n"
    assert cli("submit --chain close -p period=2026-03 --tenant-id t1 --run-id c").out == "c\n"
    assert served.get("/v1/runs/f")["kind"] == "fan_out"
    run = served.get("/v1/runs/c")
    assert (run["kind"], run["job"], run["params"], run["tenant_id"]) == ("chain", "close", {"period": "2026-03"}, "t1")


def test_submit_for_later_and_without_a_check(served: Served, cli: Cli) -> None:
    run_id = cli("submit settlement -p period=7 --no-validate --not-before 2999-01-01T00:00:00Z --print-id").out.strip()
    assert served.get(f"/v1/runs/{run_id}")["state"] == "scheduled"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("submit exprt", "job: unknown job 'exprt'; did you mean 'export'?"),
        ("submit settlement -p period=7", "params.period: 7 is not of type 'string'"),
        ("submit export --not-before soon", "not_before: "),
        ("submit --chain clos", "chain: unknown chain 'clos'"),
        ("submit --chain close -p period=7", "steps.settlement.params.period: 7 is not of type 'string'"),
        ("submit statement", "tenant_id: job 'statement' has the scope 'tenant'"),
        ("submit export --run-id ../x", "run_id: "),
    ],
)
def test_submit_is_refused_in_one_line(served: Served, cli: Cli, line: str, text: str) -> None:
    done = cli(line)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"craft-easy-jobd: {text}")
    assert done.err.count("\n") == 1


def test_submit_drops_a_file_when_asked(cli: Cli, short_dir: Path) -> None:
    incoming = short_dir / "spool" / "incoming"
    incoming.mkdir(parents=True)
    done = cli("submit export --spool auto --run-id a --print-id")
    assert (done.code, done.out) == (0, "a\n")
    assert "no daemon answers" in done.err
    assert "the request waits in the spool" in done.err
    assert [json.loads(file.read_text())["run_id"] for file in incoming.iterdir()] == ["a"]


def start(short_dir: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, words[0], "--root", str(short_dir), *words[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("error", "code"), [(None, 0), ("no luck", 1)])
def test_submit_can_wait_for_the_end(served: Served, short_dir: Path, error: str | None, code: int) -> None:
    process = start(short_dir, "submit", "export", "--run-id", "a", "--wait")
    wait_until(lambda: served.desk.bell._listeners)
    served.end(served.claim(), error=error, reason=error and "exception")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, "")
    assert out == ("a  failed (exception): no luck\n" if error else "a  completed\n")


# -- runs


def test_list_and_show(served: Served, cli: Cli) -> None:
    served.end(served.begin(run_id="a", tenant_id="t1"), error="bad\x1b luck", reason="exception")
    served.begin(run_id="b", params={"n": 1})
    assert [line.split()[:4] for line in cli("list").out.splitlines()] == [
        ["RUN", "JOB", "TENANT", "STATE"],
        ["b", "export", "-", "running"],
        ["a", "export", "t1", "failed"],
    ]
    assert [run["run_id"] for run in cli("list --json --state failed --job export --tenant-id t1").document] == ["a"]
    assert [run["run_id"] for run in cli("list --json --limit 1").document] == ["b"]
    shown = dict(line.split(None, 1) for line in cli("show a").out.splitlines())
    assert (shown["state"], shown["reason"], shown["error"]) == ("failed", "exception", "bad? luck")
    assert dict(line.split(None, 1) for line in cli("show b").out.splitlines())["params"] == '{"n": 1}'
    assert cli("show a --json").document["error"] == "bad\x1b luck"


def blocks(text: str) -> list[list[str]]:
    return [block.splitlines() for block in text.rstrip().split("\n\n")]


def test_show_of_a_fan_out_has_a_line_for_each_tenant(served: Served, cli: Cli) -> None:
    served.desk.directory = TENANTS
    acme, north, t1 = served.begin_family(3, job="statement", run_id="f", all_tenants=True)
    served.end(north, error="no luck", reason="exception")

    def shown() -> tuple[dict[str, str], str, list[tuple[str, ...]]]:
        own, [counts], [heads, *rows] = blocks(cli("show f").out)
        assert heads.split() == ["TENANT", "OUTCOME", "REASON", "DURATION", "RUN"]
        cells = (row.split() for row in rows)
        lines = [(tenant, outcome, reason, run) for tenant, outcome, reason, _, run in cells]
        return dict(line.split(None, 1) for line in own), counts, lines

    own, counts, lines = shown()
    assert (own["kind"], counts) == ("fan_out", "failed 1  running 2")
    assert lines == [
        ("acme", "running", "-", "f.acme"),
        ("acme-north", "failed", "exception", "f.acme-north"),
        ("t1", "running", "-", "f.t1"),
    ]
    served.end(acme)
    served.end(t1)
    own, counts, lines = shown()
    assert (own["error"], counts) == ("1 of 3 tenants failed: acme-north", "completed 2  failed 1")
    assert "result" not in own
    assert lines == [
        ("acme", "completed", "-", "f.acme"),
        ("acme-north", "failed", "exception", "f.acme-north"),
        ("t1", "completed", "-", "f.t1"),
    ]
    assert [run["run_id"] for run in cli("list --parent f --json").document] == ["f.t1", "f.acme-north", "f.acme"]


def test_show_of_a_chain_draws_where_its_steps_are(served: Served, cli: Cli) -> None:
    [first] = served.begin_family(1, chain="close", run_id="c")

    def shown() -> tuple[str, str]:
        _, _, [name, settlement, export], rows = blocks(cli("show c").out)
        assert name == "close"
        assert [line.split()[0] for line in rows] == ["STEP", "settlement", "export"]
        return settlement.strip(), export.partition("export")[2].strip()

    assert shown() == ("settlement  running", "waiting  after settlement")
    served.end(first, error="no luck", reason="exception")
    settlement, export = (" ".join(line.split()) for line in shown())
    assert settlement == "settlement failed (exception)"
    assert export == "skipped (upstream_failed) after settlement"
    assert cli("retry c --failed").out == "c  queued\n"
    served.end(served.claim())
    settlement, export = (" ".join(line.split()) for line in shown())
    assert (settlement, export) == ("settlement completed", "queued after settlement")
    served.end(served.claim())
    assert shown()[1] == "completed  after settlement"
    assert served.get("/v1/runs/c")["state"] == "completed"


def test_show_as_json_has_the_same_rows_before_and_after_the_end(served: Served, cli: Cli) -> None:
    [first] = served.begin_family(1, chain="close", run_id="c")
    keys = ["name", "status", "reason", "run_id", "duration_seconds"]
    before = cli("show c --json").document["children"]
    assert [list(child) for child in before] == [keys, keys]
    assert list(before[1].values()) == ["export", "waiting", None, None, None]
    served.end(first)
    served.end(served.claim())
    run = cli("show c --json").document
    assert [list(child) for child in run["children"]] == [keys, keys]
    assert run["children"][1]["run_id"] == "c.export"


def test_show_of_a_chain_has_the_newest_run_of_a_step(served: Served, cli: Cli) -> None:
    [first] = served.begin_family(1, chain="send", run_id="s", tenant_id="t1")
    served.end(first, error="no luck", reason="exception")
    second = served.claim()
    old, new = first.spec.parent_run_id, second.spec.parent_run_id
    assert served.get(f"/v1/runs/{old}")["state"] == "failed"
    [row] = cli("show s --json").document["children"]
    assert (row["name"], row["status"], row["run_id"]) == ("statement", "running", new)


def test_show_of_a_chain_that_was_cancelled_in_the_queue(served: Served, cli: Cli) -> None:
    served.call("POST", "/v1/runs", {"chain": "close", "run_id": "c", "not_before": "2999-01-01T00:00:00Z"})
    assert cli("cancel c").out == "c  failed\n"
    assert [child["status"] for child in cli("show c --json").document["children"]] == ["skipped", "skipped"]
    served.desk.directory = TENANTS
    served.call("POST", "/v1/runs", {"job": "statement", "all_tenants": True, "run_id": "f"})
    assert cli("cancel f").code == 0
    assert cli("show f").out.endswith("TENANT  OUTCOME  REASON  DURATION  RUN\n")


@pytest.mark.parametrize("line", ["show nope", "logs nope", "wait nope", "cancel nope", "retry nope", "show '\x1b[2J'"])
def test_no_such_run_is_exit_code_4(served: Served, cli: Cli, line: str) -> None:
    done = cli(line)
    assert (done.code, done.out) == (4, "")
    assert done.err.startswith("craft-easy-jobd: no such run: ")
    assert "\x1b" not in done.err


def test_logs(served: Served, cli: Cli) -> None:
    lease = served.begin(run_id="a")
    served.say(lease, "one\x1b[31m\nforged line")
    served.say(lease, "half", level="progress", percentage=50)
    first, more, second = cli("logs a").out.splitlines()
    assert first.split(None, 2)[2] == "info      one?[31m"
    assert more == "    forged line"
    assert second.split(None, 2)[2] == "progress   50%  half"
    assert [json.loads(line)["message"] for line in cli("logs a --json").out.splitlines()] == [
        "one\x1b[31m\nforged line",
        "half",
    ]


def test_following_shows_lines_as_they_come_and_ends_with_the_run(served: Served, short_dir: Path) -> None:
    lease = served.begin(run_id="a")
    served.say(lease, "one")
    process = start(short_dir, "logs", "a", "-f")
    assert process.stdout
    assert process.stdout.readline().endswith("one\n")
    served.say(lease, "two")
    assert process.stdout.readline().endswith("two\n")
    served.end(lease)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("line", ["logs a -f", "wait a", "submit export --wait", "stop --wait", "drain --wait"])
def test_ctrl_c_ends_what_waits_for_the_daemon(served: Served, short_dir: Path, line: str) -> None:
    served.say(served.begin(run_id="a"), "one")
    process = start(short_dir, *line.split())
    wait_until(lambda: served.tasks() or served.desk.stops)
    # Python's own handler would be heard after the call that waits, if the signal comes just before it.
    wait_until(lambda: not _catches(process.pid, signal.SIGINT))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == -signal.SIGINT
    if "-f" in line:
        # Others are waited for until the time that they gave.
        wait_until(lambda: not served.tasks())


def _catches(pid: int, number: int) -> bool:
    caught = re.search(r"^SigCgt:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert caught
    return bool(int(caught[1], 16) & 1 << number - 1)


def test_a_reader_that_closes_the_pipe_is_no_traceback(served: Served, short_dir: Path) -> None:
    lease = served.begin(run_id="a")
    served.say(lease, *["x" * 1000] * 500)
    process = start(short_dir, "logs", "a")
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(20) == 1


def test_wait_tells_how_runs_ended(served: Served, cli: Cli) -> None:
    served.end(served.begin(run_id="a"), {"n": 1})
    served.end(served.begin(run_id="b"), error="no luck", reason="exception")
    assert cli("wait a") == Done(0, "a  completed\n", "")
    assert cli("wait a b") == Done(1, "a  completed\nb  failed (exception): no luck\n", "")
    assert cli("wait a --json").document["result"] == {"n": 1}


def test_wait_gives_up_after_its_timeout(served: Served, cli: Cli) -> None:
    served.begin(run_id="a")
    done = cli("wait a --timeout 0.05")
    assert (done.code, done.out) == (124, "")
    assert done.err.startswith("craft-easy-jobd: run a is running and has not ended within 0.0")


def test_cancel(served: Served, cli: Cli) -> None:
    served.begin(run_id="b")
    assert cli("cancel b").out == "b  stopping\n"
    assert cli("cancel b --force --json").document == {"run_id": "b", "state": "stopping"}
    assert served.desk.forced == ["b"]


def test_retry(served: Served, cli: Cli) -> None:
    for run_id in ("a", "b"):
        served.end(served.begin(run_id=run_id), error="no luck", reason="exception")
    assert cli("retry a b").out == "a  queued\nb  queued\n"
    assert cli("retry a --json").document == {"run_id": "a", "state": "queued"}
    served.end(served.begin(run_id="c", priority=1))
    done = cli("retry c")
    assert (done.code, done.out) == (1, "")
    assert done.err == "craft-easy-jobd: run c is completed; only a run that has failed can be run again\n"


@pytest.mark.parametrize(("error", "code"), [(None, 0), ("no luck", 1)])
def test_submit_waits_for_the_end_of_all_children(
    served: Served, short_dir: Path, error: str | None, code: int
) -> None:
    served.desk.directory = TENANTS
    process = start(short_dir, "submit", "statement", "--all-tenants", "--run-id", "f", "--wait")
    wait_until(lambda: served.desk.bell._listeners)
    first, *others = served.run(served.desk.ledger.claim, 3)
    served.end(first, error=error, reason=error and "exception")
    for lease in others:
        assert process.poll() is None
        served.end(lease)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ("f  failed (tenants_failed): 1 of 3 tenants failed: acme\n" if error else "f  completed\n")


def test_status_on_a_terminal(served: Served, short_dir: Path) -> None:
    reader, writer = pty.openpty()
    with os.fdopen(reader, "rb", closefd=True):
        done = subprocess.run([*COMMAND, "status", "--root", str(short_dir)], stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"craft-easy-jobd" in os.read(reader, 65536)


# -- the daemon's own commands


@pytest.mark.parametrize("name", ["serve", "check"])
def test_a_wrong_setting_is_one_line_and_exit_code_78(cli: Cli, name: str, short_dir: Path) -> None:
    (short_dir / "jobd.toml").write_text("slotz = 1\n")
    for line, text in (
        (f"{name} --slots many", "option --slots: slots: expected 'int', not 'many'"),
        (f"{name} --config jobd.toml", "jobd.toml: slotz: unknown setting; did you mean 'slots'?"),
        (f"{name} --config gone.toml", "gone.toml: cannot be read: No such file or directory"),
        (
            f"{name} --allowed-users nobody-at-all",
            "settings: allowed_users: there is no user 'nobody-at-all'; make the user or take the name out",
        ),
    ):
        assert cli(line) == Done(78, "", f"craft-easy-jobd: {text}\n")
    assert cli(name, CRAFT_EASY_JOBD_WORKERS="0").code == 78


def test_check_imports_the_jobs_in_a_process_of_their_own(cli: Cli, short_dir: Path) -> None:
    (short_dir / "good.py").write_text(
        "from craft_easy_jobs import job\n"
        "print('hello from the module')\n"
        "@job(name='good', description='does good')\n"
        "async def good(ctx): ...\n"
    )
    done = cli("check --jobs good.py --slots 7", CRAFT_EASY_JOB_JOBS="the.authors.own")
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["JOB", "good"]
    document = cli("check --jobs good.py --slots 7 --json").document
    assert (document["settings"]["slots"], [job["name"] for job in document["jobs"]]) == (7, ["good"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("raise SystemExit(0)", "bad.py"),
        ("from craft_easy_jobs import job\n@job(name='x')\ndef x(ctx): ...", "must be an async function"),
        (
            _BROKEN_CHAIN,
            "'missing'",
        ),
    ],
)
def test_check_tells_what_is_wrong_with_the_jobs(cli: Cli, short_dir: Path, text: str, message: str) -> None:
    (short_dir / "bad.py").write_text(text)
    done = cli("check --jobs bad.py")
    assert (done.code, done.out) == (78, "")
    assert message in done.err


def test_every_setting_is_explained() -> None:
    docs = setting_docs()
    assert list(docs) == list(Settings.__struct_fields__)
    assert all(docs.values())


# -- rendering


def test_no_text_of_a_run_steers_a_terminal(served: Served, short_dir: Path) -> None:
    evil = "a\x1b[31m \x9b31m\r\u2028\u202e\n2026-01-01  error  forged \x07\0\x7f"
    lease = served.begin(run_id="a", tenant_id=evil, params={"p": evil})
    served.say(lease, evil, level="warning")
    served.end(lease, error=evil, reason="exception")
    served.desk.problems.append(evil)
    served.desk.running.append(
        RunningStatus(
            run_id="a",
            job="export",
            tenant_id=evil,
            scope="tenant",
            attempt=1,
            state=RunState.RUNNING,
            age_seconds=0.1,
            progress=evil,
            percentage=5,
            worker="w1",
        )
    )
    for words in (["list"], ["show", "a"], ["logs", "a"], ["wait", "a"], ["status"]):
        for form in ([], ["--json"]):
            done = command([words[0], "--root", str(short_dir), *words[1:], *form], cwd=short_dir)
            lines = (done.out + done.err).split("\n")
            assert all(line.isprintable() for line in lines), (words, form, lines)
            assert not any(line.startswith("2026-01-01") for line in lines), (words, form, lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, None), (0, "0.0s"), (59.94, "59.9s"), (60, "1m 0s"), (3725, "1h 2m"), (90_000, "1d 1h")],
)
def test_durations(seconds: float | None, text: str | None) -> None:
    assert rendering.duration(seconds) == text


def test_tables_are_aligned_and_safe() -> None:
    assert rendering.table(("A", "B"), [("x\ty", None), ("\u202eevil", 1)]) == "A      B\nx y    -\n?evil  1"
