"""Files that are written at once or not at all: a reader finds the old one or the new one, never half of it. And locks."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends, and is removed if it fails."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # no process id: those of two hosts may be equal
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # on a read-only disk there is none, and the first error is the one to tell
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file at once or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
