"""Folders in which a download arrives, each used by one process at a time; what they hold outlives a failure.

A file lock makes other processes wait. Where the file system knows no locks (some network disks), each process takes over
what has arrived by renaming the folder, works in a folder of its own, and gives it back by a rename if it fails.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from rich.filesize import decimal

from modelforge.files import locked


@contextmanager
def arrival_folder(place: Path, name: str, *, say: Callable[[str], None]) -> Iterator[Path]:
    """A folder in `place` for what arrives of `name`, for this process alone.

    It is removed with all that is in it when the block ends; if the block fails, what has arrived is there in the next call.
    """
    shared = place / f"{name}.arriving"
    with locked(place / f".{name}.lock", lambda: say("another process fetches the same file; waiting for it")) as alone:
        own = shared if alone else place / f"{name}.arriving.{uuid4().hex}"
        own.mkdir(exist_ok=True)
        if not alone:
            with suppress(FileNotFoundError):
                os.rename(shared, own)
        try:
            yield own
            shutil.rmtree(own)
        finally:
            if own.exists():
                _leave(own, shared)


def require_room(path: Path, num_bytes: int) -> None:
    """Stop with the error of a full disk if a file cannot grow by so many bytes."""
    if num_bytes > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, f"{decimal(num_bytes)} more are needed: {os.strerror(errno.ENOSPC)}", str(path))


def _leave(own: Path, shared: Path) -> None:
    """Leave what has arrived to the next call, unless nothing has, or another process has left something."""
    if not any(own.iterdir()):
        own.rmdir()
        return
    try:
        os.rename(own, shared)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(own)
