"""Checkpoints of earlier releases, brought up to date one schema at a time. A file of each is in the tests.

Schema 1 (0.1.0): the state of the keeper under `keeper`, the training loss as one sum, best weights in best.ckpt only.
Schema 2 (0.2.0): `progress`, sums of each loss term, two stages, best weights in every checkpoint.
Schema 3 (0.3.0): errors of dipoles, quadrupoles and partial charges.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from modelforge.errors import UserError

OLDEST = 1
COLUMNS_OF_3 = 22  # of sums of errors
Stored = dict[str, Any]
Read = Callable[[Path], Mapping[str, Any]]


def upgraded(checkpoint: Stored, path: Path, *, newest: int, read: Read) -> Stored:
    """The checkpoint in the newest schema; `read` reads another one that lies beside it."""
    schema = checkpoint.get("schema")
    if not isinstance(schema, int) or not OLDEST <= schema <= newest:
        raise UserError(
            f"{path}: checkpoint of another version (schema {schema}; this modelforge reads {OLDEST} to {newest}); "
            "go on with the version that wrote it, or start in another runtime.run_folder"
        )
    for step in range(schema, newest):
        checkpoint = UPGRADES[step](checkpoint, path, read)
    return checkpoint


def _from_1(old: Stored, path: Path, read: Read) -> Stored:
    task, keeper = dict(old["task"]), dict(old["keeper"])
    loss = task.pop("training_loss")
    terms = 1  # the sums of the terms cannot be told from their weighted sum: the next row of metrics.csv begins here
    task |= {"is_second_stage": False, "mean_of": None, "training_sums": loss.new_zeros(terms, 2, dtype=torch.float64)}
    progress = keeper | {"validated_step": task["steps"]}
    return {
        "schema": 2,
        "experiment": old["experiment"],
        "task": task,
        "progress": progress,
        "best": _best_of_1(old, path, read),
    }


def _best_of_1(old: Stored, path: Path, read: Read) -> list[Stored]:
    """Best weights lay in best.ckpt, beside last.ckpt; where that is gone, those of last.ckpt are the best that there are."""
    beside = path.with_name("best.ckpt")
    found = _readable(beside, read) if path != beside else None
    if found is None:
        task = old["task"]
        weights = {**task["weights"], **task["averaged_weights"]}
        is_average = any(not torch.equal(task["weights"][name], tensor) for name, tensor in task["averaged_weights"].items())
        return [{"steps": task["steps"], "kind": "EMA" if is_average else "raw", "is_second_stage": False, "weights": weights}]
    return list(found["best"])


def _readable(path: Path, read: Read) -> Mapping[str, Any] | None:
    with suppress(UserError):
        return read(path)
    return None


def _from_2(old: Stored, path: Path, read: Read) -> Stored:  # noqa: ARG001 - as the others
    """Of the errors that were added, none has been measured: their columns come after those that were there."""
    task = dict(old["task"])
    errors = dict(task["training_errors"])
    missing = COLUMNS_OF_3 - errors["by_subset"].shape[1]
    errors["by_subset"] = torch.nn.functional.pad(errors["by_subset"], (0, missing))
    return {**old, "schema": 3, "task": {**task, "training_errors": errors}}


UPGRADES: Mapping[int, Callable[[Stored, Path, Read], Stored]] = {1: _from_1, 2: _from_2}
