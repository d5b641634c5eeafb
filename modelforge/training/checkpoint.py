"""Checkpoints: plain tensors and numbers, written at once or not at all, read without executing anything."""

import pickle
from pathlib import Path
from typing import Any, TypedDict

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


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint at once or not at all."""
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU."""
    try:
        checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}); delete it to start from the beginning, "
            "or restore a good copy"
        ) from error
    if checkpoint.get("schema") != SCHEMA:
        raise UserError(f"{path}: checkpoint of another version (schema {checkpoint.get('schema')}, expected {SCHEMA})")
    return checkpoint
