"""The operator's command, as a process of its own against a real control socket."""

import json
import os
import pty
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
from tests.jobd.serving import Served, serving
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
    ["status", "status --json", "jobs", "submit export", "list", "show a", "logs a -f", "wait a", "cancel a", "stop"],
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
    for name in ("serve", "check", "status", "jobs", "submit", "list", "show", "logs", "wait", "cancel", "stop"):
        assert f"\n  {name} " in help_text
        assert cli(f"{name} --help", root=False).code == 0


@pytest.mark.parametrize(
    "line", ["statsu", "submit", "wait", "list --state happy", "list --limit 0", "submit export -p x"]
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
    assert "queued 0" in lines[2]
    assert lines[3] == "problem: results: disk ?[2Jfull"
    worker, run = (next(line.split() for line in lines if line.startswith(name)) for name in ("w1", "r1"))
    assert worker == ["w1", "4711", "shared", "ready", "1/250", "1.5s", "48M", "1ms"]
    assert run == ["r1", "export", "t1", "running", "2", "3.2s", "w1", "50", "row", "5", "of", "10?"]


def test_status_and_jobs_as_json(served: Served, cli: Cli) -> None:
    assert {"pid", "version", "state", "runs", "workers"} <= cli("status --json").document.keys()
    assert [job["name"] for job in cli("jobs --json").document] == ["export", "settlement"]
    assert [line.split()[0] for line in cli("jobs").out.splitlines()] == ["JOB", "export", "settlement"]


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


def test_submit_for_later_and_without_a_check(served: Served, cli: Cli) -> None:
    run_id = cli("submit settlement -p period=7 --no-validate --not-before 2999-01-01T00:00:00Z --print-id").out.strip()
    assert served.get(f"/v1/runs/{run_id}")["state"] == "scheduled"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("submit exprt", "job: unknown job 'exprt'; did you mean 'export'?"),
        ("submit settlement -p period=7", "params.period: 7 is not of type 'string'"),
        ("submit export --not-before soon", "not_before: "),
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
    out, err = process.communicate(timeout=20)
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


@pytest.mark.parametrize("line", ["show nope", "logs nope", "wait nope", "cancel nope", "show '\x1b[2J'"])
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
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0


def test_following_ends_with_ctrl_c(served: Served, short_dir: Path) -> None:
    served.say(served.begin(run_id="a"), "one")
    process = start(short_dir, "logs", "a", "-f")
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=20)[1]
    assert process.returncode == 130
    wait_until(lambda: not served.tasks())


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, None), (0, "0.0s"), (59.94, "59.9s"), (60, "1m 0s"), (3725, "1h 2m"), (90_000, "1d 1h")],
)
def test_durations(seconds: float | None, text: str | None) -> None:
    assert rendering.duration(seconds) == text


def test_tables_are_aligned_and_safe() -> None:
    assert rendering.table(("A", "B"), [("x\ty", None), ("\u202eevil", 1)]) == "A      B\nx y    -\n?evil  1"
