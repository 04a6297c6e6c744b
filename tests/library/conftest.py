"""A registry of its own for tests that declare jobs and chains."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from craft_easy_jobs.chaining import chains
from craft_easy_jobs.definition import Registry, registry


@pytest.fixture
def fresh_registry() -> Iterator[Registry]:
    """The registry, empty; what the session's modules registered comes back afterwards."""
    jobs, declared = list(registry.values()), dict(chains)
    registry.clear()
    chains.clear()
    yield registry
    registry.clear()
    chains.clear()
    chains.update(declared)
    for definition in jobs:
        registry.add(definition)


@pytest.fixture
def import_state() -> Iterator[None]:
    """Forget the modules and search paths that a test adds."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, import_state: None) -> Path:
    """An author's folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
