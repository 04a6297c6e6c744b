"""What the daemon holds before it does anything: its folders, the lock on them, and the nursery of its workers.

Imports little: the nursery imports the library while the supervisor imports itself.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from craft_easy_jobd.errors import folder_error, shortage
from craft_easy_jobd.folders import PRIVATE, THROUGH, spread_out
from craft_easy_jobd.identity import Rights
from craft_easy_jobd.instance import environment_of, instance_of
from craft_easy_jobd.nursery import Nursery
from craft_easy_jobd.rootlock import root_lock
from craft_easy_jobd.settings import Settings


@contextmanager
def premises(settings: Settings) -> Iterator[Nursery]:
    """Hold them.

    Raises:
        FolderError, RootLockedError, SettingsError, ShortageError: the text is for the operator.
    """
    # A reload that is asked for so early is about to happen anyway. Not ignored: so would it be in workers.
    signal.signal(signal.SIGHUP, lambda *_: None)
    _make_folder(Path(settings.root), THROUGH if Rights(settings).lets_others_in else PRIVATE)
    spread_out(Path(settings.root))
    _make_folder(settings.state_dir, PRIVATE)
    with root_lock(settings.state_dir):
        nursery = Nursery(environment_of(instance_of(settings.state_dir)))
        try:
            _start(nursery)
            yield nursery
        finally:
            nursery.close()


def _start(nursery: Nursery) -> None:
    try:
        nursery.start()
    except OSError as error:
        raise shortage(error) or error from None


def _make_folder(path: Path, mode: int) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise folder_error(error, f"{path}: {error.strerror}; create it or choose another --root") from None
