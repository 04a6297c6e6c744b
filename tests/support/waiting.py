"""Wait for facts, with a limit."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(fact: Callable[[], T], *, within: float = 30.0, every: float = 0.01) -> T:
    """Poll until `fact()` is true and return what it returned; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not (value := fact()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {getattr(fact, '__doc__', None) or fact}")
        time.sleep(every)
    return value
