"""Containment by a cgroup for each worker, where a part of the cgroup2 tree is the daemon's."""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from craft_easy_jobd.accounting import VMSTAT, Account, Accounting, CgroupAccount, TreeAccount
from craft_easy_jobd.containment import Containment, ProcessTrees, adopt_orphans, reap, sweep_carriers
from craft_easy_jobd.errors import SettingsError
from craft_easy_jobd.footprint import children
from craft_easy_jobd.instance import MARK
from craft_easy_jobd.status import ContainmentKind

# As DelegateSubgroup=supervisor of a unit would have it from the start.
_LEAF = "supervisor"

_OFF = "the setting cgroup is off"
_NOT_DELEGATED = "no cgroup2 was handed over (Delegate= of the unit, or the setting cgroup)"

# As systemd marks what it hands over; the second is for root only.
_DELEGATED = ("user.delegate", "trusted.delegate")


class Cgroups:
    """No process leaves its cgroup by a fork or an exec, and the kernel kills all of it, however fast it forks.

    Args:
        folder: the part of the tree that is the daemon's.
        instance: tells the cgroups of this daemon from those of others.
        accounting: whether workers have the memory controller in theirs.
    """

    kind: ContainmentKind = "cgroup"

    def __init__(self, folder: Path, instance: str, accounting: Accounting) -> None:
        self.accounting = accounting
        self._folder = folder
        self._prefix = f"craft-easy-jobs-{instance}-"
        self.environment = {MARK: instance}

    def cgroup(self, name: str) -> str | None:
        path = self._path(name)
        path.mkdir(exist_ok=True)
        return str(path)

    def account(self, name: str, pid: int) -> Account:
        return CgroupAccount(self._path(name)) if self.accounting.kind == "cgroup" else TreeAccount(pid)

    def sweep(self, name: str, pid: int | None, spared: Collection[int]) -> list[int] | None:
        found = _sweep(self._path(name))
        # What workers left came to the daemon.
        for each in children(os.getpid()):
            if each not in spared:
                reap(each)
        return found

    def sweep_leftovers(self, spared: Collection[int] = ()) -> list[int]:
        left = [path for path in self._folder.iterdir() if path.name.startswith(self._prefix)]
        # Before they are killed: who dies at once would not be told of.
        found = [pid for path in left for pid in _members(path)]
        for path in left:
            _sweep(path)
        # That life may have had no cgroups.
        return found + sweep_carriers(self.environment, spared)

    def _path(self, name: str) -> Path:
        return self._folder / (self._prefix + name)


def contain(setting: str, instance: str) -> Containment:
    """The containment that the setting asks for and the machine has.

    Raises:
        SettingsError: the folder that it names is of no use.
    """
    folder = None if setting == "off" else _delegated() if setting == "auto" else Path(setting)
    # Workers are forked as orphans.
    adopt_orphans()
    if folder is None:
        return ProcessTrees(instance, _OFF if setting == "off" else _NOT_DELEGATED, _kills())
    if problem := _useless(folder):
        raise SettingsError("settings", "cgroup", f"{folder}: {problem}; name another folder, or say off")
    return Cgroups(folder, instance, _hand_down_memory(folder))


def _delegated() -> Path | None:
    """The own cgroup, when it was handed over and can be used; or the one above, when this is the leaf in it."""
    own = _own()
    path = own.parent if own and own.name == _LEAF else own
    return path if path and _is_delegated(path) and not _useless(path) else None


def _hand_down_memory(folder: Path) -> Accounting:
    """Give the memory controller to the cgroups that will be made in the folder, if it has one itself."""
    try:
        if "memory" not in (folder / "cgroup.controllers").read_text().split():
            return Accounting("process tree", f"{folder} has no memory controller (Delegate=memory of the unit)")
        if _own() == folder:
            # The kernel gives controllers to cgroups within a cgroup only when no process is in between.
            leaf = folder / _LEAF
            leaf.mkdir(exist_ok=True)
            for pid in (folder / "cgroup.procs").read_text().split():
                _move(pid, leaf)
        (folder / "cgroup.subtree_control").write_text("+memory")
    except OSError as error:
        return Accounting("process tree", f"{folder} cannot hand its memory controller down: {error.strerror}")
    return Accounting("cgroup", f"{folder} has the memory controller")


def _move(pid: str, folder: Path) -> None:
    # The nursery may have died.
    with suppress(ProcessLookupError):
        (folder / "cgroup.procs").write_text(pid)


def _kills() -> Path:
    """Where the kernel counts its kills for want of memory; of this daemon and its workers only, if that is counted."""
    own = _own()
    events = own / "memory.events" if own else VMSTAT
    return events if events.exists() else VMSTAT


def _own() -> Path | None:
    """The folder of the cgroup2 that this process is in."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    inside = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        root, point = mount.split()[3:5]
        if source.startswith("cgroup2 ") and root == "/" and inside is not None:
            return Path(point, inside)
    return None


def _is_delegated(path: Path) -> bool:
    for name in _DELEGATED:
        with suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _useless(path: Path) -> str | None:
    if not (path / "cgroup.kill").exists():
        return "no folder of a cgroup2 tree that has cgroup.kill (Linux 5.14)"
    writable = all(os.access(each, os.W_OK, effective_ids=True) for each in (path, path / "cgroup.procs"))
    return None if writable else f"user id {os.geteuid()} may make no cgroups in it"


def _sweep(path: Path) -> list[int] | None:
    """Kill what is in a cgroup, remove it when nothing is; returns whom it found, None when it is removed."""
    with suppress(FileNotFoundError):
        (path / "cgroup.kill").write_text("1")
        found = _members(path)
        return found if not _removed(path) else None
    return None


def _members(path: Path) -> list[int]:
    found: list[int] = []
    for procs in (path / "cgroup.procs", *path.glob("**/*/cgroup.procs")):
        # One may be removed meanwhile, by the job that made it.
        with suppress(OSError):
            found += map(int, procs.read_text().split())
    return found


def _removed(path: Path) -> bool:
    """Remove a cgroup with those that jobs made in it; the kernel refuses while a process is there."""
    try:
        for folder, _, _ in os.walk(path, topdown=False):
            os.rmdir(folder)
    except OSError:
        return not path.exists()
    return True
