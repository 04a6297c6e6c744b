"""Secrets that jobs read by name: each is a file of one folder, as systemd's LoadCredential= lays them out."""

import os
import re
import stat
from typing import TypeAlias

from craft_easy_jobs.errors import CredentialError, did_you_mean

Folder: TypeAlias = str | os.PathLike[str]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
_NO_FOLDER = (
    "there is no folder of credentials. For the daemon: LoadCredential={name}:/path/of/file in its unit, or the "
    "setting credentials; for craft-easy-job run: --credentials DIR"
)


def read_credential(folder: Folder | None, name: str) -> str:
    """The text of a credential, exactly as it is in its file, a line feed at its end too; read anew at each call.

    Args:
        name: letters, digits, `.`, `_` and `-`.

    Raises:
        CredentialError: there is none of this name, it cannot be read, or is no UTF-8 text.
    """
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise CredentialError(name, "a name has letters, digits, '.', '_' and '-' only")
    if folder is None:
        raise CredentialError(name, _NO_FOLDER.format(name=name))
    try:
        return _read(os.path.join(folder, name)).decode()
    except FileNotFoundError:
        raise CredentialError(name, f"there is none in {folder}; {_others(folder, name)}") from None
    except UnicodeDecodeError:
        # Its text would hold a part of the secret.
        problem = "is no UTF-8 text; encode it, with base64 for example"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise CredentialError(name, f"{os.path.join(folder, name)} {problem}")


def _read(path: str) -> bytes:
    # Not blocking: a pipe in this place would hold up the whole worker.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(None, "not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def _others(folder: Folder, name: str) -> str:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _NAME.fullmatch(entry.name) and entry.is_file()]
    except OSError as error:
        return f"the folder cannot be read: {error.strerror}"
    return did_you_mean(name, names, "there are")
