"""What is known after a validation: errors and losses over all processes, the loss ledger, the speed of training."""

import time

import pytorch_lightning as pl
import torch

from modelforge.data.module import DataModule
from modelforge.training.eager_step import scales_of
from modelforge.training.ledger import LedgerEntry, gradient_norms, ledger
from modelforge.training.listener import Validation
from modelforge.training.loss import term_values
from modelforge.training.metrics import errors
from modelforge.training.task import TrainingTask

LEDGER_STRUCTURES = 4  # of which gradients are taken: each validation costs that many more


class StepClock:
    """Time and structures of the training steps since the last validation."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.structures = 0  # of this process
        self._begun = 0.0

    def begin_step(self) -> None:
        """A step begins."""
        self._begun = time.perf_counter()

    def end_step(self, num_structures: int) -> None:
        """A step is over."""
        self.seconds += time.perf_counter() - self._begun
        self.structures += num_structures


def validation_of(trainer: pl.Trainer, task: TrainingTask, data: DataModule, clock: StepClock, seconds: float) -> Validation:
    """The validation that has just been done. A meeting of all processes, if there are several."""
    structures = task.over_processes(torch.tensor(float(clock.structures), device=task.training_sums.device))
    training_sums, validation_sums = (task.over_processes(sums) for sums in (task.training_sums, task.validation_sums))
    weights = training_sums.new_tensor(task.lasting_weights)  # (T,)
    has_trained = bool(training_sums[:, 1].any())
    raw = term_values(validation_sums)
    return Validation(
        step=task.steps,
        epoch=task.steps / task.steps_per_epoch,
        seconds=seconds,
        learning_rate=float(task.optimizer.param_groups[0]["lr"]),
        training_loss=float((term_values(training_sums) * weights).sum()) if has_trained else None,
        validation_loss=float((raw * weights).sum()),
        training=errors(task.training_errors),
        validation=errors(task.validation_errors),
        ledger=tuple(_ledger(trainer, task, data, raw.tolist())),
        structures_per_second=float(structures) / clock.seconds if clock.seconds else None,
    )


def _ledger(trainer: pl.Trainer, task: TrainingTask, data: DataModule, raw: list[float]) -> list[LedgerEntry]:
    """By the weights of now; gradients are those of the raw weights on the same few training structures each time."""
    batch = data.batches.sample(LEDGER_STRUCTURES).to(task.device)
    weights = task.weights_now()
    scales = scales_of(task.model, task.loss, batch.label_counts.new_tensor(weights), batch.label_counts)
    was_training = task.model.training
    task.model.train()
    with torch.enable_grad(), trainer.precision_plugin.train_step_context():
        norms = gradient_norms(task.compiler.current, batch, scales)
    task.model.train(was_training)
    return ledger(task.loss, raw, weights, norms.tolist())
