"""File systems of the tests' own, which can be cut off from power, filled, and made read-only. Root only."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.book import workplace
from tests.support.waiting import wait_until

# include/uapi/linux/fs.h, FS_IOC_SHUTDOWN; 2: not even the journal is written out, as when the power goes.
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2


def run(*command: str) -> str:
    """What the command says; OSError with its complaint when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.partition(chr(10))[0]}")
    return done.stdout.strip()


def require_mounts() -> None:
    """Skip where file systems cannot be mounted; where CI runs as root they must be."""
    try:
        with disk(8):
            return
    except (OSError, FileNotFoundError) as error:
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            raise AssertionError(f"CI runs as root, so this must not be skipped: {error}") from error
        pytest.skip(f"needs root and loop devices: {error}")


class Disk:
    """A mounted file system."""

    def __init__(self, folder: Path, source: str, *options: str) -> None:
        self.folder = folder
        self._source = source
        self._options = options
        folder.mkdir(exist_ok=True)

    def mount(self) -> None:
        run("mount", *self._options, self._source, str(self.folder))

    def unmount(self) -> None:
        """Waits for processes that are on their way out: they are dead before they let go of their files."""
        wait_until(self._unmounted)
        # A mount namespace that others made meanwhile keeps it alive, and a file system that lives stays without power.
        wait_until(lambda: not self._alive.exists())

    def _unmounted(self) -> bool:
        return subprocess.run(["umount", str(self.folder)], stderr=subprocess.DEVNULL, check=False).returncode == 0

    @property
    def _alive(self) -> Path:
        """There while the kernel knows the file system, by whatever mount."""
        return Path("/sys/fs/ext4", Path(self._source).name)

    def remove(self) -> None:
        """Also while it is in use; its loop device goes with its last user."""
        subprocess.run(["umount", "--lazy", str(self.folder)], stderr=subprocess.DEVNULL, check=False)
        if self._source.startswith("/dev/"):
            run("losetup", "--detach", self._source)

    def cut_power(self) -> None:
        """From now on nothing reaches the disk, and what was not synced is gone."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def remount(self, mode: str) -> None:
        run("mount", "-o", f"remount,{mode}", str(self.folder))

    def fill(self) -> Path:
        """Take all the room that is left; unlink the file to give it back."""
        path = self.folder / "filler"
        with path.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while file.write(b"x" * size):
                        os.fsync(file.fileno())
                except OSError:
                    continue
        return path


@contextmanager
def disk(megabytes: int, kind: str = "ext4") -> Iterator[Disk]:
    """A small file system of this kind, `ext4` on a loop device or `tmpfs`; unmounted and gone when the block ends."""
    with workplace() as place:
        image = place / "image"
        if kind == "ext4":
            with image.open("wb") as file:
                file.truncate(megabytes << 20)
            run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
            made = Disk(place / "disk", run("losetup", "--find", "--show", str(image)))
        else:
            made = Disk(place / "disk", "none", "-t", kind, "-o", f"size={megabytes}m")
        try:
            made.mount()
            yield made
            made.unmount()
        finally:
            made.remove()
