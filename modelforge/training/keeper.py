"""The Trainer's callback that keeps a run: validations, learning rate, best weights, checkpoints, metrics.csv, stopping.

A Lightning epoch is here the stretch from one validation to the next. What a signal asks for is done at the next step.
"""

import copy
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from modelforge.data.module import DataModule
from modelforge.training.checkpoint import SCHEMA, Checkpoint, save_checkpoint
from modelforge.training.listener import Listener, Validation
from modelforge.training.metrics import errors
from modelforge.training.metrics_file import MetricsFile
from modelforge.training.section import TrainingSection
from modelforge.training.stop_signal import StopSignal
from modelforge.training.task import TrainingTask

STEPS_BETWEEN_AGREEMENTS = 20  # of several processes, on whether to stop
SECONDS_BETWEEN_SAVES = 20.0  # at validations
SECONDS_BETWEEN_SAVES_IN_A_STRETCH = 600.0  # without a validation in between
SECONDS_BETWEEN_LOOKS = 0.1  # at a process that compiles
SECONDS_BETWEEN_CHECKS = 10.0  # of the loss, which make the host wait for the device


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""


class NotFinite(Exception):
    """The loss or a gradient is not finite any more; `step` is the number of the batch where that began, if it is known."""

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


@dataclass
class KeeperState:
    """What the keeper continues from."""

    best_loss: float = float("inf")
    validations_without_improvement: int = 0
    seconds: float = 0.0
    reason: str = ""  # why the run ended, once it has
    ended_with: str = ""  # the keys that decided on that: with others it may go on


