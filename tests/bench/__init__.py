"""The benchmark: `python -m tests.bench`, or `make bench`. It measures real daemons from outside, as a client would.

A *scenario* starts what it needs on a fresh root, measures, checks that every run has its result, and returns samples
by the key of their *figure*. A run of the benchmark repeats all scenarios in turn, so that a machine that grows slow
grows slow for all of them, and tells the median and the spread of each figure.

The clock is CLOCK_MONOTONIC, which all processes of a host share:

- *first line*: the job returns the time at which its function began.
- *published*: inotify says that the result file was renamed into results/, at most 2 ms late.
- *end to end*: from the first enqueue call to the last result published.
- *drain*, spool: from READY or the first line, whichever is earlier, to the last result; the files lie there before
  the daemon starts. Drain, socket: from the `not_before` of all runs to the last result.
- *limit*: one plain loop that does the same to the disk, see `limit.py`.

A result counts when its file is there once, is whole, and says `completed`. A client that drops files does not sync
them, as `mv` does not; the daemon does before a job starts.
"""
