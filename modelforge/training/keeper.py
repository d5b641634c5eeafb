"""The Trainer's callback that keeps a run: validations, learning rate, best weights, checkpoints, metrics.csv, stopping.

A Lightning epoch is here the stretch from one validation to the next. What a signal asks for is done at the next step, or at
the next batch of a validation, which a resumed run then begins with.
"""

import copy
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from modelforge.data.module import DataModule
from modelforge.training.agreement import any_process
from modelforge.training.checkpoint import SCHEMA, Checkpoint, save_checkpoint
from modelforge.training.deadline import Deadline
from modelforge.training.endings import early_stopping, length_reached, second_stage_due, waiting_for
from modelforge.training.listener import Listener, Validation
from modelforge.training.metrics_file import MetricsFile
from modelforge.training.not_finite import NotFinite, not_finite
from modelforge.training.progress import BestWeights, Progress
from modelforge.training.section import TrainingSection
from modelforge.training.stop_signal import Interrupted, StopSignal
from modelforge.training.stretches import next_stretch
from modelforge.training.task import TrainingTask
from modelforge.training.validation import StepClock, validation_of

STEPS_BETWEEN_AGREEMENTS = 20  # of several processes, on whether to stop
SECONDS_BETWEEN_SAVES = 20.0  # at validations
SECONDS_BETWEEN_SAVES_IN_A_STRETCH = 600.0  # without a validation in between
SECONDS_BETWEEN_LOOKS = 0.1  # at a process that compiles
SECONDS_BETWEEN_CHECKS = 10.0  # of the loss, which make the host wait for the device


