"""craft-easy-job with tenants and chains, as its users meet it."""

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.library.test_cli import COMMAND, craft, environment

JOBS = ("--jobs", "tests.library.family_jobs")
TENANTS = ("--tenants", "tests.library.family_jobs:tenants")

TREE = """\
group  The group
  north
  off  (not active)
  south
"""

DIAMOND = """\
diamond  Two branches side by side
  first
  → left    after first
  → right   after first
    → last  after left, right
"""


def result_of(process: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert process.returncode == code, process.stderr
    return json.loads(process.stdout)


def lines(process: subprocess.CompletedProcess[str]) -> list[str]:
    """What was shown, without times of day and durations."""
    return [re.sub(r"^\d\d:\d\d:\d\d |in \d+\.\d s", "", line).rstrip() for line in process.stderr.splitlines()]


def write_tenants(folder: Path) -> Path:
    file = folder / "tenants.toml"
    file.write_text(
        '[tenants.acme]\nname = "Acme"\n[tenants.globex]\nparent = "acme"\n[tenants.gone]\nactive = false\n'
    )
    return file


def test_tenants_are_shown_as_a_tree(tmp_path: Path) -> None:
    assert craft("tenants", *TENANTS).stdout == TREE
    shown = result_of(craft("tenants", "--json", CRAFT_EASY_JOB_TENANTS=str(write_tenants(tmp_path))))
    assert shown[1] == {"id": "globex", "parent": "acme", "active": True, "name": "", "depth": 1}


def test_a_job_runs_for_all_tenants() -> None:
    process = craft("run", "settle", *JOBS, *TENANTS, "--all-tenants", "--concurrency", "1", "--json", "--run-id", "r")
    result = result_of(process)
    assert result["result"]["counts"] == {"completed": 3, "failed": 0}
    assert {name: row["run_id"] for name, row in result["result"]["tenants"].items()} == {
        "group": "r.group",
        "north": "r.north",
        "south": "r.south",
    }
    assert lines(process)[:3] == [
        "info     group: settling None",
        "info     group completed",
        "info     north: settling None",
    ]


def test_one_failed_tenant_is_told(tmp_path: Path) -> None:
    tenants = str(write_tenants(tmp_path))
    process = craft("run", "settle", *JOBS, "--tenants", tenants, "--all-tenants", "--json", "-p", 'bad=["globex"]')
    result = result_of(process, 1)
    assert (result["status"], result["reason"]) == ("failed", "tenants_failed")
    assert result["result"]["tenants"]["globex"]["reason"] == "exception"
    assert re.search(
        r"^settle failed \(tenants_failed\) in .*: 1 of 2 tenants failed: globex failed", process.stderr, re.MULTILINE
    )


def test_chains_are_listed_drawn_and_checked(tmp_path: Path) -> None:
    listed = craft("chain", "list", *JOBS)
    assert listed.stdout.startswith("diamond  Two branches side by side\n    first, left, right, last\n")
    assert "lenient" in [chain["name"] for chain in result_of(craft("chain", "list", "--json", *JOBS))]
    assert craft("chain", "show", "diamond", *JOBS).stdout == DIAMOND
    assert result_of(craft("chain", "show", "diamond", "--json", *JOBS))["steps"][1]["depends_on"] == ["first"]
    assert craft("chain", "check", *JOBS).stdout == "7 chains, 0 problems\n"
    source = (
        "from craft_easy_jobs import *\n@job(name='a')\nasync def a(ctx): ...\nchain('c', steps=[ChainStep('gone')])\n"
    )
    (tmp_path / "my_jobs.py").write_text(source)
    process = craft("chain", "check", "--json", "--jobs", "my_jobs.py", cwd=tmp_path)
    [problem] = result_of(process, 1)["problems"]
    assert re.fullmatch(r"chain 'c' at .*my_jobs\.py:4: the job 'gone' of a step is not registered", problem)
    assert process.stderr == f"Error: {problem}\n"


def test_check_names_the_step_whose_schema_is_no_schema(tmp_path: Path) -> None:
    source = (
        "from craft_easy_jobs import *\n"
        "@job(name='a', params_schema={'period': {'type': 'strnig'}})\nasync def a(ctx): ...\n"
        "@job(name='b', params_schema={'period': {'type': 'string'}})\nasync def b(ctx): ...\n"
        "chain('c', steps=[ChainStep('a'), ChainStep('b')])\n"
    )
    (tmp_path / "my_jobs.py").write_text(source)
    process = craft("chain", "check", "--json", "--jobs", "my_jobs.py", cwd=tmp_path)
    [problem] = result_of(process, 1)["problems"]
    assert re.fullmatch(
        r"chain 'c' at .*my_jobs\.py:6: step 'a': params_schema\.period\.type: 'strnig' is not valid .*", problem
    )


def test_a_chain_runs_with_each_line_naming_its_step() -> None:
    process = craft("chain", "run", "diamond", *JOBS, "-p", "fail=left")
    result = result_of(process, 1)
    assert (result["job_name"], result["reason"]) == ("diamond", "step_failed")
    assert {job: row["status"] for job, row in result["result"]["steps"].items()} == {
        "first": "completed",
        "left": "failed",
        "right": "completed",
        "last": "skipped",
    }
    assert lines(process)[:2] == ["info     first: READY", "info     first completed"]
    assert process.stderr.splitlines()[-1].endswith("; skipped: last")
    assert result_of(craft("chain", "run", "diamond", *JOBS, "--json"))["status"] == "completed"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ["tenants"],
            "Error: there is no tenant directory. Give --tenants FILE|MODULE:NAME (or $CRAFT_EASY_JOB_TENANTS)",
        ),
        (["tenants", "--tenants", "gone.toml"], "Error: cannot read the tenants in gone.toml: "),
        (["tenants", "--tenants", "gone_missing:tenants"], "Error: tenants of gone_missing:tenants: "),
        (
            ["run", "settle", *JOBS],
            "Error: job 'settle' has the scope 'tenant'; give a tenant_id, or ask for all_tenants",
        ),
        (["run", "settle", *JOBS, "--all-tenants"], "no tenant directory is configured"),
        (["run", "settle", *JOBS, *TENANTS, "--tenant-id", "nort"], "tenant 'nort': unknown; did you mean 'north'?"),
        (["run", "settle", *JOBS, *TENANTS, "--tenant-id", "off"], "Error: tenant 'off': is not active"),
        (["run", "rollup", *JOBS, *TENANTS], "give the tenant_id of the parent"),
        (["run", "settle", *JOBS, "--concurrency", "0"], "Invalid value for '--concurrency'"),
        (["chain", "run", "diamnd", *JOBS], "Error: chain: unknown chain 'diamnd'; did you mean 'diamond'?"),
        (["chain", "show", "diamnd", *JOBS], "did you mean 'diamond'?"),
        (["chain", "run", "diamond", *JOBS, "-p", "amount=x"], "Error: steps.left.params.amount: 'x' is not of type"),
        (
            ["chain", "run", "mixed", *JOBS, *TENANTS, "--tenant-id", "off"],
            "steps.settle.tenant_id: tenant 'off': is not",
        ),
    ],
)
def test_wrong_usage_is_told_in_a_line(args: list[str], told: str) -> None:
    process = craft(*args)
    assert (process.returncode, process.stdout) == (2, "")
    assert told in process.stderr
    assert "Traceback" not in process.stderr


