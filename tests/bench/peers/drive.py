"""`python -m tests.bench.peers.drive PEER`: enqueues as it is told by lines on its input, `HOW JOB FIRST COUNT`.

HOW is `one`, one after the other, or `all`, as quickly as the peer can. The answer is a line of two times,
CLOCK_MONOTONIC in nanoseconds: before the first call, and when all had returned.
"""

import importlib
import sys
import time

peer = importlib.import_module(f"tests.bench.peers.{sys.argv[1]}")
print("ready", flush=True)
for line in sys.stdin:
    how, job, first, count = line.split()
    indices = range(int(first), int(first) + int(count))
    began = time.monotonic_ns()
    if how == "one":
        for index in indices:
            peer.enqueue(job, index)
    else:
        peer.enqueue_all(job, indices)
    print(began, time.monotonic_ns(), flush=True)