class RunKeeper(pl.Callback):
    """Keeps a run in its folder."""

    def __init__(
        self,
        section: TrainingSection,
        folder: Path,
        *,
        experiment: str,
        length: str,
        stop_signal: StopSignal,
        end_of_job: float | None = None,
    ) -> None:
        """`length`: the keys that decide when the run ends; `end_of_job`: in seconds since 1970."""
        self.section, self.folder, self.experiment, self.length = section, folder, experiment, length
        self.listeners: list[Listener] = []
        self.progress = Progress()
        self.best: list[BestWeights] = []  # of each stage so far
        self.metrics = MetricsFile(folder / "metrics.csv")
        self.stop_signal = stop_signal
        self.deadline = Deadline(end_of_job)
        self.clock = StepClock()
        self._begun = self._checked = time.perf_counter()
        self._saved = time.perf_counter() - SECONDS_BETWEEN_SAVES  # the first validation is saved at once
        self._best_checkpoint: Checkpoint | None = None  # not on disk yet

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.progress = Progress(**checkpoint["progress"])
        self.best = checkpoint["best"]

    @property
    def has_ended(self) -> bool:
        """Whether the training came to its end before, by the same keys as now; only its test may be missing."""
        return self.progress.ended_with == self.length

    @property
    def seconds(self) -> float:
        """Training time, over all resumptions."""
        return self.progress.seconds + time.perf_counter() - self._begun

    def say(self, message: str) -> None:
        """Tell the user something."""
        for listener in self.listeners:
            listener.said(message)

    # Lightning's hooks, in the order of a run

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a validation that is owed comes next."""
        task = _task(pl_module)
        self._begun = time.perf_counter()
        self.deadline.begin()
        task.compiler.tell = self.say
        self.progress.reason = self.progress.ended_with = ""
        if trainer.is_global_zero:
            self.metrics.keep_until(self.progress.validated_step)
        for listener in self.listeners:
            listener.started(step=task.steps, total_steps=task.total_steps, seconds=self.progress.seconds)

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Start the clock of a step."""
        self.clock.begin_step()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the step; act on signals and limits."""
        task = _task(pl_module)
        self.clock.end_step(batch.graph.num_structures)
        for listener in self.listeners:
            listener.stepped(step=task.steps)
        if self._time_to_look(trainer, task):
            self._wait_for_the_compiler(task)
            self._act(trainer, task)

    def _time_to_look(self, trainer: pl.Trainer, task: TrainingTask) -> bool:
        """Whether to look at signals and clock: at steps from which a resumed run goes on with the same bits.

        Not where a validation follows, which looks itself; not with gradients half summed up; and seldom where processes
        have to agree.
        """
        data = _data(trainer)
        optimizer_steps, half_summed_up = divmod(task.steps - data.first_step, self.section.accumulate_batches)
        if half_summed_up or task.steps >= data.last_step:
            return False
        return (
            trainer.world_size == 1
            or optimizer_steps % STEPS_BETWEEN_AGREEMENTS == 0
            or task.steps == task.compiler.switch_step
        )

    def _wait_for_the_compiler(self, task: TrainingTask) -> None:
        """Here and not within the step, so that a signal ends the waiting."""
        if task.compiler.is_awaited(task.steps):
            self.say("waiting for the compiled step")
        while task.compiler.is_awaited(task.steps) and self.stop_signal.number is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _act(self, trainer: pl.Trainer, task: TrainingTask) -> None:
        """Stop, save or come to an end if any process has a reason for it."""
        is_faulty, is_to_stop, is_over_time, is_to_save = any_process(
            trainer,
            (
                self._looks_faulty(task),
                self._is_to_stop,
                self.section.seconds is not None and self.seconds > self.section.seconds,
                time.perf_counter() - self._saved > SECONDS_BETWEEN_SAVES_IN_A_STRETCH,
            ),
        )
        if is_faulty:
            raise self._not_finite(trainer, task, f"a loss is not finite at step {task.steps}")
        if is_to_stop or is_to_save:
            task.pool_training_sums()
            self.save(trainer, task)
        if is_to_stop:
            raise Interrupted(f"{self._reason_to_stop} at step {task.steps}")
        self._end_if_due(trainer, is_over_time)

    def _looks_faulty(self, task: TrainingTask) -> bool:
        """Whether the loss is not finite; looked at seldom, as the host waits for the device."""
        if time.perf_counter() - self._checked < SECONDS_BETWEEN_CHECKS:
            return False
        self._checked = time.perf_counter()
        return self._is_faulty(task)

    def _is_faulty(self, task: TrainingTask) -> bool:
        return task.faults.first_fault() is not None or not bool(torch.isfinite(task.training_sums).all())

    @property
    def _is_to_stop(self) -> bool:
        return self.stop_signal.number is not None or self.deadline.is_near()

    @property
    def _reason_to_stop(self) -> str:
        is_of_this_process = self.stop_signal.number is not None or not self.deadline.is_near()
        return self.stop_signal.name if is_of_this_process else "the time limit of the job is near"

    def _end_if_due(self, trainer: pl.Trainer, is_over_time: bool) -> None:
        """Let the trainer come to an end of its own at the limit of time; that of steps is in the total number of steps."""
        if is_over_time and not trainer.should_stop:
            self.progress.reason = f"max_time ({self.section.max_time}) reached"
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that one has begun; it may be saved in the middle of it, where processes do not meet."""
        self.progress.is_validating = True
        _task(pl_module).pool_training_sums()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop here if asked to. Of several processes the first one only saves: they agree at the end of the validation."""
        if not self._is_to_stop:
            return
        task = _task(pl_module)
        if trainer.world_size == 1:
            self.save(trainer, task)
            raise Interrupted(f"{self._reason_to_stop} in the validation after step {task.steps}")
        if time.perf_counter() - self._saved > SECONDS_BETWEEN_SAVES:
            self.save(trainer, task)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the errors, adapt the learning rate, keep the best weights, decide whether to stop."""
        task = _task(pl_module)
        found = validation_of(trainer, task, _data(trainer), self.clock, self.seconds)
        if found.faulty_loss:
            raise self._not_finite(trainer, task, f"the {found.faulty_loss} loss is not finite at step {task.steps}")
        # One that ends a run between two regular ones would not be there if the run had been longer: nothing waits for it.
        # Nor for one while a loss weight is on its way to the value by which validations are compared.
        is_regular = task.steps % self.section.validation_interval(task.steps_per_epoch) == 0 and not task.is_on_schedule
        threshold = self.section.early_stopping.threshold if is_regular else None
        is_best = self.progress.scored(found.validation_loss, step=task.steps, threshold=threshold)
        if is_regular:
            task.learning_rate.after_validation(found.validation_loss, task.steps)
        is_to_stop, is_over_time = any_process(
            trainer, (self._is_to_stop, self.section.seconds is not None and self.seconds > self.section.seconds)
        )
        self._record(trainer, task, found, is_best=is_best)
        self._end_if_due(trainer, is_over_time)
        self._end_a_stage_if_due(trainer, task)
        is_over = trainer.should_stop or task.steps >= task.total_steps
        if is_over:
            self.progress.reason = self.progress.reason or length_reached(self.section, task)
            self.progress.ended_with = self.length
        is_interrupted = is_to_stop and not is_over
        if is_over or is_interrupted or time.perf_counter() - self._saved > SECONDS_BETWEEN_SAVES:
            self.save(trainer, task)
        if is_interrupted:
            raise Interrupted(f"{self._reason_to_stop} at step {task.steps}")

    def _record(self, trainer: pl.Trainer, task: TrainingTask, found: Validation, *, is_best: bool) -> None:
        """Show the validation, write its row, remember the state if it is the best; then count anew."""
        found = found.judged(is_best=is_best, waiting_for=waiting_for(self.section, self.progress, task))
        for listener in self.listeners:
            listener.validated(found)
        for logger in trainer.loggers:
            logger.log_metrics({key: value for key, value in found.row().items() if value is not None}, task.steps)
        task.training_sums.zero_()
        task.training_errors.reset()
        self.clock = StepClock()
        if is_best:
            self._remember_best(task)
        if not trainer.is_global_zero:
            return
        self.metrics.append(found.row())
        if is_best:
            self._best_checkpoint = copy.deepcopy(self.checkpoint(task))

    def _remember_best(self, task: TrainingTask) -> None:
        best = BestWeights(
            steps=task.steps,
            kind=task.average.name,
            is_second_stage=task.is_second_stage,
            weights=task.product_weights(),
        )
        self.best = [*(other for other in self.best if other["is_second_stage"] != task.is_second_stage), best]

    def _end_a_stage_if_due(self, trainer: pl.Trainer, task: TrainingTask) -> None:
        """Early stopping ends the run, or the first of two stages; so does the epoch at which the second one begins."""
        if trainer.should_stop:
            return
        if why := second_stage_due(self.section, self.progress, task):
            self.progress.begin_second_stage()
            task.begin_second_stage()
            self.say(f"second stage from epoch {task.steps / task.steps_per_epoch:.4g} on ({why}): {task.stage_in_words()}")
        elif why := early_stopping(self.section, self.progress):
            self.progress.reason = why
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand out the next stretch of batches."""
        next_stretch(_data(trainer), _task(pl_module), self.section)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the raw weights their place back now, where a validation was left, and not whenever memory is cleared."""
        _task(pl_module).on_validation_epoch_end()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.progress.seconds = self.seconds

    # Checkpoints

    def save(self, trainer: pl.Trainer, task: TrainingTask) -> None:
        """Write last.ckpt, and best.ckpt where there is a better one than on disk; never weights that are not finite."""
        if not trainer.is_global_zero:
            self._saved = time.perf_counter()
            return
        if self._is_faulty(task):
            raise self._not_finite(trainer, task, f"a loss is not finite at step {task.steps}", together=False)
        begun = time.perf_counter()
        self._save_best()
        folder = self.folder / "checkpoints"
        save_checkpoint(folder / "last.ckpt", self.checkpoint(task), previous=folder / "previous.ckpt")
        self._saved = time.perf_counter()
        self.deadline.has_saved(self._saved - begun)

    def _save_best(self) -> None:
        if self._best_checkpoint is not None:
            save_checkpoint(self.folder / "checkpoints" / "best.ckpt", self._best_checkpoint)
            self._best_checkpoint = None

    def checkpoint(self, task: TrainingTask) -> Checkpoint:
        """All that a resumed run needs."""
        progress = asdict(self.progress) | {"seconds": self.seconds}
        return Checkpoint(schema=SCHEMA, experiment=self.experiment, task=task.state(), progress=progress, best=self.best)

    def _not_finite(self, trainer: pl.Trainer, task: TrainingTask, otherwise: str, *, together: bool = True) -> NotFinite:
        if trainer.is_global_zero:
            with suppress(OSError):  # what is not finite is the news
                self._save_best()
        return not_finite(trainer, task, otherwise, kept_in=self.folder / "checkpoints", together=together)


def _task(module: pl.LightningModule) -> TrainingTask:
    assert isinstance(module, TrainingTask)
    return module


def _data(trainer: pl.Trainer) -> DataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, DataModule)
    return data
