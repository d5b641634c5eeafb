"""`[training]`: how a potential is fitted."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, SerializerFunctionWrapHandler, model_serializer, model_validator

from modelforge.section import Count, NonNegative, PathText, Section, SectionError
from modelforge.training.clipping import ClippingSection, RunningNorm
from modelforge.training.learning_rate import LearningRateSection, ReduceOnPlateau
from modelforge.training.loss import TERMS, LossSection, weights_of
from modelforge.training.loss_weights import ConstantWeight, LinearWeight, weight_at
from modelforge.training.optimizer import AdamWSection, OptimizerSection
from modelforge.training.second_stage import SecondStage
from modelforge.training.weight_average import WeightAverageSection


def _duration(text: str) -> str:
    if not re.fullmatch(r"(\d+:)?\d{1,2}:\d{2}:\d{2}", text):
        raise ValueError("must be a duration such as '00:15:00' (hours:minutes:seconds) or '2:00:00:00' (with days)")
    return text


Duration = Annotated[str, AfterValidator(_duration)]


class EarlyStoppingSection(Section):
    """Stop when the validation loss no longer improves."""

    patience: Count | None = None
    """Validations without improvement before the run ends; without it the run goes on to its last epoch."""
    threshold: NonNegative = 1e-3
    """Relative improvement that counts."""


class TrainingSection(Section):
    """How the potential is fitted: length of the run, batches, and the tables below."""

    start_from: PathText | None = None
    """Run folder or file of a potential whose weights the run starts from, for the same `[potential]`; else random ones."""
    freeze: tuple[str, ...] = ()
    """Modules or weights of the potential that are not trained, such as "embedding" or "interactions.0.*"."""
    max_epochs: Count = 500
    """Passes over the training set."""
    max_steps: Count | None = None
    """Optimizer steps after which the run ends, if that comes before `max_epochs`."""
    max_time: Duration | None = None
    """Training time after which the run ends, if that comes before `max_epochs`; over all resumptions."""
    batch_size: Count = 8
    """Structures in a training batch, of all processes together, where neither `max_edges` nor `max_atoms` is given."""
    max_edges: Count | None = None
    """Edges in a batch at most, of all processes together, in place of `batch_size`: batches of equal work and memory."""
    max_atoms: Count | None = None
    """Atoms in a batch at most, of all processes together, in place of `batch_size` or beside `max_edges`."""
    evaluation_batch_size: Count = 64
    """Structures in a batch of validation and test, of all processes together; no result depends on it."""
    accumulate_batches: Count = 1
    """Batches whose gradients are summed up for one optimizer step."""
    validate_every_epochs: Count | None = None
    """Epochs from one validation to the next; 1 where `validate_every_steps` is not given either."""
    validate_every_steps: Count | None = None
    """Batches from one validation to the next, instead of epochs: for data sets whose epochs are long."""
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = AdamWSection()
    clipping: ClippingSection = RunningNorm()
    lr_scheduler: LearningRateSection = ReduceOnPlateau()
    early_stopping: EarlyStoppingSection = EarlyStoppingSection()
    ema: WeightAverageSection = WeightAverageSection()
    second_stage: SecondStage = SecondStage()

    @model_validator(mode="after")
    def _one_batch_size(self) -> "TrainingSection":
        if (self.max_edges or self.max_atoms) and "batch_size" in self.model_fields_set:
            budget = "max_edges" if self.max_edges else "max_atoms"
            raise SectionError(("batch_size", f"must not be given together with {budget}; remove one of them"))
        return self

    @model_validator(mode="after")
    def _frozen_weights_were_trained(self) -> "TrainingSection":
        if self.freeze and self.start_from is None:
            raise SectionError(("freeze", "has no use without start_from, as random weights would stay random; remove it"))
        return self

    @model_serializer(mode="wrap")
    def _what_may_be_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        """What is written reads again: without the batch size that a budget has taken the place of."""
        values: dict[str, object] = dump(self)
        return {**values, "batch_size": None} if self.max_edges or self.max_atoms else values

    @model_validator(mode="after")
    def _weights_mean_something(self) -> "TrainingSection":
        if not any(self.weights_at(float("inf"), is_second_stage=False)):
            raise SectionError(
                ("loss.energy_weight", "all weights end at 0, so that no validation could be compared; let one stay above 0")
            )
        for term in TERMS:
            schedule = getattr(self.loss, f"{term}_schedule")
            if isinstance(schedule, ConstantWeight):
                continue
            key, last = f"loss.{term}_schedule", schedule.end_epoch if isinstance(schedule, LinearWeight) else schedule.epoch
            if term not in weights_of(self.loss):
                raise SectionError((key, f"has no effect, as the weight of {term} is 0 all the time; set loss.{term}_weight"))
            if last > self.max_epochs:
                raise SectionError((key, f"must end by max_epochs, {self.max_epochs} (ends at epoch {last:g})"))
        return self

    @model_validator(mode="after")
    def _second_stage_trains(self) -> "TrainingSection":
        if self.second_stage.start_epoch is not None:
            if not any(self.weights_at(float("inf"), is_second_stage=True)):
                raise SectionError(("second_stage.energy_weight", "all weights of the second stage are 0; set one above 0"))
            if self.second_stage.start_epoch >= self.max_epochs:
                raise SectionError(
                    (
                        "second_stage.start_epoch",
                        f"must be below max_epochs, {self.max_epochs} (got {self.second_stage.start_epoch:g})",
                    )
                )
        return self

    @model_validator(mode="after")
    def _one_interval(self) -> "TrainingSection":
        if self.validate_every_epochs and self.validate_every_steps:
            raise SectionError(("validate_every_steps", "must not be given together with validate_every_epochs; remove one"))
        return self

    @property
    def widest_loss(self) -> LossSection:
        """The loss with each weight at its largest of both stages: what has to be computed at all, and from which labels."""
        weights = {term: weights_of(self.loss).get(term, 0.0) for term in TERMS}
        later = {term: self.second_stage.weight(term) or 0.0 for term in TERMS}
        fields: dict[str, object] = {f"{term}_weight": max(weights[term], later[term]) for term in TERMS}
        return self.loss.model_copy(update=fields | {f"{term}_schedule": ConstantWeight() for term in TERMS})

    def weights_at(self, epoch: float, *, is_second_stage: bool) -> list[float]:
        """The weights of the terms of `widest_loss` at a moment, (T,); those that the run ends with for an endless epoch."""
        return [self._weight_at(term, epoch, is_second_stage) for term in weights_of(self.widest_loss)]

    def _weight_at(self, term: str, epoch: float, is_second_stage: bool) -> float:
        final: float = getattr(self.loss, f"{term}_weight")
        if is_second_stage:  # which ends all schedules
            later = self.second_stage.weight(term)
            return final if later is None else later
        return weight_at(getattr(self.loss, f"{term}_schedule"), final, epoch)

    def validation_interval(self, steps_per_epoch: int) -> int:
        """Batches from one validation to the next."""
        return self.validate_every_steps or (self.validate_every_epochs or 1) * steps_per_epoch

    @property
    def seconds(self) -> float | None:
        """`max_time` in seconds."""
        if self.max_time is None:
            return None
        days, hours, minutes, seconds = ([0] * 4 + [int(part) for part in self.max_time.split(":")])[-4:]
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
