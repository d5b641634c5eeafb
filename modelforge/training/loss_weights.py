"""How the weight of a loss term changes in the course of a run: its sections, and the weight at a moment.

The key of the weight itself (`energy_weight`, ...) is the value that a schedule ends at. Validation losses, and so the best
weights, are by these last values all the time; patience and plateau begin to count once all schedules have ended.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from modelforge.section import NonNegative, Positive, Section, SectionError


class ConstantWeight(Section):
    """The same weight in all of the run."""

    name: Literal["constant"] = "constant"


class LinearWeight(Section):
    """A weight that changes linearly from `start` to the weight of the term."""

    name: Literal["linear"] = "linear"
    start: NonNegative = 0.0
    """Weight until `begin_epoch`."""
    begin_epoch: NonNegative = 0.0
    """Epoch at which the weight begins to change."""
    end_epoch: Positive
    """Epoch from which on the weight is that of the term."""

    @model_validator(mode="after")
    def _ends_after_its_beginning(self) -> "LinearWeight":
        if self.end_epoch <= self.begin_epoch:
            raise SectionError(("end_epoch", f"must be above begin_epoch, {self.begin_epoch:g} (got {self.end_epoch:g})"))
        return self


class StepWeight(Section):
    """A weight that jumps from `start` to the weight of the term."""

    name: Literal["step"] = "step"
    start: NonNegative = 0.0
    """Weight before `epoch`."""
    epoch: Positive
    """Epoch from which on the weight is that of the term."""


AnyWeightSchedule = ConstantWeight | LinearWeight | StepWeight
WeightSchedule = Annotated[AnyWeightSchedule, Field(discriminator="name")]


def weight_at(schedule: AnyWeightSchedule, final: float, epoch: float) -> float:
    """The weight of a term at a moment of a run, in epochs; `final` is what it ends at."""
    if isinstance(schedule, LinearWeight):
        progress = (epoch - schedule.begin_epoch) / (schedule.end_epoch - schedule.begin_epoch)
        return schedule.start + min(1.0, max(0.0, progress)) * (final - schedule.start)
    if isinstance(schedule, StepWeight):
        return schedule.start if epoch < schedule.epoch else final
    return final


def largest_weight(schedule: AnyWeightSchedule, final: float) -> float:
    """The largest weight that a term ever has."""
    return final if isinstance(schedule, ConstantWeight) else max(schedule.start, final)
