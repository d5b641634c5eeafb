"""Folders that are made once: by one process while others wait, complete or not there at all.

They are written under a temporary name and renamed. That two processes do not do the same work rests on a file lock; that
nothing breaks where locks do not work (some network disks) rests on the renaming alone.
"""

import errno
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from modelforge.data.store.columns import INDEX
from modelforge.errors import UserError
from modelforge.files import locked

Say = Callable[[str], None]


def silent(text: str) -> None:
    """Says nothing."""


ABANDONED = 24 * 3600.0  # seconds without a change: whoever wrote on another host is dead
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def prepared_once(folder: Path, make: Callable[[Path], None], *, what: str, say: Say) -> Path:
    """The folder, made by `make(temporary folder)` if it is not there; `what` is said before the work begins."""
    try:
        if (folder / INDEX).exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            folder.with_name(f"{folder.name}.lock"), lambda: say("another process prepares the same data; waiting for it")
        ) as alone:
            if not (folder / INDEX).exists():
                say(what)
                _make(folder, make, alone=alone)
    except OSError as error:
        raise disk_error(folder, error, "dataset.cache_folder") from error
    return folder


def make_folder(folder: Path, make: Callable[[Path], None], *, key: str) -> None:
    """A new folder, made by `make(temporary folder)`; complete or not there at all. An error names the `key` of the folder."""
    temporary = _temporary(folder)
    try:
        make(temporary)
        if folder.exists():
            raise UserError(f"{key}: {folder} has come into being meanwhile; nothing there was changed, choose another name")
        os.rename(temporary, folder)
    except OSError as error:
        raise disk_error(folder, error, key) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make(folder: Path, make: Callable[[Path], None], *, alone: bool) -> None:
    if alone:  # whoever began before us is dead
        for left in folder.parent.glob(f".{folder.name}.*.tmp"):
            if _is_left(left):
                shutil.rmtree(left, ignore_errors=True)
    temporary = _temporary(folder)
    try:
        make(temporary)
        if folder.exists() and not (folder / INDEX).exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (folder / INDEX).exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def _is_left(temporary: Path) -> bool:
    """Whether nobody writes into a temporary folder: locks of some network disks hold among the processes of one host only."""
    if f".{socket.gethostname()}." in temporary.name:
        return True
    try:
        changed = max(file.stat().st_mtime for file in (temporary, *temporary.glob("*")))
    except FileNotFoundError:  # somebody is at work there
        return False
    return time.time() - changed > ABANDONED


def disk_error(made: Path, error: OSError, key: str) -> UserError:
    """The error for a file or folder that could not be made; it begins with the key that names it."""
    folder = made.parent
    if isinstance(error.filename, str) and not _is_of(made.absolute(), Path(error.filename).absolute()):
        return UserError(f"{error.filename}: {error.strerror}")
    if error.errno in NO_SPACE:
        there = next(some for some in (folder, *folder.absolute().parents) if some.exists())
        free = shutil.disk_usage(there).free / 1e9
        return UserError(
            f"{key}: the disk of {folder} is full ({free:.1f} GB free; {error.strerror}); nothing there was "
            "changed. Make room, or name a folder on another disk"
        )
    if error.errno in NO_PERMISSION:
        return UserError(f"{key}: must be a folder that can be written to (got {folder}: {error.strerror}); name another")
    return UserError(f"{key}: {folder}: {error.strerror or error}; name another folder")


def _is_of(made: Path, path: Path) -> bool:
    """Whether a path belongs to a folder that is made: it is beside it under its name, or leads to it."""
    folder = made.parent
    if folder in path.parents:
        return made.name in path.relative_to(folder).parts[0]
    return path in (folder, *folder.parents)
