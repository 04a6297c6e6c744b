"""What the tests under a real systemd share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import Service, serviced


@pytest.fixture(scope="module")
def serviced_machine(installation: Path) -> Iterator[Service]:
    with serviced(installation, Path(__file__).with_name("service_jobs.py")) as service:
        yield service


@pytest.fixture
def service(serviced_machine: Service) -> Iterator[Service]:
    """The service as after its installation, with the jobs of `service_jobs.py`. A module's tests share a machine."""
    serviced_machine.reset()
    yield serviced_machine
    print(f"--- journal of the service\n{serviced_machine.log}")
