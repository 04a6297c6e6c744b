"""Jobs that do something: a little waiting, computing, logging, a result of some size; and one run for each tenant."""

import time
from collections.abc import Callable

from tests.bench.clients import Connection, requests, validated, watching
from tests.bench.figures import Figure
from tests.bench.pipeline import per_second, through_socket, through_spool
from tests.bench.stage import Part, Samples, Sizes, Stage

JOBS = {
    "sleep-5ms": "sleep 5 ms",
    "compute": "2 ms of computing",
    "log-20": "20 log lines",
    "result-10k": "a result of 10 KiB",
}


def parts(sizes: Sizes) -> dict[str, Part]:
    return {f"mix-{job}": Part(mixed(job), _figures(job, title)) for job, title in JOBS.items()} | {
        "mix-fan-out": Part(
            fan_out, [Figure("mix.fan-out", f"fan-out to {sizes.tenants:,} tenants: children, end to end", "1/s")]
        )
    }


def _figures(job: str, title: str) -> list[Figure]:
    return [Figure(f"mix.{job}.{way}", f"{title}: end to end, by {way}", "1/s") for way in ("socket", "spool")]


def mixed(job: str) -> Callable[[Stage], Samples]:
    def measure(stage: Stage) -> Samples:
        asked = requests(stage.sizes.mixed, job)
        rates = {}
        for way, through in (("socket", through_socket), ("spool", through_spool)):
            with stage.root() as root, stage.daemon(root):
                rates[f"mix.{job}.{way}"] = through(stage, root, asked)
        return rates

    return measure


def fan_out(stage: Stage) -> Samples:
    names = [f"t{number}" for number in range(stage.sizes.tenants)]
    [parent] = requests(1, "per-tenant", prefix="fan-out", all_tenants=True)
    asked = [parent, *({"run_id": f"{parent['run_id']}.{name}"} for name in names)]
    with stage.root() as root, watching(root) as watch:
        tenants = root / "tenants.toml"
        tenants.write_text("".join(f"[tenants.{name}]\n" for name in names))
        with stage.daemon(root, "--tenants", str(tenants)), Connection(root) as connection:
            began = time.monotonic_ns()
            connection.submit(parent)
            last = watch.wait(len(asked), within=stage.sizes.patience)
            validated(root, asked)
    return {"mix.fan-out": per_second(len(names), began, last)}
