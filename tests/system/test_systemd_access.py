"""Who and what the service lets at things, under a real systemd: users, secrets, the sandbox, memory."""

import json
from pathlib import Path

from tests.support.cgroups import memory_group
from tests.support.daemon import PROJECT
from tests.support.machine import needed
from tests.support.service import CONTROL, OTHER_SUBMITTER, SPOOL, STATE, STRANGER, SUBMITTER, UNIT, Service

pytestmark = needed()

# What the service manager says to the daemon, and to nobody else.
PRIVATE = {"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY"}
SANDBOX = {
    "internet": "ok",
    "subprocess": "ok",
    "own state": "ok",
    "etc": "EROFS",
    "home": "EACCES",
    "other processes": "ENOENT",
    "another user": "EPERM",
    "made code": "ok",
}


def refused(service: Service, user: str, *command: str) -> str:
    """What a command of the user complains of; fails when it succeeds."""
    done = service.machine.run(*command, user=user, check=False)
    assert done.returncode != 0, f"{user} may {' '.join(command)}: {done.stdout}"
    return done.stderr


def drop(service: Service, user: str, run: str) -> str:
    """As a user does who knows no command of ours; returns where the request is."""
    target = f"{SPOOL}/incoming/{run}.json"
    request = json.dumps({"job": "quick", "run_id": run})
    service.machine.run("sh", "-c", f"umask 022; cat >/tmp/{run} && mv /tmp/{run} {target}", user=user, stdin=request)
    return target


def test_submitters_drop_and_see_no_more(service: Service) -> None:
    # While the service is down, so that the request stays there.
    request = drop(service, SUBMITTER, "mine")
    for user in (SUBMITTER, OTHER_SUBMITTER, STRANGER):
        for folder in (f"{SPOOL}/incoming", f"{SPOOL}/claimed", f"{SPOOL}/rejected"):
            assert "Permission denied" in refused(service, user, "ls", folder)
    for removal in (("rm", "-f", request), ("mv", request, "/tmp/stolen")):
        assert "not permitted" in refused(service, OTHER_SUBMITTER, *removal)
    assert "Permission denied" in refused(service, STRANGER, "sh", "-c", f"echo '{{}}' >{SPOOL}/incoming/his.json")
    service.systemctl("start")
    assert service.result("mine")["requested_by"] == SUBMITTER
    for user in (SUBMITTER, STRANGER):
        assert "Permission denied" in refused(service, user, "cat", f"{STATE}/results/mine.json")
        assert "Permission denied" in refused(service, user, "ls", STATE)


def test_the_control_socket_knows_who_asks(service: Service) -> None:
    service.systemctl("start")
    run = service.submit("quick", user=SUBMITTER)
    assert service.result(run)["requested_by"] == SUBMITTER
    assert service.result(service.submit("quick"))["requested_by"] == "root"
    complaint = refused(service, STRANGER, "craft-easy-jobd", "status", "--socket", CONTROL)
    assert "Traceback" not in complaint
    assert CONTROL in complaint


def variables(pid: int) -> set[str]:
    """The names in the environment that a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return {entry.partition("=")[0] for entry in entries}


def test_jobs_see_nothing_of_the_service_manager(service: Service) -> None:
    service.systemctl("start")
    seen = service.result(service.submit("environment"))["result"]
    assert seen["USER"] == "craft-easy-jobd"
    main = service.outer_pid
    told = {pid: variables(pid) for pid in service.processes}
    assert "NOTIFY_SOCKET" in told.pop(main)
    assert len(told) >= 2
    for names in (set(seen), *told.values()):
        assert not names & PRIVATE


def test_a_credential_reaches_jobs_and_nothing_else(service: Service) -> None:
    secret = "s3cr3t-of-the-service"
    service.machine.put("/etc/service-token", secret, mode="0600")
    service.drop_in("LoadCredential=token:/etc/service-token")
    service.systemctl("start")
    run = service.submit("log-in", "-p", f"ending={secret[-4:]}")
    assert service.result(run)["result"] is True
    assert not [pid for pid in service.processes if secret.encode() in Path(f"/proc/{pid}/environ").read_bytes()]
    assert secret not in service.machine.journal()


def test_the_journal_shows_one_run_and_nothing_that_a_job_made_up(service: Service) -> None:
    service.systemctl("start")
    runs = [service.submit("hostile", "--tenant-id", tenant) for tenant in ("acme", "other")]
    for run in runs:
        assert service.result(run)["status"] == "failed"
    shown = service.machine.journal("--output=json", f"JOB_RUN_ID={runs[0]}")
    (entry,) = map(json.loads, shown.splitlines())
    assert (entry["JOB_NAME"], entry["TENANT_ID"], entry["PRIORITY"]) == ("hostile", "acme", "4")
    assert (entry["_SYSTEMD_UNIT"], len(entry["MESSAGE_ID"])) == (UNIT, 32)
    assert "boom" in shown
    assert "\x1b" not in service.machine.journal("--all", f"JOB_RUN_ID={runs[0]}")
    for forged in ("JOB_RUN_ID=forged", "PRIORITY=0"):
        assert service.machine.run("journalctl", "--quiet", forged, "JOB_NAME=hostile", check=False).stdout == ""


def test_the_sandbox_leaves_jobs_what_is_said(service: Service) -> None:
    service.systemctl("start")
    assert service.result(service.submit("reach-out"))["result"] == SANDBOX


def test_the_strict_drop_in_takes_network_and_made_code_as_well(service: Service) -> None:
    service.drop_in((PROJECT / "systemd" / "drop-ins" / "strict.conf").read_text())
    service.systemctl("start")
    strict = {**SANDBOX, "internet": "EAFNOSUPPORT", "made code": "EPERM"}
    assert service.result(service.submit("reach-out"))["result"] == strict


def test_a_worker_that_the_kernel_kills_for_its_memory_is_not_the_service(service: Service) -> None:
    """By a memory cgroup of version 1, of which systemd hears nothing: what it would do is in OOMPolicy."""
    assert service.show("OOMPolicy") == "continue"
    service.systemctl("start")
    main, neighbour = service.pid, service.submit("obedient")
    service.wait_state(neighbour, "running")
    with memory_group(400 << 20) as group:
        try:
            for pid in service.processes - {service.outer_pid}:
                (group / "cgroup.procs").write_text(str(pid))
            result = service.result(service.drop({"job": "hungry"}))
            assert (result["status"], result["reason"]) == ("failed", "out_of_memory")
            assert (service.pid, service.show("NRestarts"), service.show("ActiveState")) == (main, "0", "active")
            service.wait_state(neighbour, "running", within=0.0)
        finally:
            service.systemctl("kill", "--signal=KILL")
