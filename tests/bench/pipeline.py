"""Jobs that do nothing, as many a second as go through: by spool and by socket, drained and end to end."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.bench.clients import BATCH, Connection, Request, Spool, first_line, requests, submit_all, validated, watching
from tests.bench.figures import Figure
from tests.bench.stage import BenchError, Part, Samples, Sizes, Stage

_SINGLE = 500


def parts(sizes: Sizes) -> dict[str, Part]:
    return {
        "spool-drain": Part(spool_drain, [Figure("spool.drain", "spool: drain", "1/s", "limit.spool.drain")]),
        "spool": Part(
            spool_end_to_end, [Figure("spool.end_to_end", "spool: end to end", "1/s", "limit.spool.end_to_end")]
        ),
        "socket-drain": Part(socket_drain, [Figure("socket.drain", "socket: drain", "1/s", "limit.socket")]),
        "socket": Part(socket_end_to_end, [Figure("socket.end_to_end", "socket: end to end", "1/s", "limit.socket")]),
        "submit": Part(
            submits,
            [
                Figure("submit.one", "durable submits, one at a time on one connection", "1/s", "limit.commit"),
                Figure("submit.batch", f"durable submits, {BATCH} a call on one connection", "1/s"),
            ],
        ),
    }


def spool_drain(stage: Stage) -> Samples:
    asked = requests(stage.sizes.runs)
    with stage.root() as root, watching(root) as watch:
        Spool(root).drop_all(asked)
        with stage.daemon(root):
            ready = time.monotonic_ns()
            last = watch.wait(len(asked), within=stage.sizes.patience)
        first = first_line(validated(root, asked).values())
    return {"spool.drain": per_second(len(asked), min(ready, first), last)}


def spool_end_to_end(stage: Stage) -> Samples:
    with stage.root() as root, stage.daemon(root):
        return {"spool.end_to_end": through_spool(stage, root, requests(stage.sizes.runs))}


def socket_drain(stage: Stage) -> Samples:
    """All runs wait for one moment; that they were all submitted before it is checked."""
    ahead = 2.0 + stage.sizes.runs / 2500
    with stage.root() as root, watching(root) as watch, stage.daemon(root):
        due_ns = time.monotonic_ns() + round(ahead * 1e9)
        moment = datetime.now(UTC) + timedelta(seconds=ahead)
        asked = requests(stage.sizes.runs, not_before=moment.isoformat())
        submit_all(root, asked)
        if time.monotonic_ns() > due_ns:
            raise BenchError(f"socket drain: {len(asked)} submits took more than {ahead:g} s")
        last = watch.wait(len(asked), within=stage.sizes.patience)
        validated(root, asked)
    return {"socket.drain": per_second(len(asked), due_ns, last)}


def socket_end_to_end(stage: Stage) -> Samples:
    with stage.root() as root, stage.daemon(root):
        return {"socket.end_to_end": through_socket(stage, root, requests(stage.sizes.runs))}


def through_socket(stage: Stage, root: Path, asked: list[Request]) -> float:
    """Runs a second, end to end, on a root where nothing has run before."""
    return _through(stage, root, asked, submit_all)


def through_spool(stage: Stage, root: Path, asked: list[Request]) -> float:
    """As `through_socket`, with a file a request."""
    return _through(stage, root, asked, lambda root, asked: Spool(root).drop_all(asked))


def _through(stage: Stage, root: Path, asked: list[Request], enqueue: Callable[[Path, list[Request]], None]) -> float:
    with watching(root) as watch:
        began = time.monotonic_ns()
        enqueue(root, asked)
        last = watch.wait(len(asked), within=stage.sizes.patience)
        validated(root, asked)
    return per_second(len(asked), began, last)


def submits(stage: Stage) -> Samples:
    """Only the answers are timed; not_before keeps the runs from starting meanwhile."""
    singles = requests(min(_SINGLE, stage.sizes.runs), prefix="single", not_before=_TOMORROW)
    many = requests(stage.sizes.runs, prefix="batch", not_before=_TOMORROW)
    batches = [many[start : start + BATCH] for start in range(0, len(many), BATCH)]
    with stage.root() as root, stage.daemon(root), Connection(root) as connection:
        began = time.monotonic_ns()
        for request in singles:
            connection.submit(request)
        between = time.monotonic_ns()
        for batch in batches:
            connection.submit(batch)
        ended = time.monotonic_ns()
        accepted = connection.call("GET", "/v1/status")["runs"]["scheduled"]
    if accepted != len(singles) + len(many):
        raise BenchError(f"submits: the daemon has {accepted} runs instead of {len(singles) + len(many)}")
    return {
        "submit.one": per_second(len(singles), began, between),
        "submit.batch": per_second(len(many), between, ended),
    }


_TOMORROW = (datetime.now(UTC) + timedelta(days=1)).isoformat()


def per_second(count: int, began_ns: int, ended_ns: int) -> float:
    return count * 1e9 / (ended_ns - began_ns)
