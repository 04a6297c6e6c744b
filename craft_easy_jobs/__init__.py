"""Write batch jobs as async functions; run them with `craft-easy-job` or the daemon `craft-easy-jobd`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from craft_easy_jobs.chaining import Chain, ChainStep, chain
    from craft_easy_jobs.context import JobContext
    from craft_easy_jobs.definition import job
    from craft_easy_jobs.model import JobResult
    from craft_easy_jobs.runner import JobRunner

__version__ = "0.1.0"

__all__ = ["Chain", "ChainStep", "JobContext", "JobResult", "JobRunner", "chain", "job"]

# Names are resolved at first use (PEP 562): a command pays only for the modules that it needs.
_HOMES = {
    "Chain": "chaining",
    "ChainStep": "chaining",
    "JobContext": "context",
    "JobResult": "model",
    "JobRunner": "runner",
    "chain": "chaining",
    "job": "definition",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
