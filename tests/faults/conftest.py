"""What the fault tests found goes along with their reports, which reach the process that prints the end."""

from collections.abc import Callable, Iterator

import pytest

from tests.faults.scale import FIGURE, figures


@pytest.fixture(autouse=True)
def _figures(record_property: Callable[[str, object], None]) -> Iterator[None]:
    figures.clear()
    yield
    for figure in figures:
        record_property(FIGURE, figure)
