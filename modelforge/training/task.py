"""The LightningModule: one training step, one validation step, and the state that a resumed run continues from.

Validation and the product use the averaged weights. T loss terms.
"""

from contextlib import ExitStack
from typing import Any, TypedDict

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from modelforge.atoms.graph import Batch
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.clipping import Clipping
from modelforge.training.compilation import StepCompiler
from modelforge.training.fault_record import FaultRecord
from modelforge.training.learning_rate import LearningRate
from modelforge.training.loss import term_sums, term_values, weights_of
from modelforge.training.metrics import ErrorSums
from modelforge.training.optimizer import build_optimizer
from modelforge.training.section import TrainingSection
from modelforge.training.weight_average import WeightAverage


class TaskState(TypedDict):
    """Everything that a resumed run needs to give the bits of an uninterrupted one."""

    steps: int
    optimizer_steps: int
    weights: dict[str, Tensor]
    averaged_weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    learning_rate: dict[str, float | int | None]
    clipping: Tensor | None
    training_loss: Tensor
    training_errors: dict[str, Tensor]


class TrainingTask(pl.LightningModule):
    """Fits an energy model by the loss of a training section."""

    def __init__(
        self,
        model: EnergyModel,
        section: TrainingSection,
        compiler: StepCompiler,
        *,
        steps_per_epoch: int,
        total_steps: int,
        num_subsets: int = 1,
        scaled_gradients: bool = False,
    ) -> None:
        """`scaled_gradients`: a scaler tries gradients that overflow, and leaves such steps out."""
        super().__init__()
        self.scaled_gradients = scaled_gradients
        self.model, self.section, self.compiler = model, section, compiler
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.steps = self.optimizer_steps = 0
        self.training_errors, self.validation_errors = ErrorSums(), ErrorSums(num_subsets)
        self.clip = Clipping(section.clipping)
        self._averaged = ExitStack()
        self._restored: TaskState | None = None

    def configure_optimizers(self) -> Optimizer:
        """The optimizer, whose learning rate is set step by step; what is added up lives on the model's device."""
        weights = list(weights_of(self.section.loss).values())
        self.loss_weights = self.model.scale.new_tensor(weights)  # (T,)
        self.faults = FaultRecord(list(weights_of(self.section.loss)), self.model.scale)
        # Sum of the losses since the last validation, and their number. No buffers: DDP would copy those of process 0 to all.
        self.training_loss = self.model.scale.new_zeros(2)
        self.validation_sums = self.model.scale.new_zeros(len(weights), 2, dtype=torch.float64)  # (T, 2)
        self.optimizer = build_optimizer(self.section.optimizer, self.model)
        self.average = WeightAverage(self.model, self.section.ema.decay)
        self.learning_rate = LearningRate(
            self.section.lr_scheduler,
            self.optimizer,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
        )
        if self._restored is not None:
            self._restore(self._restored)
        return self.optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch; nothing here waits for the device."""
        step = self.compiler.step(self.steps, batch, self.loss_weights)
        result = step(batch, self.loss_weights)
        with torch.no_grad():
            self.faults.note_terms(self.steps, result.terms)
            self.steps += 1
            self.training_loss += torch.stack([result.loss, torch.ones_like(result.loss)])
            self.training_errors.update(result.prediction, batch)
        return result.loss

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """An optimizer step with the learning rate of its batch, then the weight average."""
        self.learning_rate.set_for(self.steps)
        super().optimizer_step(*arguments, **options)
        self.optimizer_steps += 1
        self.average.update()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the section says; Lightning's own limits are not set."""
        norm = self.clip([w.grad for group in optimizer.param_groups for w in group["params"] if w.grad is not None])
        if not self.scaled_gradients:
            self.faults.note_norm(norm)

    def on_validation_epoch_start(self) -> None:
        """Validate with the averaged weights."""
        self._averaged.enter_context(self.average.in_place())
        self.validation_errors.reset()
        self.validation_sums.zero_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up the errors of a batch."""
        loss = self.section.loss
        prediction = self.model(batch.graph, forces=loss.forces_weight > 0, stress=loss.stress_weight > 0)
        self.validation_errors.update(prediction, batch)
        self.validation_sums += term_sums(loss, prediction, batch.labels, batch.graph, batch.weight).detach().double()

    def on_validation_epoch_end(self) -> None:
        """Train on with the raw weights."""
        self._averaged.close()

    def validation_loss(self) -> float:
        """The weighted loss of the validation set, over all processes."""
        return float((term_values(self.over_processes(self.validation_sums)) * self.loss_weights).sum())

    def over_processes(self, sums: Tensor) -> Tensor:
        """Sums over all processes."""
        return self.trainer.strategy.reduce(sums.clone(), reduce_op="sum") if self.trainer.world_size > 1 else sums

    def state(self) -> TaskState:
        """The state after a completed step; raw weights, also while the averaged ones are in place."""
        self._averaged.close()
        return TaskState(
            steps=self.steps,
            optimizer_steps=self.optimizer_steps,
            weights=dict(self.model.state_dict()),
            averaged_weights=self.average.weights(),
            optimizer=self.optimizer.state_dict(),
            learning_rate=self.learning_rate.state_dict(),
            clipping=self.clip.state,
            training_loss=self.training_loss,
            training_errors={
                "by_subset": self.training_errors.by_subset,
                "by_element": self.training_errors.by_element,
            },
        )

    def restore(self, state: TaskState) -> None:
        """Continue from a state: weights and counts now, the optimizer when the Trainer asks for it."""
        self.model.load_state_dict(state["weights"])
        self.steps, self.optimizer_steps = state["steps"], state["optimizer_steps"]
        self._restored = state

    def _restore(self, state: TaskState) -> None:
        self.average.load(state["averaged_weights"], state["optimizer_steps"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate.load_state_dict(state["learning_rate"])
        self.training_loss.copy_(state["training_loss"])
        self.training_errors.by_subset.copy_(state["training_errors"]["by_subset"])
        self.training_errors.by_element.copy_(state["training_errors"]["by_element"])
        self.clip.state = state["clipping"]
        self._restored = None
