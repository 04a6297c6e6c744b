"""`python -m tests.bench.feed spool|socket ROOT RATE SECONDS`: enqueues steadily until its input is closed.

Says a line when it has begun, and at the end how many it has enqueued: feed-0, feed-1, ... A process of its own, since
what it does must not keep the one that takes the time from its work.
"""

import select
import sys
import time
from pathlib import Path

from tests.bench.clients import Connection, Spool, requests

_TICK = 0.02


def main(way: str, root: Path, rate: float, seconds: float) -> int:
    waiting = requests(round(rate * seconds), prefix="feed")
    connection = None if way == "spool" else Connection(root)
    enqueue = Spool(root).drop_all if connection is None else connection.submit
    print("begun", flush=True)
    began, done = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], _TICK)[0]:
        due = min(round((time.monotonic() - began) * rate), len(waiting))
        if due > done:
            enqueue(waiting[done:due])
            done = due
    return done


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
