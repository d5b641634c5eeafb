"""What a full, read-only or vanished disk means for a run: one message with file, reason, what is kept, and what to do."""

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelforge.errors import RunFailure
from modelforge.run_folder import RunFolder

FULL = (errno.ENOSPC, errno.EDQUOT)
REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "have the file system mounted for writing again",
    errno.EACCES: "give back the permission to write there",
    errno.EPERM: "give back the permission to write there",
    errno.ENOENT: "find out what removed it while the run went on",
    errno.ENOTDIR: "find out what replaced it while the run went on",
    errno.EISDIR: "find out what replaced it while the run went on",
    errno.EIO: "look after that disk, or move the run folder to another one",
    errno.ESTALE: "have the file system mounted again",
    errno.ENOTCONN: "have the file system mounted again",
    errno.ETIMEDOUT: "have the file system mounted again",
}


@contextmanager
def disk_failures_told(folder: RunFolder) -> Iterator[None]:
    """An error of the disk below the run folder becomes a `RunFailure`; files are replaced whole, so the last ones are good."""
    hook = threading.excepthook
    # TensorBoard writes in a thread, and raises its error again where the run closes it: it is told there.
    threading.excepthook = lambda failed: None if _concerns(failed.exc_value, folder) else hook(failed)
    try:
        yield
    except OSError as error:
        if not _concerns(error, folder):
            raise
        raise RunFailure(_in_words(folder, error)) from error
    finally:
        threading.excepthook = hook


def _concerns(error: BaseException | None, folder: RunFolder) -> bool:
    if not isinstance(error, OSError):
        return False
    if error.filename is None:
        return error.errno in FULL
    return error.errno in REMEDIES and Path(os.fsdecode(error.filename)).is_relative_to(folder.path)


def _in_words(folder: RunFolder, error: OSError) -> str:
    assert error.errno is not None
    place = f"{folder.path} or the folder for temporary files" if error.filename is None else os.fsdecode(error.filename)
    free = f" ({shutil.disk_usage(folder.path).free / 1e6:.3g} MB free)" if error.errno in FULL else ""
    return f"{place}: {error.strerror}{free}. {_what_is_kept(folder, error)} once you {REMEDIES[error.errno]}"


def _what_is_kept(folder: RunFolder, error: OSError) -> str:
    for path in folder.checkpoints:
        if os.path.exists(path):  # unlike that of a Path, it answers where permissions are gone, too
            return f"{path} is as it was: the same command goes on from there"
    if os.path.isdir(folder.best_checkpoint.parent) or error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "There is no checkpoint: the same command starts from the beginning"
    return "What was saved is as it was: the same command goes on from there"
