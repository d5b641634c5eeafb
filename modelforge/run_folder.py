"""The folder that a run leaves: where its files are, and whether a start begins, resumes, or has nothing left to do."""

import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelforge.errors import UserError
from modelforge.experiment import Experiment, load
from modelforge.files import remove_temporaries
from modelforge.training.learning_rate import CosineDecay

REHEARSAL = ".rehearsal"  # the name of what a rehearsal writes, and removes

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
FIXED_RUNTIME_KEYS = ("runtime.seed", "runtime.precision", "runtime.matmul_precision")

Settings = dict[str, Any]  # dotted key -> value


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
    def start(self) -> Path:
        """A copy of the potential that the run started from."""
        return self.path / "start.safetensors"

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
    def checkpoints(self) -> tuple[Path, Path]:
        """Where to go on from: the last one, and the one before."""
        return self.last_checkpoint, self.previous_checkpoint

    @property
    def metrics(self) -> Path:
        """A row per validation."""
        return self.path / "metrics.csv"

    @property
    def results(self) -> Path:
        """Numbers of the finished run."""
        return self.path / "results.json"

    def predictions(self, name: str) -> Path:
        """Structures of a test set with predictions."""
        return self.path / "predictions" / f"{name}.extxyz"

    def shares(self, name: str, num_processes: int) -> list[Path]:
        """Where each process lays its share of the predictions of a test set, for a moment."""
        return [self.path / "predictions" / f".{name}.{rank}.npz" for rank in range(num_processes)]

    def refuse_unwritable(self) -> None:
        """Stop if the folder could not be made or written to; makes nothing."""
        nearest = next(place for place in (self.path, *self.path.parents) if os.path.lexists(place))
        which = "which" if nearest == self.path else f"but {nearest}"
        if not nearest.is_dir():
            raise _unwritable(self.path, f"{which} is a file")
        if os.statvfs(nearest).f_flag & os.ST_RDONLY:
            raise _unwritable(self.path, f"{which} is on a read-only disk")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise _unwritable(self.path, f"{which} cannot be written to with your permissions")

    def create(self) -> None:
        """Make the folder, or say why it cannot be."""
        self.refuse_unwritable()
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):  # of a name of its own: the other processes try the same now
                pass
        except OSError as error:
            raise _unwritable(self.path, error.strerror or str(error)) from error

    def refuse_misplaced(self) -> None:
        """Stop if there is a folder where a file of the run belongs, or the other way round."""
        files = (self.experiment, self.log, self.split, self.start, self.metrics, self.results, self.best_checkpoint)
        for path in (*files, *self.checkpoints):
            if path.is_dir():
                raise UserError(f"{path}: must be a file of the run (is a folder); remove it or choose another run folder")
        for path in {self.best_checkpoint.parent, self.predictions("any").parent}:
            if path.exists() and not path.is_dir():
                raise UserError(f"{path}: must be a folder of the run (is a file); remove it or choose another run folder")

    def remove_leftovers(self) -> None:
        """Remove what a killed process has left half written."""
        checkpoints, predictions = self.best_checkpoint.parent, self.predictions("any").parent
        for folder in (self.path, checkpoints, predictions):
            remove_temporaries(folder)
        for path in (*predictions.glob(".*.npz"), checkpoints / f"{REHEARSAL}.ckpt"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / REHEARSAL, ignore_errors=True)

    def losses(self) -> Iterator[str]:
        """What a run that goes on should find here and does not, and what follows from that."""
        if not any(path.exists() for path in self.checkpoints):
            if self.metrics.exists():
                yield f"{self.metrics} is there, but no checkpoint: the run starts from the beginning"
            return
        if not self.split.exists():
            yield f"{self.split} is gone: the split is drawn again, which is the same one if the data are the same"
        if not self.experiment.exists():
            yield f"{self.experiment} is gone: it is written again, as the settings are those of the checkpoint"

    def finished_results(self, experiment: Experiment) -> dict[str, Any] | None:
        """The results if the run is finished and the experiment asks for nothing more; none where they are damaged."""
        if not self.results.exists():
            return None
        try:
            results = json.loads(self.results.read_bytes())
        except ValueError:
            return None
        return results if isinstance(results, dict) and results.get("length", {}) == length_of(experiment) else None

    def refuse_other_experiment(self, experiment: Experiment, *, saved: Callable[[], str | None] = lambda: None) -> None:
        """Stop if the folder holds a run with other keys that decide on its result.

        `saved` gives the experiment that its checkpoint holds: beside that, a damaged or absent experiment.toml stops nothing.
        """
        now, unreadable = _decisive(experiment), None
        before = None
        if self.experiment.exists():
            try:
                before = _decisive(load(self.experiment).experiment)
            except UserError as error:
                unreadable = error
        if before != now:
            before = _settings_in(saved()) or before
        if before is None and unreadable is not None:
            raise UserError(
                f"{self.experiment}: the settings of this run cannot be read; restore a good copy, or delete it:\n"
                + textwrap.indent(str(unreadable), "  ")
            ) from unreadable
        if before is not None and before != now:
            raise _other_settings(self.path, before, now)


def _settings_in(saved: str | None) -> Settings | None:
    """The settings of a resolved experiment; none if it is of a version with other keys."""
    if saved is None:
        return None
    with tempfile.TemporaryDirectory() as folder, suppress(UserError):
        copy = Path(folder) / "experiment.toml"
        copy.write_text(saved, encoding="utf-8")
        return _decisive(load(copy).experiment)
    return None


def _other_settings(path: Path, before: Settings, now: Settings) -> UserError:
    changed = [
        f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    return UserError(
        f"{path}: holds a run with other settings:\n  "
        + "\n  ".join(changed)
        + "\nA run cannot go on with these changed. Choose another runtime.run_folder, or delete this one"
    )


def _unwritable(path: Path, reason: str) -> UserError:
    return UserError(f"runtime.run_folder: must be a folder to write to (got {path}, {reason}); choose another")


def length_of(experiment: Experiment) -> dict[str, Any]:
    """The keys that decide when a run is finished: none where weights are solved for."""
    if experiment.potential.is_closed_form:
        return {}
    training = experiment.training
    return {
        "max_epochs": training.max_epochs,
        "max_steps": training.max_steps,
        "max_time": training.max_time,
        "early_stopping": training.early_stopping.model_dump(),
    }


def _decisive(experiment: Experiment) -> Settings:
    flat = _flat(experiment.model_dump(), "")
    fixed: tuple[str, ...] = FIXED_RUNTIME_KEYS
    if isinstance(experiment.training.lr_scheduler, CosineDecay):  # its rates follow from the length of the run
        fixed += ("training.max_epochs", "training.max_steps")
    return {key: _named(value) for key, value in flat.items() if key in fixed or not key.startswith(FREE_KEYS)}


def _named(value: object) -> object:
    """A path by its name alone: a project may be moved, and whether the data are the same is told by their hash."""
    if isinstance(value, tuple | list):
        return tuple(_named(entry) for entry in value)
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
