"""The Trainer's callback that keeps a run: validations, learning rate, best weights, checkpoints, metrics.csv, stopping.

A Lightning epoch is here the stretch from one validation to the next. What a signal asks for is done at the next step.
"""

import csv
import io
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import pytorch_lightning as pl

from modelforge.data.module import DataModule
from modelforge.files import write_text
from modelforge.training.checkpoint import Checkpoint, save_checkpoint
from modelforge.training.metrics import Errors, errors
from modelforge.training.section import TrainingSection
from modelforge.training.task import TrainingTask

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


STEPS_BETWEEN_AGREEMENTS = 20


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""


class NotFinite(Exception):
    """The loss is not finite any more; the message says where."""


@dataclass(frozen=True)
class Validation:
    """What is known after a validation."""

    step: int
    epoch: float
    seconds: float  # of training so far
    learning_rate: float
    training_loss: float
    validation_loss: float
    training: Errors
    validation: Errors
    structures_per_second: float
    is_best: bool
    waiting_for: str  # plateau and early stopping in words

    def row(self) -> dict[str, float | int | None]:
        """The row of metrics.csv."""
        numbers: dict[str, float | int | None] = {
            "step": self.step,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "learning_rate": self.learning_rate,
            "structures_per_second": self.structures_per_second,
            "train/loss": self.training_loss,
            "val/loss": self.validation_loss,
        }
        for name, found in (("train", self.training), ("val", self.validation)):
            numbers |= {f"{name}/{key}": value for key, value in found.items() if not key.startswith("num_")}
        return numbers


class Listener(Protocol):
    """Someone who shows a run: a progress bar, plain lines, TensorBoard."""

    def started(self, *, step: int, total_steps: int, seconds: float) -> None:
        """Training begins or goes on."""

    def stepped(self, *, step: int) -> None:
        """A training step is over."""

    def validated(self, validation: Validation) -> None:
        """A validation is over."""

    def said(self, message: str) -> None:
        """Something the user should know."""


@dataclass
class KeeperState:
    """What the keeper continues from."""

    best_loss: float = float("inf")
    best_step: int = 0
    validations_without_improvement: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float | int | None]] = field(default_factory=list)