def signalled(signals: int, *args: str, ready: int = 1) -> tuple[int, Any]:
    """Exit code and result of a run that gets signals at its nth READY line."""
    command = [*COMMAND, *args, *JOBS, *TENANTS, "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment(), text=True, **pipes) as process:
        assert process.stderr is not None
        try:
            for text in ["READY"] * ready:
                while text not in process.stderr.readline():
                    pass
            for text in ["Asked the job to stop", "Cutting it off"][:signals]:
                process.send_signal(signal.SIGINT)
                while text not in process.stderr.readline():
                    pass
            stdout, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, json.loads(stdout)


def test_the_first_signal_asks_all_tenants_to_stop() -> None:
    code, result = signalled(1, "run", "wait-each", "--all-tenants", ready=3)
    assert (code, result["status"], result["reason"]) == (0, "completed", "stopped")
    assert {row["reason"] for row in result["result"]["tenants"].values()} == {"stopped"}


def test_the_second_signal_cuts_all_tenants() -> None:
    code, result = signalled(2, "run", "wait-each", "--all-tenants", "-p", "deaf=true", "--concurrency", "2", ready=2)
    assert (code, result["status"], result["reason"]) == (1, "failed", "cancelled")
    assert {row["reason"] for row in result["result"]["tenants"].values()} == {"cancelled"}


def test_a_signal_stops_a_chain() -> None:
    code, result = signalled(1, "chain", "run", "waiting")
    assert (code, result["status"], result["reason"]) == (1, "failed", "cancelled")
    assert [row["status"] for row in result["result"]["steps"].values()] == ["completed", "skipped"]


def test_a_tenant_that_blocks_the_loop_ends_the_run_with_the_whole_table() -> None:
    process = craft("run", "block-each", *JOBS, *TENANTS, "--all-tenants", "--json", "--concurrency", "1")
    result = result_of(process, 1)
    rows = {name: (row["status"], row["reason"]) for name, row in result["result"]["tenants"].items()}
    assert rows == {"group": ("completed", None), "north": ("failed", "timed_out"), "south": ("failed", "interrupted")}
    assert (result["status"], result["reason"]) == ("failed", "tenants_failed")
    assert "it blocks the event loop at" in result["error"]


COMPLETE = r"""
from craft_easy_jobs import job, chain, ChainStep, JobContext

@job(
    name="settlement",
    description="Calculate settlement for a billing period",
    timeout_seconds=1800,
    retries=2,
    per_tenant=True,
    params_schema={
        "period": {"type": "string", "pattern": "^\\d{4}-\\d{2}$"},
    },
)
async def settlement(ctx: JobContext):
    period = ctx.params["period"]
    await ctx.log(f"Starting settlement for tenant={ctx.tenant_id} period={period}")
    settled = 0
    for i, customer in enumerate("AB"):
        if ctx.should_stop():
            await ctx.warning(f"Stopped at {settled}/2")
            break
        settled += 1
        await ctx.progress(f"Settled {i+1}/2", percentage=int((i+1) / 2 * 100))
    await ctx.log(f"Done: {settled}/2")
    return {"period": period, "settled": settled, "total": 2}

@job(name="invoicing")
async def invoicing(ctx: JobContext):
    return {"invoiced": ctx.upstream["settlement"]["counts"]["completed"]}

@job(name="reporting")
async def reporting(ctx: JobContext):
    assert ctx.upstream["invoicing"] == {"invoiced": 2}
    raise RuntimeError("no printer")

# Define the month-end chain — one declarative source of truth
month_end = chain(
    name="month-end",
    description="Month-end closing workflow",
    steps=[
        ChainStep(job="settlement"),
        ChainStep(job="invoicing", depends_on=["settlement"]),
        ChainStep(job="reporting", depends_on=["invoicing"], on_failure="continue"),
    ],
)
"""


def test_the_specifications_complete_example(tmp_path: Path) -> None:
    """Settlement per tenant, then invoicing, then a reporting that may fail."""
    (tmp_path / "author_jobs.py").write_text(COMPLETE)
    tenants = str(write_tenants(tmp_path))
    common = ("--jobs", "author_jobs.py", "--params", '{"period": "2026-03"}', "--json")
    process = craft("chain", "run", "month-end", *common, "--tenants", tenants, "--all-tenants", cwd=tmp_path)
    result = result_of(process)
    assert (result["status"], result["reason"]) == ("completed", None)
    told = {job: (row["status"], row["reason"]) for job, row in result["result"]["steps"].items()}
    assert told == {
        "settlement": ("completed", None),
        "invoicing": ("completed", None),
        "reporting": ("failed", "exception"),
    }
    assert "info     settlement: globex: Starting settlement for tenant=globex period=2026-03" in lines(process)
    assert any("RuntimeError: no printer" in line for line in lines(process))
    alone = craft("run", "settlement", *common, "--tenant-id", "tenant_664abc", cwd=tmp_path)
    rows = result_of(alone)["result"]["tenants"]
    assert [(name, row["status"]) for name, row in rows.items()] == [("tenant_664abc", "completed")]
    wrong = craft("chain", "run", "month-end", *common, "-p", "period=March", "--tenant-id", "t", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("Error: steps.settlement.params.period: 'March' does not match")


def test_a_drawing_has_no_control_characters(tmp_path: Path) -> None:
    source = "from craft_easy_jobs import *\n@job(name='a\\x1b[31m\\n')\nasync def a(ctx): ...\n"
    source += "chain('c\\x07', 'red \\x1b[31m\\u202e', [ChainStep('a\\x1b[31m\\n')])\n"
    (tmp_path / "my_jobs.py").write_text(source)
    process = craft("chain", "show", "c\x07", "--jobs", "my_jobs.py", cwd=tmp_path)
    assert process.stdout == "c  red [31m\n  a[31m\n"
