"""Imports source as it is on disk now, and knows it by its digest.

Python takes bytecode for up to date when it has the size of its source and the second of its last change. So a module
that is changed twice within a second, as by two reloads of the daemon, might be imported as it was before.
"""

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

_PACKAGES = {"site-packages", "dist-packages"}
_OWN = os.path.dirname(__file__) + os.sep
_STANDARD = os.path.dirname(os.__file__) + os.sep
_loaders: "dict[str, FreshLoader]" = {}


class FreshLoader(SourceFileLoader):
    """Loads an author's module; bytecode helps where it is beyond doubt.

    Attributes:
        digest: SHA-256 of the source that was imported, empty before.
    """

    digest = b""

    def get_code(self, fullname: str) -> CodeType | None:
        while True:
            before = _identity(self.path)
            self.digest = hashlib.sha256(self.get_data(self.path)).digest()
            code = super().get_code(fullname)
            if _identity(self.path) == before:
                _loaders[fullname] = self
                return code

    def get_data(self, path: str) -> bytes:
        if path.endswith(".pyc") and os.stat(path).st_mtime < _next_second(os.stat(self.path)):
            raise OSError("the source may have changed in the second in which this bytecode was made")
        return super().get_data(path)

    def path_stats(self, path: str) -> dict[str, float]:
        if time.time() < _next_second(os.stat(path)):
            raise OSError("the source may change again in the second of its last change: no bytecode yet")
        return dict(super().path_stats(path))


class _Finder:
    """Finds what Python's own finder does; modules that are not installed get a FreshLoader."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader and not _is_installed(spec.loader.path):
            spec.loader = FreshLoader(spec.loader.name, spec.loader.path)
        return spec


def import_fresh() -> None:
    """Import what is not installed as it is on disk, from now on in this process. Twice is harmless."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(sys.meta_path.index(PathFinder), _Finder)


def imported() -> dict[str, bytes]:
    """The digests of the modules that were imported so and are there now, by path."""
    # Not by a look into each of sys.modules: some do things when they are asked for an attribute.
    return {loader.path: loader.digest for name, loader in _loaders.items() if name in sys.modules}


def _is_installed(path: str) -> bool:
    return path.startswith((_OWN, _STANDARD)) or not _PACKAGES.isdisjoint(path.split(os.sep))


def _identity(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _next_second(status: os.stat_result) -> int:
    return int(status.st_mtime) + 1