class RunKeeper(pl.Callback):
    """Keeps a run in its folder."""

    def __init__(self, section: TrainingSection, folder: Path, experiment: str, listeners: list[Listener]) -> None:
        self.section, self.folder, self.experiment, self.listeners = section, folder, experiment, listeners
        self.state = KeeperState()
        self.reason = "max_epochs reached" if section.max_steps is None else "max_steps reached"
        self.first_step_seconds: float | None = None
        self._stop_signal: int | None = None
        self._begun = time.perf_counter()
        self._stretch_seconds = 0.0
        self._stretch_structures = 0

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        self.state = KeeperState(**state)

    @property
    def seconds(self) -> float:
        """Training time, over all resumptions."""
        return self.state.seconds + time.perf_counter() - self._begun

    @contextmanager
    def listening_to_signals(self) -> Iterator[None]:
        """Signals set a flag; a second Ctrl-C interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._stop_signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop_signal = number

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        task = _task(pl_module)
        self._begun = time.perf_counter()
        task.compiler.tell = self.say
        for listener in self.listeners:
            listener.started(step=task.steps, total_steps=task.total_steps, seconds=self.state.seconds)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.state.seconds = self.seconds

    def say(self, message: str) -> None:
        """Tell the user something."""
        for listener in self.listeners:
            listener.said(message)

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Start the clock of a step."""
        self._step_begun = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the step; act on signals and on the time limit."""
        task = _task(pl_module)
        self._stretch_seconds += time.perf_counter() - self._step_begun
        self._stretch_structures += batch.graph.num_structures * trainer.world_size
        for listener in self.listeners:
            listener.stepped(step=task.steps)
        if self._time_to_look(trainer, task) and self._asked_to_stop(trainer):
            self.save(trainer, task)
            raise self._interruption(task)

    def _time_to_look(self, trainer: pl.Trainer, task: TrainingTask) -> bool:
        """Whether to look at signals and clock: at steps from which a resumed run goes on with the same bits.

        Not where a validation follows, which looks itself; not with gradients half summed up; and seldom where processes
        have to agree.
        """
        data = _data(trainer)
        optimizer_steps, half_summed_up = divmod(task.steps - data.first_step, self.section.accumulate_batches)
        if half_summed_up or task.steps >= data.last_step:
            return False
        return trainer.world_size == 1 or optimizer_steps % STEPS_BETWEEN_AGREEMENTS == 0

    def _asked_to_stop(self, trainer: pl.Trainer) -> bool:
        """Whether a signal came; the time limit lets the trainer come to an end of its own."""
        if self._agreed(trainer, self._stop_signal is not None):
            return True
        limit = self.section.seconds
        if limit is not None and self._agreed(trainer, self.seconds > limit) and not trainer.should_stop:
            self.reason = f"max_time ({self.section.max_time}) reached"
            trainer.should_stop = True
        return False

    def _interruption(self, task: TrainingTask) -> Interrupted:
        name = signal.Signals(self._stop_signal).name if self._stop_signal else "signal to another process"
        return Interrupted(f"{name} at step {task.steps}")

    def _agreed(self, trainer: pl.Trainer, wish: bool) -> bool:
        """Whether any process wishes it; the same answer on all, so that none waits for one that has left."""
        return wish if trainer.world_size == 1 else bool(trainer.strategy.reduce_boolean_decision(wish, all=False))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the errors, adapt the learning rate, keep the best weights, decide whether to stop."""
        task = _task(pl_module)
        validation = self._validation(task)
        self._check_finite(task, validation)
        task.learning_rate.after_validation(validation.validation_loss, task.optimizer_steps)
        self.state.rows.append(validation.row())
        patience = self.section.early_stopping.patience
        if patience is not None and self.state.validations_without_improvement >= patience:
            self.reason = f"early stopping: no improvement of the validation loss in {patience} validations"
            trainer.should_stop = True
        if trainer.is_global_zero:
            self._write_csv()
        for logger in trainer.loggers:
            logger.log_metrics({key: value for key, value in validation.row().items() if value is not None}, task.steps)
        self.save(trainer, task, best=validation.is_best)
        for listener in self.listeners:
            listener.validated(validation)
        if task.steps < task.total_steps and self._asked_to_stop(trainer) and not trainer.should_stop:
            raise self._interruption(task)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand out the next stretch of batches."""
        next_stretch(_data(trainer), _task(pl_module), self.section)

    def save(self, trainer: pl.Trainer, task: TrainingTask, *, best: bool = False) -> None:
        """Write last.ckpt, and best.ckpt where it is the best so far."""
        if not trainer.is_global_zero:
            return
        keeper = asdict(self.state) | {"seconds": self.seconds}
        checkpoint = Checkpoint(schema=1, experiment=self.experiment, task=task.state(), keeper=keeper)
        if best:
            save_checkpoint(self.folder / "checkpoints" / "best.ckpt", checkpoint)
        save_checkpoint(self.folder / "checkpoints" / "last.ckpt", checkpoint)

    def _validation(self, task: TrainingTask) -> Validation:
        loss, count = task.over_processes(task.training_loss).tolist()
        speed = self._stretch_structures / self._stretch_seconds if self._stretch_seconds else 0.0
        validation_loss = task.validation_loss()
        is_best = validation_loss < self.state.best_loss
        counts = validation_loss < self.state.best_loss * (1.0 - self.section.early_stopping.threshold)
        if is_best:
            self.state.best_loss, self.state.best_step = validation_loss, task.steps
        self.state.validations_without_improvement = 0 if counts else self.state.validations_without_improvement + 1
        validation = Validation(
            step=task.steps,
            epoch=task.steps / task.steps_per_epoch,
            seconds=self.seconds,
            learning_rate=float(task.optimizer.param_groups[0]["lr"]),
            training_loss=loss / max(count, 1.0),
            validation_loss=validation_loss,
            training=errors(task.training_errors),
            validation=errors(task.validation_errors),
            structures_per_second=speed,
            is_best=is_best,
            waiting_for=self._waiting_for(task),
        )
        task.training_loss.zero_()
        task.training_errors.reset()
        self._stretch_seconds, self._stretch_structures = 0.0, 0
        return validation

    def _waiting_for(self, task: TrainingTask) -> str:
        patience = self.section.early_stopping.patience
        stopping = f"stop {self.state.validations_without_improvement}/{patience}" if patience else None
        return ", ".join(filter(None, [task.learning_rate.in_words(), stopping]))

    def _check_finite(self, task: TrainingTask, validation: Validation) -> None:
        for name, value in (("training", validation.training_loss), ("validation", validation.validation_loss)):
            if not abs(value) < float("inf"):
                raise NotFinite(
                    f"the {name} loss is {value} after step {task.steps}. The last good weights are in "
                    f"{self.folder / 'checkpoints'}. Lower training.optimizer.learning_rate, or set a smaller "
                    "training.gradient_clip_factor"
                )

    def _write_csv(self) -> None:
        text = io.StringIO()
        measured = [key for key in self.state.rows[0] if any(row[key] is not None for row in self.state.rows)]
        writer = csv.DictWriter(text, fieldnames=measured, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in self.state.rows)
        write_text(self.folder / "metrics.csv", text.getvalue())


def next_stretch(data: DataModule, task: TrainingTask, section: TrainingSection) -> None:
    """Let the data module hand out the batches up to the next validation."""
    length = section.validation_interval(task.steps_per_epoch)
    data.first_step = task.steps
    data.last_step = min((task.steps // length + 1) * length, task.total_steps)


def num_stretches(task: TrainingTask, section: TrainingSection) -> int:
    """Validations that are still to come."""
    length = section.validation_interval(task.steps_per_epoch)
    return -(-task.total_steps // length) - task.steps // length


def _short(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _task(module: pl.LightningModule) -> TrainingTask:
    assert isinstance(module, TrainingTask)
    return module


def _data(trainer: pl.Trainer) -> DataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, DataModule)
    return data
