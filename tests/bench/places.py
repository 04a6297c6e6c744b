"""Which file system is measured, and on what machine."""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.waiting import wait_until

_LOOP_BYTES = 8 << 30


class FileSystem(NamedTuple):
    """`journal`: None where the question makes no sense or nobody can tell."""

    kind: str
    device: str
    journal: bool | None

    def __str__(self) -> str:
        journal = {True: " with a journal", False: " without a journal", None: ""}[self.journal]
        return f"{self.kind}{journal}"

    @property
    def caution(self) -> str | None:
        """Why figures from here say little, None when they do not."""
        if self.kind == "tmpfs":
            return "This is no disk: a sync costs nothing here."
        if self.kind == "ext4" and self.journal is False:
            # The kernel passes over each inode that was freed in the last minutes (recently_deleted in ialloc.c).
            return "Without a journal, ext4 creates files slowly for minutes after others were deleted; see --loop."
        return None


def file_system(folder: Path) -> FileSystem:
    """What `folder` lies on."""
    device, kind = mount_of(str(folder.resolve()), Path("/proc/mounts").read_text())
    return FileSystem(kind, device, _journal(Path(device).name) if kind in ("ext3", "ext4") else None)


def mount_of(path: str, mounts: str) -> tuple[str, str]:
    """Device and kind, by /proc/mounts: of the mounts that hold the path the deepest, and of these the last."""
    lines = [line.split() for line in mounts.splitlines()]
    holding = [
        (len(point), index, device, kind)
        for index, (device, escaped, kind, *_) in enumerate(lines)
        if os.path.commonpath([path, point := _unescaped(escaped)]) == point
    ]
    _, _, device, kind = max(holding)
    return device, kind


def _unescaped(mount_point: str) -> str:
    """/proc/mounts writes a space and the like in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mount_point)


def _journal(device: str) -> bool | None:
    # The journal's thread has a folder there, named after the device; without the folder nothing can be told.
    journals, known = Path("/proc/fs/jbd2"), Path("/proc/fs/ext4", device)
    if not known.exists():
        return None
    return any(each.name.startswith(f"{device}-") for each in journals.glob("*"))


class Machine(NamedTuple):
    """What figures depend on."""

    cpu: str
    cores: int
    kernel: str
    python: str
    memory_gb: int

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, {self.memory_gb} GB, Linux {self.kernel}, Python {self.python}"


def machine() -> Machine:
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return Machine(
        cpu[1].strip() if cpu else platform.machine(),
        len(os.sched_getaffinity(0)),
        platform.release(),
        platform.python_version(),
        round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
    )


@contextmanager
def place(folder: Path, *, loop: bool) -> Iterator[Path]:
    """A fresh folder below `folder`, or on an ext4 with a journal whose image lies there; gone at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="b", dir=folder))
    try:
        if loop:
            with _loop_mount(fresh) as mounted:
                yield mounted
        else:
            yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def _loop_mount(folder: Path) -> Iterator[Path]:
    """Root only. The image is sparse: it takes the room that is used."""
    image, mounted = folder / "image", folder / "m"
    with image.open("wb") as file:
        file.truncate(_LOOP_BYTES)
    mounted.mkdir()
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "has_journal", "-E", "lazy_itable_init=0", str(image))
    _run("mount", "-o", "loop", str(image), str(mounted))
    try:
        yield mounted
    finally:
        _unmount(mounted)


def _unmount(mounted: Path) -> None:
    """Waits for processes that are on their way out: they are dead before they let go of their files."""
    command = ["umount", str(mounted)]
    wait_until(
        lambda: subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0, within=10.0, every=0.1
    )


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
