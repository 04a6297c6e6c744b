"""The life of the service under a real systemd: start, watchdog, restart, stop, crash."""

from tests.support.machine import needed
from tests.support.service import Service

pytestmark = needed()


def test_start_returns_when_it_is_ready(service: Service) -> None:
    service.systemctl("start")
    assert service.show("ActiveState") == "active"
    assert service.status()["state"] == "running"
    run = service.submit("quick")
    assert service.result(run)["result"] == 1
    assert "0 running" in service.show("StatusText")
