"""Import the modules that register jobs; what goes wrong in them is told in one line."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from craft_easy_jobs.chaining import chains
from craft_easy_jobs.definition import registry
from craft_easy_jobs.errors import CraftEasyJobsError, LoadError
from craft_easy_jobs.failures import one_line, place_of
from craft_easy_jobs.sources import FreshLoader, import_fresh, imported

ENTRY_POINT_GROUP = "craft_easy_jobs"


def load_jobs(modules: Sequence[str], *, entry_points: bool = True) -> None:
    """Import modules, so that their jobs and chains are registered.

    Args:
        modules: import names (`pkg.jobs`; the current folder is searched first) or paths of `.py` files, whose folder
            is searched for what they import.
        entry_points: import what installed distributions name in the group `craft_easy_jobs`, too.

    Raises:
        LoadError: says which module, the cause in one line, and file and line.
    """
    import_fresh()
    _search(os.getcwd())
    for module in modules:
        _load(module)
    if entry_points and _has_entry_points():
        from importlib import metadata

        for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
            _guarded(f"{point.value} (entry point {point.name})", point.load)


def load_object(place: str) -> Any:
    """What `module:name` names; the module is an import name or the path of a `.py` file, as for `load_jobs`.

    Raises:
        LoadError: the place has another form, the module cannot be imported, or has no such name.
    """
    module, _, name = place.rpartition(":")
    if not module or not name:
        raise LoadError(place, "write module:name")
    _search(os.getcwd())
    _load(module)
    try:
        return getattr(sys.modules[_name_of(module)], name)
    except AttributeError:
        raise LoadError(module, f"it has no {name!r}") from None


def code_version(modules: Sequence[str] = ()) -> str | None:
    """Twelve hex digits that change when the author's source does, as it was when it was imported.

    That is the source of the modules, of the registered jobs and chains, and of all that was imported and is not
    installed. None when there is no source to look at.
    """
    digests = imported()
    places = [*(job.source for job in registry.values()), *(chain.source for chain in chains.values())]
    files = {place.rpartition(":")[0] for place in places}
    files |= {getattr(sys.modules.get(_name_of(module)), "__file__", None) or "" for module in modules}
    for file in files - digests.keys():
        if os.path.isfile(file):
            digests[file] = hashlib.sha256(Path(file).read_bytes()).digest()
    return hashlib.sha256(b"".join(sorted(digests.values()))).hexdigest()[:12] if digests else None


def _has_entry_points() -> bool:
    """Whether to look for them as Python does: that costs each worker 15 ms and 4 MB, and mostly there are none."""
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except NotADirectoryError:
            # An archive, if it is anything.
            return True
        except OSError:
            continue
        for name in names:
            if name.lower().endswith(("dist-info", "egg-info")):
                # A file is metadata of an old form, which has no entry points.
                with suppress(OSError), open(os.path.join(folder, name, "entry_points.txt"), "rb") as file:
                    if f"[{ENTRY_POINT_GROUP}]".encode() in file.read():
                        return True
    return False


def _load(module: str) -> None:
    if module.endswith(".py"):
        _guarded(module, _load_file, module)
    else:
        _guarded(module, importlib.import_module, module)


def _guarded(module: str, load: Callable[..., Any], *arguments: str) -> None:
    try:
        load(*arguments)
    except LoadError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(module, _explain(error)) from error


def _load_file(path: str) -> None:
    file, name = Path(path).absolute(), _name_of(path)
    if not file.is_file():
        raise LoadError(path, f"there is no such file in {os.getcwd()}")
    if earlier := sys.modules.get(name):
        if earlier.__file__ == str(file):
            return
        raise LoadError(path, f"a module {name!r} is already imported from {earlier.__file__}; rename the file")
    _search(str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file, loader=FreshLoader(name, str(file)))
    if spec is None or spec.loader is None:
        raise LoadError(path, "Python cannot import such a file")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _name_of(module: str) -> str:
    return Path(module).stem if module.endswith(".py") else module


def _search(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _explain(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"syntax error: {error.msg} ({error.filename}:{error.lineno})"
    place = place_of(error.__traceback__)
    if place is None and isinstance(error, ModuleNotFoundError):
        return f"there is no module {error.name!r} in {os.getcwd()} or among the installed packages"
    return f"{_cause(error)} ({place})" if place else _cause(error)


def _cause(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r}) while it was imported"
    if isinstance(error, CraftEasyJobsError):
        return str(error)
    return one_line(error)
