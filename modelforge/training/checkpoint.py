"""Checkpoints: plain tensors and numbers, written at once or not at all, verified and read without executing anything."""

import hashlib
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from modelforge.errors import UserError
from modelforge.files import replacing
from modelforge.training.task import TaskState

SCHEMA = 1
DAMAGED = (OSError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError)  # what torch raises for damaged files


class Checkpoint(TypedDict):
    """What a run continues from."""

    schema: int
    experiment: str  # the resolved experiment, TOML
    task: TaskState
    keeper: dict[str, Any]  # best loss, patience, training time
    digest: NotRequired[str]  # of all that, to tell a file that was damaged since


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, previous: Path | None = None) -> None:
    """Write a checkpoint at once or not at all; the one that it takes the place of is kept as `previous`."""
    signed = Checkpoint({**checkpoint, "digest": digest_of(checkpoint)})
    with replacing(path) as temporary:
        torch.save(signed, temporary)
        if previous is not None and path.exists():
            _keep(path, previous)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, so that it is there under one of them at any moment."""
    link = previous.with_name(f".{previous.name}.tmp")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, previous)
    except OSError:  # no such links here
        os.replace(path, previous)


def latest_checkpoint(path: Path, previous: Path) -> tuple[Checkpoint, str] | None:
    """The last checkpoint that can be read, and what is wrong with a later one; None where there is none at all."""
    if not path.exists() and not previous.exists():
        return None
    try:
        return load_checkpoint(path), ""
    except UserError as error:
        if not previous.exists():
            raise
        return load_checkpoint(previous), str(error).partition("; delete")[0]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU and verify it."""
    try:
        checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}); delete it to start from the beginning, "
            "or restore a good copy"
        ) from error
    if checkpoint.get("schema") != SCHEMA:
        raise UserError(f"{path}: checkpoint of another version (schema {checkpoint.get('schema')}, expected {SCHEMA})")
    if checkpoint.get("digest", "") not in ("", digest_of(checkpoint)):
        raise UserError(
            f"{path}: cannot be read as a checkpoint (its content has changed since it was written); delete it to start from "
            "the beginning, or restore a good copy"
        )
    return checkpoint


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
