"""A ledger with very many finished runs. The one place of the benchmark that knows the daemon's tables."""

import os
import shutil
from contextlib import closing
from pathlib import Path

from craft_easy_jobd.ledger_schema import open_writer
from tests.bench.clients import requests, submit_all, validated, watching
from tests.bench.stage import Stage

_SEED = 1_000


def state_of_finished_runs(stage: Stage) -> Path:
    """A state folder that a daemon has left; made at the first call, to be copied."""
    if "finished" not in stage.built:
        stage.built["finished"] = _build(stage)
    return stage.built["finished"]


def copy_state(source: Path, root: Path) -> None:
    """Into a fresh root, and onto the disk, so that what is measured next does not pay for it."""
    target = root / "state"
    target.mkdir(mode=0o750)
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
        with open(target / path.name, "rb+") as file:
            os.fsync(file.fileno())


def _build(stage: Stage) -> Path:
    """Real runs of a real daemon, copied within the ledger until there are enough: each row is what it would be."""
    seed = min(_SEED, stage.sizes.finished)
    asked = requests(seed)
    place = stage.folder / "finished"
    with stage.root() as root:
        with watching(root) as watch, stage.daemon(root) as daemon:
            submit_all(root, asked)
            watch.wait(seed, within=stage.sizes.patience)
            validated(root, asked)
            daemon.stop(within=stage.sizes.patience)
        multiply(root / "state" / "ledger.db", stage.sizes.finished)
        shutil.move(root / "state", place)
    return place


def multiply(path: Path, count: int) -> None:
    """Copy the runs of a ledger under other ids until there are `count`."""
    with closing(open_writer(path)) as db:
        db.execute("PRAGMA synchronous = OFF")
        columns = [row[1] for row in db.execute("PRAGMA table_info(runs)") if row[1] not in ("seq", "run_id")]
        rest = ", ".join(columns)
        (there,) = db.execute("SELECT max(seq) FROM runs").fetchone()
        while there < count:
            more = min(there, count - there)
            db.execute(
                f"INSERT INTO runs (seq, run_id, {rest}) "
                f"SELECT seq + ?, 'finished-' || (seq + ?), {rest} FROM runs WHERE seq <= ?",
                (there, there, more),
            )
            there += more
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
