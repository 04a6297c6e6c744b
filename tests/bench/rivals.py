"""The peers beside us, in an environment of their own, on a Redis server that syncs each write before it answers.

One session of a peer: idle memory and latency, end to end, then without workers enqueuing one at a time, drain, and
jobs that sleep. Its drain is clocked from the first job's first line, which leaves out what comes before it; ours is
not. Its end is the last job's line, not an acknowledgement or a result.
"""

from functools import partial
from typing import NamedTuple

from tests.bench.figures import Figure, percentile
from tests.bench.footprint import settled_pss
from tests.bench.peers.marks import ENDED
from tests.bench.pipeline import per_second
from tests.bench.sessions import Session, peer_session
from tests.bench.stage import Part, Samples, Sizes, Stage


class Peer(NamedTuple):
    """`sleepers`: it can have a thousand jobs that sleep side by side."""

    title: str
    redis: bool = True
    sleepers: bool = True


PEERS = {
    "taskiq_list": Peer("taskiq (Redis list)"),
    "taskiq_stream": Peer("taskiq (Redis stream)"),
    "dramatiq_redis": Peer("dramatiq (Redis)"),
    "huey_redis": Peer("huey (Redis)"),
    # Each of so many threads would look into the database every 10 ms.
    "huey_sqlite": Peer("huey (SQLite)", redis=False, sleepers=False),
    "saq_redis": Peer("SAQ (Redis)"),
}


def parts(sizes: Sizes) -> dict[str, Part]:
    return {
        f"peer-{name}": Part(partial(measure, name), _figures(name, peer.title, sizes)) for name, peer in PEERS.items()
    }


def _figures(peer: str, title: str, sizes: Sizes) -> list[Figure]:
    return [
        Figure(f"peer.{peer}.drain", f"{title}: drain", "1/s"),
        Figure(f"peer.{peer}.end_to_end", f"{title}: end to end", "1/s"),
        Figure(f"peer.{peer}.enqueue", f"{title}: durable enqueues, one at a time", "1/s"),
        Figure(f"peer.{peer}.p50", f"{title}: enqueue to first line, idle, p50", "ms"),
        Figure(f"peer.{peer}.p99", f"{title}: enqueue to first line, idle, p99", "ms"),
        Figure(f"peer.{peer}.memory", f"{title}: memory (PSS), idle, with the broker", "MB"),
        Figure(f"peer.{peer}.sleep", f"{title}: {sizes.peer_sleepers:,} × sleep(1)", "s"),
    ]


def measure(name: str, stage: Stage) -> Samples:
    peer, patience = PEERS[name], stage.sizes.patience
    with stage.root() as root, peer_session(name, root, redis=peer.redis, patience=patience) as running:
        samples = _with_workers(running, stage.sizes) | _without_workers(running, stage.sizes)
        if peer.sleepers:
            samples["sleep"] = _sleepers(running, stage.sizes)
    return {f"peer.{name}.{measured}": value for measured, value in samples.items()}


def _with_workers(session: Session, sizes: Sizes) -> dict[str, float]:
    with session.workers():
        memory = settled_pss(session.processes())
        waits = []
        for index in session.numbers(sizes.samples):
            enqueued, _ = session.enqueue("one", "noop", range(index, index + 1))
            session.wait(1, since=index)
            waits.append((session.marks[index] - enqueued) / 1e6)
        indices = session.numbers(sizes.peer_runs)
        began, _ = session.enqueue("all", "noop", indices)
        _, last = session.wait(len(indices), since=indices.start)
    return {
        "memory": memory,
        "p50": percentile(waits, 50),
        "p99": percentile(waits, 99),
        "end_to_end": per_second(len(indices), began, last),
    }


def _without_workers(session: Session, sizes: Sizes) -> dict[str, float]:
    singles = session.numbers(min(500, sizes.peer_runs))
    began, ended = session.enqueue("one", "noop", singles)
    rest = session.numbers(sizes.peer_runs - len(singles))
    session.enqueue("all", "noop", rest)
    with session.workers(warm=False):
        first, last = session.wait(sizes.peer_runs, since=singles.start)
    return {
        "enqueue": per_second(len(singles), began, ended),
        "drain": per_second(sizes.peer_runs, first, last),
    }


def _sleepers(session: Session, sizes: Sizes) -> float:
    """Seconds from the first start to the last end."""
    with session.workers(slots=sizes.peer_sleepers):
        indices = session.numbers(sizes.peer_sleepers)
        session.enqueue("all", "sleep", indices)
        first, _ = session.wait(len(indices), since=indices.start)
        _, last = session.wait(len(indices), since=indices.start + ENDED)
    return (last - first) / 1e9
