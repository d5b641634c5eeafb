"""The folder that a run leaves: where its files are, and whether a start begins, resumes, or has nothing left to do."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelforge.errors import UserError
from modelforge.experiment import Experiment, load

# Keys that change how long, where or how visibly a run goes on, not what it computes.
FREE_KEYS = (
    "runtime.",
    "training.max_epochs",
    "training.max_steps",
    "training.max_time",
    "training.early_stopping.",
    "training.evaluation_batch_size",
    "dataset.cache_folder",
    "dataset.audit",
)
FIXED_RUNTIME_KEYS = ("runtime.seed", "runtime.precision")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def experiment(self) -> Path:
        """The resolved experiment."""
        return self.path / "experiment.toml"

    @property
    def log(self) -> Path:
        """What the console said."""
        return self.path / "log.txt"

    @property
    def split(self) -> Path:
        """The sets."""
        return self.path / "split.npz"

    @property
    def last_checkpoint(self) -> Path:
        """Where to go on from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """The one before, for the case that the last is damaged."""
        return self.path / "checkpoints" / "previous.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The best weights so far."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def results(self) -> Path:
        """Numbers of the finished run."""
        return self.path / "results.json"

    def predictions(self, name: str) -> Path:
        """Structures of a test set with predictions."""
        return self.path / "predictions" / f"{name}.extxyz"

    def refuse_unwritable(self) -> None:
        """Stop if the folder could not be made or written to; makes nothing."""
        nearest = next(place for place in (self.path, *self.path.parents) if os.path.lexists(place))
        which = "which" if nearest == self.path else f"but {nearest}"
        if not nearest.is_dir():
            raise _unwritable(self.path, f"{which} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise _unwritable(self.path, f"{which} cannot be written to with your permissions")

    def create(self) -> None:
        """Make the folder, or say why it cannot be."""
        self.refuse_unwritable()
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise _unwritable(self.path, error.strerror or str(error)) from error

    def finished_results(self, experiment: Experiment) -> dict[str, Any] | None:
        """The results if the run is finished and the experiment asks for nothing more."""
        if not self.results.exists():
            return None
        results: dict[str, Any] = json.loads(self.results.read_text())
        return results if results.get("length") == length_of(experiment) else None

    def refuse_other_experiment(self, experiment: Experiment) -> None:
        """Stop if the folder holds a run with other keys that decide on its result."""
        if not self.experiment.exists():
            return
        before = _decisive(load(self.experiment).experiment)
        now = _decisive(experiment)
        changed = [
            f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise UserError(
                f"{self.path}: holds a run with other settings:\n  "
                + "\n  ".join(changed)
                + "\nA run cannot go on with these changed. Choose another runtime.run_folder, or delete this one"
            )


def _unwritable(path: Path, reason: str) -> UserError:
    return UserError(f"runtime.run_folder: must be a folder to write to (got {path}, {reason}); choose another")


def length_of(experiment: Experiment) -> dict[str, Any]:
    """The keys that decide when a run is finished."""
    training = experiment.training
    return {
        "max_epochs": training.max_epochs,
        "max_steps": training.max_steps,
        "max_time": training.max_time,
        "early_stopping": training.early_stopping.model_dump(),
    }


def _decisive(experiment: Experiment) -> dict[str, Any]:
    flat = _flat(experiment.model_dump(), "")
    return {key: value for key, value in flat.items() if key in FIXED_RUNTIME_KEYS or not key.startswith(FREE_KEYS)}


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
