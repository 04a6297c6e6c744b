"""What the unit files promise, under a real systemd: a drop-in, who gets at the socket, units that heal."""

from tests.support.daemon import PROJECT
from tests.support.machine import needed
from tests.support.service import CONTROL, SOCKET_UNIT, STRANGER, SUBMITTER, UNIT, Service
from tests.support.waiting import wait_until

pytestmark = needed()


def test_without_delegation_it_says_so_and_runs(service: Service) -> None:
    service.drop_in((PROJECT / "systemd" / "drop-ins" / "no-delegation.conf").read_text())
    service.systemctl("start")
    assert service.result(service.submit("quick"))["status"] == "completed"
    assert service.status()["containment"] == "process tree"


def test_submitters_get_at_the_socket_whoever_made_it(service: Service) -> None:
    for units in ([UNIT], [SOCKET_UNIT, UNIT]):
        service.machine.run("systemctl", "start", *units)
        made = service.machine.run("stat", "-c", "%a %U:%G", CONTROL).stdout.strip()
        assert made == "660 craft-easy-jobd:craft-easy-jobs"
        run = service.submit("quick", user=SUBMITTER)
        assert service.result(run)["requested_by"] == SUBMITTER
        refused = service.machine.run("craft-easy-jobd", "status", "--socket", CONTROL, user=STRANGER, check=False)
        assert refused.returncode == 77
        service.machine.run("systemctl", "stop", *units)


def test_wrong_settings_and_a_client_that_waits_do_not_use_up_the_starts(service: Service) -> None:
    service.configure("no_such_key = 1")
    # As narrow as the unit's own, in less time.
    service.drop_in("StartLimitIntervalSec=8s", "StartLimitBurst=2", section="Unit")
    service.machine.run("systemctl", "start", SOCKET_UNIT)
    ask = ("/usr/local/bin/craft-easy-jobd", "submit", "quick", "--print-id", "--socket", CONTROL)
    service.machine.run("systemd-run", "--no-block", "--unit=asking", *ask)
    wait_until(lambda: service.log.count("status=78/CONFIG") == 3, within=25, every=0.2)
    assert "repeated too quickly" not in service.log

    service.configure()
    service.wait_show("ActiveState", "active")
    asked = wait_until(lambda: service.machine.journal("--unit=asking", "--output=cat", "--identifier=craft-easy-jobd"))
    assert service.result(asked.split()[0])["status"] == "completed"
    service.machine.run("systemctl", "stop", SOCKET_UNIT)
