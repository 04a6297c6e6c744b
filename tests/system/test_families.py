"""Tenants and chains in the real daemon."""

import json
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until

Start = Callable[..., DaemonProcess]

TENANTS = """
[tenants.acme]
[tenants.north]
parent = "acme"
[tenants.south]
parent = "acme"
[tenants.old]
parent = "acme"
active = false
"""


@pytest.fixture
def jobd(daemon: Start, short_dir: Path) -> DaemonProcess:
    directory = short_dir / "tenants.toml"
    directory.write_text(TENANTS)
    return daemon("--jobs", "tests.system.family_jobs", "--tenants", str(directory))


def refusal(jobd: DaemonProcess, request: dict[str, Any]) -> dict[str, Any]:
    code, problem = jobd.call("POST", "/v1/runs", request)
    assert code in (400, 422), problem
    return dict(problem)


def test_the_month_end_of_the_specification(jobd: DaemonProcess) -> None:
    run = jobd.drop({"chain": "month-end", "params": {"period": "2026-03"}, "all_tenants": True, "run_id": "march"})
    result = jobd.result(run)
    steps = result["result"]["steps"]
    assert (result["job_name"], result["status"], result["reason"]) == ("month-end", "completed", None)
    assert {job: step["status"] for job, step in steps.items()} == {
        "settlement": "completed",
        "invoicing": "completed",
        "reporting": "failed",
    }
    settled = jobd.result("march.settlement")["result"]
    assert settled["counts"] == {"completed": 3, "failed": 0}
    assert list(settled["tenants"]) == ["acme", "north", "south"]
    child = jobd.result("march.settlement.north")
    assert (child["tenant_id"], child["parent_run_id"]) == ("north", "march.settlement")
    assert child["result"] == {"period": "2026-03", "settled": 1, "tenant": "north"}
    assert jobd.result("march.invoicing")["result"] == {"invoices": 3}


def test_scopes_resolve_their_tenants(jobd: DaemonProcess) -> None:
    assert jobd.result(jobd.drop({"job": "rollup", "tenant_id": "acme"}))["result"] == ["acme", "north", "south"]
    one = jobd.result(jobd.drop({"job": "settlement", "tenant_id": "north", "params": {"period": "2026-03"}}))
    assert list(one["result"]["tenants"]) == ["north"]


def test_what_cannot_run_is_refused_with_its_step_or_tenant(jobd: DaemonProcess) -> None:
    assert "no-such" in refusal(jobd, {"chain": "no-such"})["detail"]
    problem = refusal(jobd, {"chain": "third-is-strict", "params": {"n": "x"}})
    assert problem["field"].startswith("steps.strict.params")
    assert "nobody" in refusal(jobd, {"job": "rollup", "tenant_id": "nobody"})["detail"]
    assert "not active" in refusal(jobd, {"job": "rollup", "tenant_id": "old"})["detail"]
    assert refusal(jobd, {"job": "rollup"})["field"] == "tenant_id"
    assert refusal(jobd, {"job": "settlement", "params": {"period": "2026-03"}})["field"] == "tenant_id"
    assert refusal(jobd, {"chain": "month-end", "params": {"period": "2026-03"}})["field"].startswith("steps.settle")


def test_cancel_of_a_chain_reaches_the_tenants_of_its_step(jobd: DaemonProcess) -> None:
    jobd.drop({"chain": "waiting", "all_tenants": True, "run_id": "w"})
    wait_until(lambda: len(jobd.status()["running"]) == 3)
    assert jobd.call("POST", "/v1/runs/w/cancel")[0] == 200
    result = jobd.result("w")
    assert (result["status"], result["reason"]) == ("failed", "cancelled")
    assert result["result"]["steps"]["invoicing"]["status"] == "skipped"
    assert jobd.result("w.waits.south")["result"] == "stopped"


