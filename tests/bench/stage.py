"""Where a scenario plays: sizes, fresh folders, running daemons; and what it does there to be bounded and clean."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.bench.figures import Figure
from tests.support.daemon import DaemonProcess

# sun_path has room for 107 bytes.
_LONGEST_ROOT = 107 - len("/control.sock")


class BenchError(Exception):
    """What was measured is worth nothing: a result is missing, or something took too long."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything; times are seconds."""

    runs: int = 5_000
    samples: int = 300
    sleepers: tuple[int, ...] = (1_000, 10_000)
    queued: int = 10_000
    finished: int = 1_000_000
    stopped: int = 1_000
    chatty: int = 1_000
    mixed: int = 2_000
    tenants: int = 1_000
    killed: int = 2_000
    commands: int = 5
    peer_runs: int = 2_000
    peer_sleepers: int = 1_000
    patience: float = 120.0
    """No wait is longer."""


QUICK = Sizes(
    runs=200,
    samples=20,
    sleepers=(50,),
    queued=200,
    finished=2_000,
    stopped=20,
    chatty=20,
    mixed=50,
    tenants=20,
    killed=200,
    commands=1,
    peer_runs=100,
    peer_sleepers=20,
    patience=30.0,
)


@dataclass(frozen=True)
class Stage:
    """`folder` lies on the file system that is measured; `built` keeps what all repetitions use."""

    folder: Path
    sizes: Sizes
    built: dict[str, Path]

    @contextmanager
    def root(self) -> Iterator[Path]:
        """A fresh folder with a short name; gone when the block ends."""
        place = Path(tempfile.mkdtemp(prefix="r", dir=self.folder))
        if len(str(place)) > _LONGEST_ROOT:
            place.rmdir()
            raise BenchError(f"{self.folder}: too long a path for a unix socket; choose a shorter --dir")
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @contextmanager
    def daemon(self, root: Path, *args: str, started: bool = True) -> Iterator[DaemonProcess]:
        """A daemon on `root` with two workers, ready unless `started` is False; gone with its workers at the end."""
        command = ("--jobs", "tests.bench.bench_jobs", "--workers", "2", "--log-level", "warning", *args)
        process = DaemonProcess(root, *command)
        try:
            yield process.start(within=self.sizes.patience) if started else process
        finally:
            process.close()


Samples = Mapping[str, float]


class Part(NamedTuple):
    """A scenario and the figures of which it returns a sample each."""

    scenario: Callable[[Stage], Samples]
    figures: Sequence[Figure]
