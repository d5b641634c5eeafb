"""Folders that are made once: by one process while others wait, complete or not there at all.

They are written under a temporary name and renamed. That two processes do not do the same work rests on a file lock; that
nothing breaks where locks do not work (some network disks) rests on the renaming alone.
"""

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelforge.data.store.columns import INDEX
from modelforge.errors import UserError

Say = Callable[[str], None]


def silent(text: str) -> None:
    """Says nothing."""


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def prepared_once(folder: Path, make: Callable[[Path], None], *, what: str, say: Say) -> Path:
    """The folder, made by `make(temporary folder)` if it is not there; `what` is said before the work begins."""
    if (folder / INDEX).exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock"), say) as alone:
            if not (folder / INDEX).exists():
                say(what)
                _make(folder, make, alone=alone)
    except OSError as error:
        raise _unwritable(folder.parent, error, "dataset.cache_folder") from error
    return folder


def make_folder(folder: Path, make: Callable[[Path], None], *, key: str) -> None:
    """The folder, made by `make(temporary folder)`; complete or not there at all. An error names the `key` of the folder."""
    try:
        _make(folder, make, alone=False)
    except OSError as error:
        raise _unwritable(folder.parent, error, key) from error


def _make(folder: Path, make: Callable[[Path], None], *, alone: bool) -> None:
    if alone:  # whoever began before us is dead
        for left in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
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


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[bool]:
    """Whether this process has the lock; False where the file system knows no locks. A dead process has none."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process prepares the same data; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                raise
            yield False
            return
        yield True


def _unwritable(folder: Path, error: OSError, key: str) -> UserError:
    if error.errno in NO_SPACE:
        free = shutil.disk_usage(folder).free / 1e9
        return UserError(
            f"{key}: the disk of {folder} is full ({free:.1f} GB free; {error.strerror}); nothing there was "
            "changed. Make room, or name a folder on another disk"
        )
    if error.errno in NO_PERMISSION:
        return UserError(
            f"{key}: must be a folder that can be written to (got {folder}: {error.strerror}); name another"
        )
    return UserError(f"{key}: {folder}: {error.strerror or error}; name another folder")