def test_retry_runs_what_failed_again(jobd: DaemonProcess, short_dir: Path) -> None:
    (short_dir / "tenants.toml").write_text(TENANTS + "[tenants.broke]\n")
    jobd.stop()
    jobd.start()
    jobd.drop({"job": "settlement", "all_tenants": True, "params": {"period": "2026-03"}, "run_id": "p"})
    assert jobd.result("p")["result"]["counts"] == {"completed": 3, "failed": 1}
    first = jobd.result("p.acme")
    wait_until(lambda: jobd.call("GET", "/v1/runs/p.broke")[1]["published"])
    assert jobd.call("POST", "/v1/runs/p/retry")[0] == 200
    wait_until(lambda: jobd.result("p.broke")["attempts"] == 6)
    assert jobd.result("p.acme") == first
    assert jobd.call("POST", "/v1/runs/p.acme/retry")[0] == 409


def test_the_directory_of_a_callable_is_asked_of_a_worker(daemon: Start, short_dir: Path) -> None:
    (short_dir / "callable_jobs.py").write_text(
        "import json, pathlib\n"
        "from tests.system.family_jobs import rollup\n"
        "async def tenants():\n"
        f"    return json.loads(pathlib.Path({str(short_dir)!r}, 'list').read_text())\n"
    )
    (short_dir / "list").write_text('[{"id": "top"}, {"id": "below", "parent": "top"}]')
    jobd = daemon(
        "--jobs",
        "callable_jobs",
        "--tenants",
        "callable_jobs:tenants",
        "--tenants-max-age",
        "0.1",
        env={"PYTHONPATH": os.pathsep.join([str(short_dir), os.environ.get("PYTHONPATH", "")])},
    )
    assert jobd.result(jobd.drop({"job": "rollup", "tenant_id": "top"}))["result"] == ["top", "below"]
    (short_dir / "list").write_text('[{"id": "top", "active": "yes"}]')
    wait_until(lambda: "callable_jobs:tenants" in json.dumps(jobd.status()["problems"]))
    (short_dir / "list").write_text('[{"id": "alone"}]')
    wait_until(lambda: jobd.call("POST", "/v1/runs", {"job": "rollup", "tenant_id": "alone"})[0] == 202)


def test_kill_9_skips_no_step_and_no_tenant(daemon: Start, short_dir: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    tenants = [f"t{number:03}" for number in range(500)]
    (short_dir / "tenants.toml").write_text("".join(f"[tenants.{tenant}]\n" for tenant in tenants))
    jobd = daemon(
        "--jobs",
        "tests.system.family_jobs",
        "--tenants",
        str(short_dir / "tenants.toml"),
        "--slots",
        "40",
        "--interruption-budget",
        "1000",
    )
    jobd.drop({"chain": "long", "run_id": "long"})
    jobd.drop({"job": "short", "all_tenants": True, "run_id": "fan"})
    results = jobd.root / "results"
    for _ in range(8):
        before = len(list(results.glob("*.json")))
        wait_until(lambda before=before: len(list(results.glob("*.json"))) > before + 20 or done(results), within=60)  # type: ignore[misc]
        if dice.random() < 0.5:
            jobd.kill()
            jobd.start()
        else:
            # It may be the one that was killed before, and is on its way out.
            with suppress(ProcessLookupError):
                os.kill(dice.choice(jobd.status()["workers"])["pid"], signal.SIGKILL)
    fan, long = jobd.result("fan", within=60), jobd.result("long", within=60)
    assert fan["result"]["counts"] == {"completed": 500, "failed": 0}
    assert list(fan["result"]["tenants"]) == tenants
    assert [step["status"] for step in long["result"]["steps"].values()] == ["completed"] * 20
    expected = {"fan", "long", *(f"fan.{tenant}" for tenant in tenants), *(f"long.link-{n}" for n in range(20))}
    wait_until(lambda: {path.stem for path in results.glob("*.json")} == expected)


def done(results: Path) -> bool:
    return (results / "fan.json").exists() and (results / "long.json").exists()
