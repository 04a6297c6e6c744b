"""Find and end the processes that a test started, also those that left its process tree."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil


def children(pid: int) -> list[psutil.Process]:
    """The process's descendants; empty when it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def carrying(mark: str) -> list[psutil.Process]:
    """Every other process whose environment holds `mark` (`NAME=value`), whoever its parent is now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            if pid != os.getpid() and mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(psutil.Process(pid))
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


def kill_all(processes: Iterable[psutil.Process], *, within: float = 10.0) -> None:
    """Kill processes and wait for their end; those that ended already are passed over."""
    victims = list(processes)
    for process in victims:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(victims, timeout=within)
    if alive:
        raise AssertionError(f"not gone {within} s after SIGKILL: {alive}")
