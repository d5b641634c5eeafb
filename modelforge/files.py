"""Files that are written at once or not at all: a reader finds the old one or the new one, never half of it. And locks.

What is written is on the disk, with its name, when a function here returns. Its errors name the file that was to be written.
"""

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # a folder that may be written to but not read cannot be opened


def temporary_beside(path: Path) -> Path:
    """A name beside `path` for what will take its place."""
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # no process id: those of two hosts may be equal


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends, and is removed if it fails."""
    temporary = temporary_beside(path)
    try:
        with _named(path, instead_of=temporary):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        with suppress(OSError):  # on a read-only disk there is none, and the first error is the one to tell
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file at once or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Add to the end of a text file at once or not at all."""
    content = text.encode()
    with _named(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def set_aside(path: Path) -> Path:
    """Move a damaged file out of the way and give its new place; an earlier one there is replaced."""
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    return aside


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes have left half written in a folder, if there is such a folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def _named(path: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Errors of the disk name `path`: those of a write name nothing, others perhaps a temporary file that is gone by then."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, instead_of and str(instead_of)):
            error.filename = str(path)
            del error.filename2  # the place of a rename
        raise


def _sync(folder: Path) -> None:
    """Let a rename in a folder last through a power failure, where the platform knows how."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def locked(path: Path, wait: Callable[[], None]) -> Iterator[bool]:
    """Whether this process has the lock of a file; False where the file system knows no locks. A dead process has none.

    `wait` is called before another process is waited for.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            yield False
            return
        yield True
