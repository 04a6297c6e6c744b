"""aiohttp's server without its client, which would take 70 ms and 4 MB: the package imports it before all else.

So `aiohttp.web` is imported from a package that was not executed. That leans on how aiohttp is built; where another
version is built otherwise, all of it is imported.
"""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Handler

    __all__ = ["Handler", "web"]


def _import_server() -> None:
    spec = find_spec("aiohttp")
    if "aiohttp" in sys.modules or spec is None:
        return
    package = module_from_spec(spec)
    # For the header Server: who asks need not know.
    package.__version__ = ""  # type: ignore[attr-defined]
    sys.modules["aiohttp"] = package
    try:
        import_module("aiohttp.web")
    except (ImportError, AttributeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "aiohttp"]:
            del sys.modules[name]


if not TYPE_CHECKING:
    _import_server()
    web = import_module("aiohttp.web")
    Handler = import_module("aiohttp.typedefs").Handler
