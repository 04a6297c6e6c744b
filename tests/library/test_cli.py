"""craft-easy-job as its users meet it: a process with arguments, signals, a terminal or none."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobs import __version__

PROJECT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "craft_easy_jobs"]
JOBS = "tests.library.runner_jobs"


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRAFT_EASY_JOB_")}
    return kept | {"PYTHONPATH": str(PROJECT)} | more


def craft(*args: str, given: str = "", cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args], input=given, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=30
    )


def run(name: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return craft("run", name, "--jobs", JOBS, *args, **options)


def params_of(*args: str, **options: Any) -> Any:
    process = run("echo", "--json", *args, **options)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)["params"]


@contextmanager
def running(name: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A run whose job has said READY."""
    command = [*COMMAND, "run", name, "--jobs", JOBS, "--json", *args]
    with subprocess.Popen(
        command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stderr is not None
            assert "READY" in process.stderr.readline()
            yield process
        finally:
            process.kill()


def end(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    stdout, stderr = process.communicate(timeout=30)
    return process.returncode, json.loads(stdout), stderr


def test_the_result_is_on_stdout_and_all_else_on_stderr() -> None:
    process = run("echo", "--tenant-id", "t1", "--scope", "parent_tenant", "--run-id", "mine", "-p", "period=x")
    result = json.loads(process.stdout)
    assert process.returncode == 0
    assert list(result)[:3] == ["job_name", "run_id", "status"]
    assert result["result"] == {
        "params": {"period": "x"},
        "tenants": ["t1"],
        "scope": "parent_tenant",
        "run_id": "mine",
        "attempt": 1,
    }
    assert (result["run_id"], result["tenant_id"], result["scope"]) == ("mine", "t1", "parent_tenant")
    assert len(result["code_version"]) == 12
    assert process.stdout.startswith('{\n  "job_name"')
    assert "printed by the job\n" in process.stderr
    assert "printed by a child\n" in process.stderr
    assert re.search(r"^echo completed in \d+\.\d s$", process.stderr, re.MULTILINE)


def test_json_is_one_line() -> None:
    process = run("talkative", "--json")
    assert process.stdout.count("\n") == 1
    assert json.loads(process.stdout)["status"] == "completed"


def test_params_come_from_json_file_stdin_and_pairs(tmp_path: Path) -> None:
    file = tmp_path / "params.json"
    file.write_text('{"period": "2026-03", "a": 1}')
    assert params_of("--params", '{"a": 1}') == {"a": 1}
    assert params_of("--params", f"@{file}", "-p", "a=2") == {"period": "2026-03", "a": 2}
    assert params_of("--params", "-", given='{"a": [1]}') == {"a": [1]}
    pairs = ["-p", "n=12", "-p", "text=2026-03", "-p", 'quoted="12"', "-p", "list=[1]", "-p", "eq=a=b", "-p", "no="]
    assert params_of(*pairs) == {"n": 12, "text": "2026-03", "quoted": "12", "list": [1], "eq": "a=b", "no": ""}


def test_params_are_checked_unless_told_not_to() -> None:
    process = run("echo", "-p", "period=3")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "Error: job 'echo': params.period: 3 is not of type 'string'\n"
    assert params_of("-p", "period=3", "--no-validate") == {"period": 3}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["run", "flakey", "--jobs", JOBS], "Error: unknown job 'flakey'; did you mean 'flaky'?"),
        (["run", "echo"], "Error: there are no jobs: no module was named. Give --jobs MODULE"),
        (["list"], "Error: there are no jobs: no module was named. Give --jobs MODULE"),
        (["list", "--jobs", "json"], "there are no jobs: none of json declares one with @job"),
        (["run", "echo", "--jobs", "gone_missing"], "Error: jobs module 'gone_missing': there is no module"),
        (["run", "echo", "--jobs", JOBS, "--params", "[1]"], "Error: params: give a JSON object"),
        (["run", "echo", "--jobs", JOBS, "--params", "{"], "Error: params: this is not JSON: Expecting"),
        (["run", "echo", "--jobs", JOBS, "--params", '{"a": NaN}'], "this is not JSON: NaN is no JSON number"),
        (["run", "echo", "--jobs", JOBS, "--params", "@gone.json"], "Error: params: cannot read @gone.json: "),
        (["run", "echo", "--jobs", JOBS, "--params", "-"], "Error: params: this is not JSON in -"),
        (["run", "echo", "--jobs", JOBS, "-p", "period"], "Error: params: -p takes key=value, not 'period'"),
        (["run", "echo", "--jobs", JOBS, "-p", "=1"], "-p takes key=value"),
        (["run", "echo", "--jobs", JOBS, "--scope", "world"], "'world' is not one of"),
        (["run", "echo", "--jobs", JOBS, "--run-id", "../x"], "Invalid value for '--run-id'"),
        (["run", "--jobs", JOBS], "Missing argument 'NAME'"),
        (["run", "echo", "--job", JOBS], "No such option"),
        (["runn"], "No such command 'runn'"),
    ],
)
def test_wrong_usage_is_told_in_a_few_lines(args: list[str], told: str, tmp_path: Path) -> None:
    process = craft(*args, cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert told in process.stderr
    assert "Traceback" not in process.stderr


def test_a_failure_is_told_with_its_place_and_on_request_with_its_traceback() -> None:
    process = run("fails", "--json")
    assert process.returncode == 1
    assert re.search(
        r"^fails failed \(exception\) in .*: ValueError: no rows in table \(runner_jobs\.py:\d+\)$",
        process.stderr,
        re.MULTILINE,
    )
    assert "Traceback" not in process.stderr
    assert "Traceback (most recent call last)" in run("fails", "--json", "-v").stderr


def test_a_broken_module_shows_its_traceback_on_request(tmp_path: Path) -> None:
    (tmp_path / "broken_jobs.py").write_text("import json\nprint('hello')\njson.loads('x')\n")
    process = craft("list", "--jobs", "broken_jobs", cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("hello\nError: jobs module 'broken_jobs': JSONDecodeError: ")
    assert f"({tmp_path}/broken_jobs.py:3)" in process.stderr
    assert "Traceback" in craft("list", "--jobs", "broken_jobs.py", "-v", cwd=tmp_path).stderr


def test_modules_can_be_named_in_the_environment() -> None:
    process = craft("run", "echo", "--json", CRAFT_EASY_JOB_JOBS=f" {JOBS} ,craft_easy_jobs.demo,")
    assert process.returncode == 0
    listed = craft("list", "--json", CRAFT_EASY_JOB_JOBS="gone_missing")
    assert "gone_missing" in listed.stderr
    assert craft("list", "--jobs", JOBS, CRAFT_EASY_JOB_JOBS="gone_missing").returncode == 0


def test_list_shows_options_parameters_and_chains() -> None:
    process = craft("list", "--jobs", "craft_easy_jobs.demo")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines()[:5] == [
        "demo-settlement  Settle a billing period for one tenant, with progress",
        "    timeout 60 s, retries 2, scope tenant, per tenant, isolation shared",
        r'    -p period: string, pattern "^\\d{4}-\\d{2}$" - billing period, YYYY-MM',
        "demo-export  Export rows until it is done or asked to stop",
        "    timeout 60 s, retries 0, scope system, isolation shared",
    ]
    assert process.stdout.endswith("    demo-settlement, demo-export, demo-flaky\n")
    listed = json.loads(craft("list", "--json", "--jobs", "craft_easy_jobs.demo").stdout)
    settlement = listed["jobs"][0]
    assert (settlement["name"], settlement["timeout_seconds"], settlement["per_tenant"]) == (
        "demo-settlement",
        60,
        True,
    )
    assert settlement["parameters"]["period"]["type"] == "string"
    assert [chain["name"] for chain in listed["chains"]] == ["demo-month-end"]
    assert listed["chains"][0]["steps"][0]["job"] == "demo-settlement"


def test_a_memory_limit_is_listed_and_that_it_is_not_held_here_is_told(tmp_path: Path) -> None:
    source = "from craft_easy_jobs import *\n@job(name='a', memory_limit_mb=64)\nasync def a(ctx): ...\n"
    (tmp_path / "my_jobs.py").write_text(source + "chain('c', steps=[ChainStep('a')])\n")
    listed = craft("list", "--jobs", "my_jobs.py", cwd=tmp_path).stdout
    assert "isolation process, memory 64 MB\n" in listed
    note = "note: craft-easy-jobd holds job 'a' to 64 MB of memory; here it has no limit\n"
    for command in (["run", "a"], ["chain", "run", "c"]):
        process = craft(*command, "--json", "--jobs", "my_jobs.py", cwd=tmp_path)
        assert (process.returncode, json.loads(process.stdout)["status"]) == (0, "completed")
        assert process.stderr.startswith(note)
    assert craft("chain", "run", "gone", "--jobs", "my_jobs.py", cwd=tmp_path).returncode == 2


def test_list_finds_what_is_declared_wrongly(tmp_path: Path) -> None:
    source = "from craft_easy_jobs import *\n@job(name='a', params_schema=SCHEMA)\nasync def a(ctx): ...\n"
    chained = "chain('c', steps=[ChainStep('a'), ChainStep('gone')])\n"
    (tmp_path / "my_jobs.py").write_text(source.replace("SCHEMA", "None") + chained)
    process = craft("list", "--jobs", "my_jobs.py", cwd=tmp_path)
    assert process.returncode == 1
    assert process.stdout.startswith("a\n    timeout 300 s")
    assert re.fullmatch(
        r"Error: chain 'c' at .*my_jobs\.py:4: the job 'gone' of a step is not registered\n", process.stderr
    )
    (tmp_path / "my_jobs.py").write_text(source.replace("SCHEMA", "{'x': {'type': 'strin'}}"))
    process = craft("list", "--jobs", "my_jobs.py", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith("Error: job 'a': params_schema.x.type: 'strin' is not valid")


def test_live_output_is_plain_lines_without_control_characters() -> None:
    lines = run("talkative").stderr.splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines[:-1]] == [
        "info     first [31mred[0m",
        "    second [bold]line[/bold]",
        "warning  careful",
        "error    row 42",
        "progress  50% half-way",
        "info     between [bold]bars[/bold]",
        "progress 100% there",
    ]


@pytest.mark.parametrize(("args", "bar"), [([], True), (["--json"], False)])
def test_a_terminal_shows_a_bar(args: list[str], bar: bool) -> None:
    shown, returncode = on_a_terminal("talkative", *args)
    assert returncode == 0
    assert ("━" in shown) is bar
    assert ("\x1b[2K" in shown) is bar
    assert "second [bold]line[/bold]" in shown
    assert "\x1b[31m" not in shown
    assert re.search(r"info     between \[bold\]bars\[/bold\]\r?\n", shown)
    assert "there" in shown


def on_a_terminal(*args: str) -> tuple[str, int]:
    """What a run shows on a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, "run", *args, "--jobs", JOBS]
    env = environment(TERM="xterm", COLUMNS="100")
    with subprocess.Popen(command, env=env, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 30)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # EIO: nobody holds the other end any more
                break
        os.close(ours)
    return shown.decode(), process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_the_job_to_stop(number: signal.Signals) -> None:
    with running("polls") as process:
        process.send_signal(number)
        code, result, stderr = end(process)
    assert (code, result["status"], result["reason"], result["result"]) == (0, "completed", "stopped", "obeyed")
    assert "Asked the job to stop; once more to cut it off." in stderr


@pytest.mark.parametrize("name", ["deaf", "hears-elsewhere"])
def test_the_second_signal_cuts_the_job(name: str) -> None:
    with running(name) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "Asked the job to stop" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        code, result, stderr = end(process)
    assert (code, result["status"], result["reason"], result["attempts"]) == (1, "failed", "cancelled", 1)
    assert "Cutting it off." in stderr


def test_a_job_that_blocks_the_loop_hears_of_signals_and_is_cut() -> None:
    with running("blocks-long") as process:
        for text in ("Asked the job", "Cutting it off"):
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            while text not in process.stderr.readline():
                pass
        code, result, _ = end(process)
    assert (code, result["reason"]) == (1, "cancelled")
    assert "it blocks the event loop at " in result["error"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (
            "blocks",
            r"timed out after 1 s and did not end within 0.2 s of that; it blocks the event loop at .*_jobs.py:\d+",
        ),
        ("refuses", "timed out after 1 s and did not end within 0.2 s of that"),
        ("threads", "timed out after 1 s"),
    ],
)
def test_a_job_that_does_not_end_is_ended(name: str, error: str) -> None:
    process = run(name, "--json")
    result = json.loads(process.stdout)
    assert (process.returncode, result["status"], result["reason"]) == (124, "failed", "timed_out")
    assert re.fullmatch(error, result["error"])
    assert f"{name} failed (timed_out)" in process.stderr


def test_a_reader_of_the_log_that_leaves_does_not_fail_the_job() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, "run", "talkative", "--jobs", JOBS, "--json"]
    process = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=writer, timeout=30)
    os.close(writer)
    assert (process.returncode, json.loads(process.stdout)["status"]) == (0, "completed")


def test_version_and_help() -> None:
    assert craft("--version").stdout == f"craft-easy-job {__version__}\n"
    assert "Exit codes: 0 completed, 1 failed, 2 nothing was run" in " ".join(craft("run", "--help").stdout.split())
    assert craft("-h").returncode == 0


@pytest.mark.parametrize("demo", ["demo-settlement", "demo-export", "demo-flaky", "demo-overrun"])
def test_the_examples_do_what_they_say(demo: str) -> None:
    tenant = ["--tenant-id", "acme"] if demo == "demo-settlement" else []
    process = craft("run", demo, "--jobs", "craft_easy_jobs.demo", "--json", *tenant)
    result = json.loads(process.stdout)
    told = (process.returncode, result["status"], result["reason"], result["attempts"])
    assert told == {"demo-flaky": (0, "completed", None, 3), "demo-overrun": (124, "failed", "timed_out", 1)}.get(
        demo, (0, "completed", None, 1)
    )


HEAVY = {"asyncio", "uvloop", "rich", "jsonschema", "msgspec", "aiohttp"}


@pytest.mark.parametrize(
    "code",
    [
        "import craft_easy_jobs",
        "from craft_easy_jobs import job, chain, ChainStep",
        "import craft_easy_jobs.cli",
        "import sys; sys.argv = ['x', 'run', '--help']; from craft_easy_jobs.cli import main",
    ],
)
def test_imports_stay_light(code: str) -> None:
    ending = "main()" if "main" in code else "None"
    script = f"{code}\nimport sys\ntry: {ending}\nexcept SystemExit: pass\nprint('', *sys.modules, file=sys.stderr)"
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=30
    )
    loaded = set(process.stderr.split())
    assert process.returncode == 0
    assert "craft_easy_jobs" in loaded
    assert not loaded & HEAVY
