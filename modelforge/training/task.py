"""The LightningModule: one training step, one validation step, and the state that a resumed run continues from.

Validation and the product use the averaged weights. T loss terms.
"""

from contextlib import ExitStack
from typing import Any, TypedDict

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from modelforge.atoms.graph import Batch, Prediction
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.clipping import Clipping
from modelforge.training.compilation import StepCompiler
from modelforge.training.eager_step import scales_of
from modelforge.training.fault_record import FaultRecord
from modelforge.training.learning_rate import LearningRate
from modelforge.training.loss import term_sums, trains_energies, weights_of
from modelforge.training.metrics import ErrorSums, without_energies
from modelforge.training.optimizer import build_optimizer
from modelforge.training.section import TrainingSection
from modelforge.training.weight_average import WeightAverage

JUMP = 2.0  # of a loss weight from one step to the next: norms of the gradient are then compared no more with those before


class TaskState(TypedDict):
    """Everything that a resumed run needs to give the bits of an uninterrupted one."""

    steps: int
    optimizer_steps: int
    is_second_stage: bool
    weights: dict[str, Tensor]
    averaged_weights: dict[str, Tensor]
    mean_of: int | None
    optimizer: dict[str, Any]
    learning_rate: dict[str, float | int | None]
    clipping: Tensor | None
    training_sums: Tensor
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
        num_processes: int = 1,
        is_first_process: bool = True,
        scaled_gradients: bool = False,
    ) -> None:
        """`scaled_gradients`: a scaler tries gradients that overflow, and leaves such steps out."""
        super().__init__()
        self.scaled_gradients, self.num_processes, self.is_first_process = scaled_gradients, num_processes, is_first_process
        self.model, self.section, self.compiler = model, section, compiler
        self.loss = section.widest_loss
        self.has_energies = trains_energies(self.loss, is_conservative=model.is_conservative)
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.steps = self.optimizer_steps = 0
        self.is_second_stage = False
        self.training_errors = ErrorSums(has_charges=model.has_charges)
        self.validation_errors = ErrorSums(num_subsets, has_charges=model.has_charges)
        self.clip = Clipping(section.clipping)
        self._averaged = ExitStack()
        self._restored: TaskState | None = None

    def configure_optimizers(self) -> Optimizer:
        """The optimizer, whose learning rate is set step by step; what is added up lives on the model's device."""
        terms = list(weights_of(self.loss))
        self.loss_weights = self.model.scale.new_zeros(len(terms))  # (T,)
        self._weights_now: list[float] = [0.0] * len(terms)  # the same, known without asking the device
        self.faults = FaultRecord(terms, self.model.scale)
        # Sums since the last validation. No buffers: DDP would copy those of process 0 to all.
        self.training_sums = self.model.scale.new_zeros(len(terms), 2, dtype=torch.float64)  # (T, 2)
        self.validation_sums = torch.zeros_like(self.training_sums)  # (T, 2)
        self.optimizer = build_optimizer(self.section.optimizer, self.model)
        self._trained_weights = [weight for weight in self.model.parameters() if weight.requires_grad]
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
        scales = self.scales(batch)
        result = self.compiler.step(self.steps, batch, scales)(batch, scales)
        with torch.no_grad():
            self.faults.note_terms(self.steps, result.sums[:, 0])
            self.steps += 1
            self.training_sums += result.sums
            self.training_errors.update(self._measured(result.prediction), batch)
        return result.loss

    def backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:
        """The gradients of the weights, and of nothing else: edge vectors are leaves of an eager step's graph as well."""
        loss.backward(inputs=self._trained_weights)  # type: ignore[no-untyped-call]

    def scales(self, batch: Batch) -> Tensor:
        """What a step multiplies the numerators of the terms with, and the network's penalty, (T + R,).

        Times the number of processes and of accumulated batches, as DDP and the Trainer divide by these.
        """
        self._set_loss_weights()
        parts = self.num_processes * self.section.accumulate_batches
        return parts * scales_of(self.model, self.loss, self.loss_weights, batch.label_counts)

    def _set_loss_weights(self) -> None:
        before, now = self._weights_now, self.weights_now()
        if now == before:
            return
        if any(new > JUMP * old for old, new in zip(before, now, strict=True)):
            self.clip.forget()
        self._fill_loss_weights(now)

    def _weights_of_step(self, step: int) -> list[float]:
        return self.section.weights_at(step / self.steps_per_epoch, is_second_stage=self.is_second_stage)

    def _fill_loss_weights(self, weights: list[float]) -> None:
        self._weights_now = weights
        for place, weight in enumerate(weights):
            self.loss_weights[place].fill_(weight)  # by a number, which no device waits for

    def weights_now(self) -> list[float]:
        """The loss weights of the next step, (T,)."""
        return self._weights_of_step(self.steps)

    @property
    def lasting_weights(self) -> list[float]:
        """The weights that this stage ends with, (T,): the yardstick of all its validations, whatever they are now."""
        return self.section.weights_at(float("inf"), is_second_stage=self.is_second_stage)

    @property
    def is_on_schedule(self) -> bool:
        """Whether a loss weight has not come to its value yet."""
        return self.weights_now() != self.lasting_weights

    def begin_second_stage(self) -> None:
        """Other loss weights, a constant learning rate, and another average from the next step on."""
        stage = self.section.second_stage
        self.is_second_stage = True
        self.learning_rate.stay_at(stage.rate)
        self.clip.forget()
        if stage.average != "ema":
            self.average.begin_mean()

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

    def stage_in_words(self) -> str:
        """Learning rate, weights and average of the second stage."""
        weights = ", ".join(
            f"{term} {weight:g}" for term, weight in zip(weights_of(self.loss), self.lasting_weights, strict=True)
        )
        rate = self.section.second_stage.rate
        return f"learning rate {rate:g}, loss weights {weights}; {self.average.name} weights are validated and kept"

    def on_validation_epoch_start(self) -> None:
        """Validate with the averaged weights."""
        self._averaged.enter_context(self.average.in_place())
        self.validation_errors.reset()
        self.validation_sums.zero_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up the errors of a batch."""
        loss = self.loss
        prediction = self.model(batch.graph, forces=loss.forces_weight > 0, stress=loss.stress_weight > 0)
        self.validation_errors.update(self._measured(prediction), batch)
        self.validation_sums += term_sums(loss, prediction, batch.labels, batch.graph, batch.weight).detach().double()

    def _measured(self, prediction: Prediction) -> Prediction:
        """What errors are told of."""
        return prediction if self.has_energies else without_energies(prediction)

    def on_validation_epoch_end(self) -> None:
        """Train on with the raw weights."""
        self._averaged.close()

    def over_processes(self, sums: Tensor) -> Tensor:
        """Sums over all processes."""
        return self.trainer.strategy.reduce(sums.clone(), reduce_op="sum") if self.num_processes > 1 else sums

    def pool_training_sums(self) -> None:
        """Leave what all processes have added up since the last validation to the first one. A meeting of all processes."""
        for sums in (self.training_sums, self.training_errors.by_subset, self.training_errors.by_element):
            sums.copy_(self.over_processes(sums) * float(self.is_first_process))

    def product_weights(self) -> dict[str, Tensor]:
        """Buffers and averaged weights, copied."""
        together = {**self.model.state_dict(), **self.average.weights()}
        return {name: tensor.detach().clone() for name, tensor in together.items()}

    def state(self) -> TaskState:
        """The state after a completed step; raw weights, also while the averaged ones are in place."""
        return TaskState(
            steps=self.steps,
            optimizer_steps=self.optimizer_steps,
            is_second_stage=self.is_second_stage,
            weights={**self.model.state_dict(), **self.average.raw_weights()},
            averaged_weights=self.average.weights(),
            mean_of=self.average.mean_of,
            optimizer=self.optimizer.state_dict(),
            learning_rate=self.learning_rate.state_dict(),
            clipping=self.clip.state,
            training_sums=self.training_sums,
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
        self.average.load(state["averaged_weights"], state["optimizer_steps"], state["mean_of"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate.load_state_dict(state["learning_rate"])
        self.is_second_stage = state["is_second_stage"]
        if self.is_second_stage:
            self.learning_rate.stay_at(self.section.second_stage.rate)
        if self.is_first_process:  # in whose sums those of all were pooled
            self.training_sums.copy_(state["training_sums"])
            self.training_errors.by_subset.copy_(state["training_errors"]["by_subset"])
            self.training_errors.by_element.copy_(state["training_errors"]["by_element"])
        if self.steps:
            self._fill_loss_weights(self._weights_of_step(self.steps - 1))
        self.clip.state = state["clipping"]
        self._restored = None