class RunKeeper(pl.Callback):
    """Keeps a run in its folder."""

    def __init__(self, section: TrainingSection, folder: Path, *, experiment: str, length: str) -> None:
        self.section, self.folder, self.experiment, self.length = section, folder, experiment, length
        self.listeners: list[Listener] = []
        self.state = KeeperState()
        self.metrics = MetricsFile(folder / "metrics.csv")
        self.stop_signal = StopSignal()
        self._begun = self._checked = time.perf_counter()
        self._saved = time.perf_counter() - SECONDS_BETWEEN_SAVES  # the first validation is saved at once
        self._best: Checkpoint | None = None  # not on disk yet
        self._stretch_seconds = 0.0
        self._stretch_structures = 0

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        self.state = KeeperState(**state)

    @property
    def has_ended(self) -> bool:
        """Whether the training came to its end before, by the same keys as now; only its test may be missing."""
        return self.state.ended_with == self.length

    @property
    def seconds(self) -> float:
        """Training time, over all resumptions."""
        return self.state.seconds + time.perf_counter() - self._begun

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        task = _task(pl_module)
        self._begun = time.perf_counter()
        task.compiler.tell = self.say
        self.state.reason = self.state.ended_with = ""
        if trainer.is_global_zero:
            self.metrics.keep_until(task.steps)
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
        if time.perf_counter() - self._checked > SECONDS_BETWEEN_CHECKS:
            self._checked = time.perf_counter()
            self._check_finite(task, "training", float(task.training_loss[0]))
        if not self._time_to_look(trainer, task):
            return
        if task.compiler.is_awaited(task.steps):
            self.say("waiting for the compiled step")
        while task.compiler.is_awaited(task.steps) and self.stop_signal.number is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)  # here and not within the step, so that a signal ends the waiting
        if self._agreed(trainer, self.stop_signal.number is not None):
            self.save(trainer, task)
            raise Interrupted(f"{self.stop_signal.name} at step {task.steps}")
        self._look_for_limits(trainer, task)
        if time.perf_counter() - self._saved > SECONDS_BETWEEN_SAVES_IN_A_STRETCH and trainer.world_size == 1:
            self.save(trainer, task)

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

    def _look_for_limits(self, trainer: pl.Trainer, task: TrainingTask) -> None:
        """Let the trainer come to an end of its own at a limit."""
        limit = self.section.seconds
        if self.section.max_steps is not None and task.optimizer_steps >= self.section.max_steps:
            trainer.should_stop = True
        elif limit is not None and self._agreed(trainer, self.seconds > limit) and not trainer.should_stop:
            self.state.reason = f"max_time ({self.section.max_time}) reached"
            trainer.should_stop = True

    def _agreed(self, trainer: pl.Trainer, wish: bool) -> bool:
        """Whether any process wishes it; the same answer on all, so that none waits for one that has left."""
        return wish if trainer.world_size == 1 else bool(trainer.strategy.reduce_boolean_decision(wish, all=False))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the errors, adapt the learning rate, keep the best weights, decide whether to stop."""
        task = _task(pl_module)
        validation = self._validation(task)
        self._check_finite(task, "training", validation.training_loss)
        self._check_finite(task, "validation", validation.validation_loss)
        task.learning_rate.after_validation(validation.validation_loss, task.steps)
        patience = self.section.early_stopping.patience
        if patience is not None and self.state.validations_without_improvement >= patience:
            self.state.reason = f"early stopping: no improvement of the validation loss in {patience} validations"
            trainer.should_stop = True
        self._look_for_limits(trainer, task)
        self._record(trainer, task, validation)
        is_over = trainer.should_stop or task.steps >= task.total_steps
        if is_over:
            self.state.reason = self.state.reason or _usual_reason(task, self.section)
            self.state.ended_with = self.length
        is_interrupted = self._agreed(trainer, self.stop_signal.number is not None) and not is_over
        if is_over or is_interrupted or time.perf_counter() - self._saved > SECONDS_BETWEEN_SAVES:
            self.save(trainer, task)
        if is_interrupted:
            raise Interrupted(f"{self.stop_signal.name} at step {task.steps}")

    def _record(self, trainer: pl.Trainer, task: TrainingTask, validation: Validation) -> None:
        """Show the validation, write its row, remember the state if it is the best."""
        for listener in self.listeners:
            listener.validated(validation)
        for logger in trainer.loggers:
            logger.log_metrics({key: value for key, value in validation.row().items() if value is not None}, task.steps)
        if trainer.is_global_zero:
            self.metrics.append(validation.row())
            if validation.is_best:
                self._best = copy.deepcopy(self._checkpoint(task))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand out the next stretch of batches."""
        next_stretch(_data(trainer), _task(pl_module), self.section)

    def save(self, trainer: pl.Trainer, task: TrainingTask) -> None:
        """Write last.ckpt, and best.ckpt where there is a better one than on disk; never weights that are not finite."""
        if not trainer.is_global_zero:
            return
        self._check_finite(task, "training", float(task.training_loss[0]))
        self._save_best()
        folder = self.folder / "checkpoints"
        save_checkpoint(folder / "last.ckpt", self._checkpoint(task), previous=folder / "previous.ckpt")
        self._saved = time.perf_counter()

    def _save_best(self) -> None:
        if self._best is not None:
            save_checkpoint(self.folder / "checkpoints" / "best.ckpt", self._best)
            self._best = None

    def _checkpoint(self, task: TrainingTask) -> Checkpoint:
        keeper = asdict(self.state) | {"seconds": self.seconds}
        return Checkpoint(schema=SCHEMA, experiment=self.experiment, task=task.state(), keeper=keeper)

    def _validation(self, task: TrainingTask) -> Validation:
        loss, count = task.over_processes(task.training_loss).tolist()
        speed = self._stretch_structures / self._stretch_seconds if self._stretch_seconds else 0.0
        validation_loss = task.validation_loss()
        is_best = validation_loss < self.state.best_loss
        counts = validation_loss < self.state.best_loss * (1.0 - self.section.early_stopping.threshold)
        if is_best:
            self.state.best_loss = validation_loss
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

    def _check_finite(self, task: TrainingTask, name: str, loss: float) -> None:
        if math.isfinite(loss):
            return
        self._save_best()
        fault = task.faults.first_fault()
        found = f"the {name} loss is {loss} at step {task.steps}"
        if fault is not None:
            found = f"{fault.what} is not finite at step {fault.step}"
        raise NotFinite(
            f"{found}. The last good weights are in {self.folder / 'checkpoints'}. Lower training.optimizer.learning_rate or "
            "training.clipping.factor, or look for wrong labels",
            step=fault.step if fault else None,
        )


def next_stretch(data: DataModule, task: TrainingTask, section: TrainingSection) -> None:
    """Let the data module hand out the batches up to the next validation."""
    length = section.validation_interval(task.steps_per_epoch)
    data.first_step = task.steps
    data.last_step = min((task.steps // length + 1) * length, task.total_steps)


def num_stretches(task: TrainingTask, section: TrainingSection) -> int:
    """Validations that are still to come."""
    length = section.validation_interval(task.steps_per_epoch)
    return -(-task.total_steps // length) - task.steps // length


def _usual_reason(task: TrainingTask, section: TrainingSection) -> str:
    has_all_steps = section.max_steps is not None and task.optimizer_steps >= section.max_steps
    return "max_steps reached" if has_all_steps else "max_epochs reached"


def _task(module: pl.LightningModule) -> TrainingTask:
    assert isinstance(module, TrainingTask)
    return module


def _data(trainer: pl.Trainer) -> DataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, DataModule)
    return data
