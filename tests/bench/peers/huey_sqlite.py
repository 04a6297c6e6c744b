"""huey on SQLite, which has no server either; it looks for jobs every 10 ms, and syncs each of its commits."""

from collections.abc import Sequence

from huey import SqliteHuey

from tests.bench.peers.marks import SQLITE, mark

huey = SqliteHuey("bench", results=False, filename=SQLITE, fsync=True)


@huey.task()
def noop(index: int) -> None:
    mark(index)


def worker(_: int | None) -> list[str]:
    polling = ["-d", "0.01", "-m", "0.01", "-b", "1"]
    return ["huey_consumer", "tests.bench.peers.huey_sqlite.huey", "-k", "process", "-w", "2", *polling, "-n", "-q"]


def enqueue(job: str, index: int) -> None:
    noop(index)


def enqueue_all(job: str, indices: Sequence[int]) -> None:
    # One after the other: the database has one writer.
    for index in indices:
        noop(index)
