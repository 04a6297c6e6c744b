"""The thread in which the supervisor reads the ledger: nothing here can write or hold up the writer."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.ledger_schema import open_reader

T = TypeVar("T")


class Reader:
    """One read-only connection in a thread of its own; opened at its first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._db: sqlite3.Connection | None = None
        self._closed = False

    async def call(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read in the thread.

        Raises:
            LedgerError: the ledger is closed or cannot be read.
        """
        if self._closed:
            raise LedgerError(f"{self._path}: the ledger is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, read)

    async def close(self) -> None:
        """Close after what was called before."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self._db = self._db or open_reader(self._path)
            return read(self._db)
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: cannot read the ledger: {error}") from error

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
