"""Find and end the processes that a test started, also those that left its process tree."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.support.waiting import wait_until


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


def ended(process: psutil.Process) -> bool:
    """It is gone, or a zombie with all its threads: who adopted it may take seconds to notice."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE and len(os.listdir(f"/proc/{process.pid}/task")) == 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def wait_ended(processes: Iterable[psutil.Process], *, within: float = 30.0) -> None:
    """Wait for the end of processes, whoever their parent is."""
    left = list(processes)

    def all_ended() -> bool:
        left[:] = [process for process in left if not ended(process)]
        return not left

    try:
        wait_until(all_ended, within=within)
    except AssertionError:
        raise AssertionError(f"not gone within {within} s: {left}") from None


def kill_all(processes: Iterable[psutil.Process], *, within: float = 30.0) -> None:
    """Kill processes and wait for their end; those that ended already are passed over."""
    victims = list(processes)
    for process in victims:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    wait_ended(victims, within=within)
