"""Checkpoints: plain tensors and numbers, written at once or not at all, verified and read without executing anything."""

import errno
import hashlib
import io
import os
import pickle
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NotRequired, TypedDict, cast

import torch

from modelforge.errors import UserError
from modelforge.files import replacing, temporary_beside
from modelforge.training.checkpoint_upgrades import upgraded
from modelforge.training.progress import BestWeights
from modelforge.training.task import TaskState

SCHEMA = 3
FIRST_SCHEMA_WITH_DIGEST = 2
DAMAGED = (  # what torch raises for damaged files
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


class DamagedCheckpoint(UserError):
    """A checkpoint that is not what was written; the one before may be."""


class Checkpoint(TypedDict):
    """What a run continues from."""

    schema: int
    experiment: str  # the resolved experiment, TOML
    task: TaskState
    progress: dict[str, Any]  # the fields of `Progress`
    best: list[BestWeights]  # of each stage so far
    digest: NotRequired[str]  # of all that, to tell a file that was damaged since


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, previous: Path | None = None) -> None:
    """Write a checkpoint at once or not at all; the one that it takes the place of is kept as `previous`."""
    signed = Checkpoint({**checkpoint, "digest": digest_of(checkpoint)})
    content = io.BytesIO()
    torch.save(signed, content)  # not into the file: on a full disk torch says nothing of use
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())
        if previous is not None and path.exists():
            _keep(path, previous)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, so that it is there under one of them at any moment."""
    link = temporary_beside(previous)
    try:
        os.link(path, link)
        os.replace(link, previous)
        link.unlink(missing_ok=True)  # renaming does nothing where both are the same file already, as after a kill just here
    except OSError:  # no such links here
        os.replace(path, previous)


def latest_checkpoint(path: Path, previous: Path) -> tuple[Checkpoint, str] | None:
    """The last checkpoint that can be read, and what is wrong with a later one; None where there is none at all."""
    if not path.exists() and not previous.exists():
        return None
    try:
        return load_checkpoint(path), ""
    except DamagedCheckpoint as error:
        if not previous.exists():
            raise
        damage = str(error).partition("; delete")[0]
    try:
        return load_checkpoint(previous), damage
    except DamagedCheckpoint as error:
        older = str(error).partition("; delete")[0]
        raise UserError(f"{damage}; {older}; delete both to start from the beginning, or restore a good copy") from error


def saved_experiment(path: Path, previous: Path) -> str | None:
    """The resolved experiment in the last checkpoint that can be read, if there is one."""
    try:
        latest = latest_checkpoint(path, previous)
    except UserError:  # which is told where the run is to go on from it
        return None
    return latest[0]["experiment"] if latest else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, verify it, and bring one of an earlier release up to date.

    `DamagedCheckpoint` if it is absent or not what was written; another `UserError` if it may not be read.
    """
    try:
        with _opened(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names in a damaged file that torch finds out of date
            found: object = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not _is_genuine(found):
            raise _damaged(path, "its content has changed since it was written")
    except DAMAGED as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(path, type(error).__name__) from error
    return cast(Checkpoint, upgraded(found, path, newest=SCHEMA, read=load_checkpoint))


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOENT, errno.EIO):
            raise _damaged(path, reason) from error
        raise UserError(f"{path}: must be a file that can be read (got: {reason}); make it readable, or delete it") from error


def _is_genuine(found: Mapping[str, Any]) -> bool:
    """Whether the content has its digest; the oldest checkpoints have none."""
    if "digest" not in found and found.get("schema") in range(FIRST_SCHEMA_WITH_DIGEST):
        return True
    return bool(found.get("digest") == digest_of(found))


def _damaged(path: Path, reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"{path}: cannot be read as a checkpoint ({reason}); delete it to start from the beginning, or restore a good copy"
    )


def digest_of(checkpoint: Mapping[str, Any]) -> str:
    """A digest of everything in a checkpoint but the digest itself."""
    digest = hashlib.blake2b(digest_size=16)

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                digest.update(repr(key).encode())
                add(entry)
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            for entry in value:
                add(entry)
        else:
            digest.update(repr(value).encode())

    for key in sorted(checkpoint.keys() - {"digest"}):
        digest.update(key.encode())
        add(checkpoint[key])
    return digest.hexdigest()
