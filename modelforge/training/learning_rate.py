"""Learning rate schedules: their sections, a factor of the step, and falls on plateaus of the validation loss."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from modelforge.section import Count, CountOrZero, Fraction, NonNegative, Positive, Section


class ReduceOnPlateau(Section):
    """Multiply the learning rate by `factor` when the validation loss has not improved for `patience` validations."""

    name: Literal["reduce_lr_on_plateau"] = "reduce_lr_on_plateau"
    warmup_steps: CountOrZero = 100
    """Steps over which the learning rate rises linearly from zero."""
    factor: Fraction = 0.5
    """Multiplier of the learning rate, between 0 and 1."""
    patience: Count = 20
    """Validations without improvement before the rate falls."""
    threshold: NonNegative = 1e-3
    """Relative improvement that counts: without one, ever smaller gains keep the rate up for ever."""
    min_learning_rate: NonNegative = 1e-6
    """Learning rate below which it does not fall."""


class ExponentialDecay(Section):
    """Learning rate that falls by `factor` every `decay_epochs`, smoothly."""

    name: Literal["exponential"] = "exponential"
    warmup_steps: CountOrZero = 100
    """Steps over which the learning rate rises linearly from zero."""
    factor: Fraction = 0.5
    """Multiplier of the learning rate per `decay_epochs`."""
    decay_epochs: Positive = 50.0
    """Epochs over which the rate falls by `factor`."""


class StaircaseDecay(Section):
    """Learning rate that falls by `factor` at once every `decay_epochs`."""

    name: Literal["staircase"] = "staircase"
    warmup_steps: CountOrZero = 100
    """Steps over which the learning rate rises linearly from zero."""
    factor: Fraction = 0.5
    """Multiplier of the learning rate per `decay_epochs`."""
    decay_epochs: Positive = 50.0
    """Epochs between two falls."""


class CosineDecay(Section):
    """Learning rate that follows half a cosine from its full value to `final_fraction` at the end of the run."""

    name: Literal["cosine"] = "cosine"
    warmup_steps: CountOrZero = 100
    """Steps over which the learning rate rises linearly from zero."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """What is left of the learning rate at the end."""


class ConstantRate(Section):
    """The same learning rate from the end of the warm-up to the end of the run."""

    name: Literal["constant"] = "constant"
    warmup_steps: CountOrZero = 100
    """Steps over which the learning rate rises linearly from zero."""


AnySchedule = ReduceOnPlateau | ExponentialDecay | StaircaseDecay | CosineDecay | ConstantRate
LearningRateSection = Annotated[AnySchedule, Field(discriminator="name")]


def schedule_factor(
    section: AnySchedule,
    step: int,
    *,
    steps_per_epoch: float,
    total_steps: int,
) -> float:
    """Multiplier of the learning rate at a batch, counted from 0; plateaus come on top of it."""
    warmup = min(1.0, (step + 1) / (section.warmup_steps + 1))
    if isinstance(section, ExponentialDecay):
        return warmup * float(section.factor ** (step / steps_per_epoch / section.decay_epochs))
    if isinstance(section, StaircaseDecay):
        return warmup * float(section.factor ** math.floor(step / steps_per_epoch / section.decay_epochs))
    if isinstance(section, CosineDecay):
        progress = min(1.0, step / max(1, total_steps))
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return warmup * (section.final_fraction + (1.0 - section.final_fraction) * cosine)
    return warmup


class LearningRate:
    """The learning rate of a run: a factor of the step, and falls on plateaus of the validation loss."""

    def __init__(
        self,
        section: AnySchedule,
        optimizer: Optimizer,
        *,
        steps_per_epoch: float,
        total_steps: int,
    ) -> None:
        self.section, self.optimizer = section, optimizer
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.full_rate = float(optimizer.param_groups[0]["lr"])
        # The plateau scheduler acts on a stand-in, so that it and the factor of the step never overwrite each other.
        self._stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=self.full_rate)
        self.plateau = _plateau(section, self._stand_in) if isinstance(section, ReduceOnPlateau) else None
        self.constant: float | None = None  # once a second stage has begun
        self._has_fallen = False  # after the last validation

    def stay_at(self, rate: float) -> None:
        """The same rate from now on, whatever the schedule was."""
        self.constant, self.plateau = rate, None

    def set_for(self, step: int) -> None:
        """Set the optimizer's rate for a batch, counted from 0."""
        if self.constant is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.constant
            return
        factor = schedule_factor(self.section, step, steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self._plateau_rate

    def after_validation(self, loss: float, step: int) -> None:
        """Tell the schedule the validation loss after `step` batches; none counts during the warm-up."""
        before = self._plateau_rate
        if self.plateau is not None and step > self.section.warmup_steps:
            self.plateau.step(loss)
        self._has_fallen = self._plateau_rate < before

    @property
    def _plateau_rate(self) -> float:
        return float(self._stand_in.param_groups[0]["lr"])

    def in_words(self) -> str | None:
        """What the plateau is waiting for, or None where there is none to wait for."""
        if self.plateau is None or not isinstance(self.section, ReduceOnPlateau):
            return None
        rate = self._plateau_rate
        falls = f"lr falls to {rate:.1e}, " if self._has_fallen else ""
        coming = max(rate * self.section.factor, self.section.min_learning_rate)
        if coming >= rate:
            return f"{falls}lr at its minimum"
        waiting = f"plateau {self.plateau.num_bad_epochs}/{self.section.patience} at {100 * self.section.threshold:g} %"
        return f"{falls}{waiting}, next lr {coming:.1e}"

    def state_dict(self) -> dict[str, float | int | None]:
        """What a resumed run needs."""
        if self.plateau is None:
            return {}
        return {"rate": self._plateau_rate, "best": self.plateau.best, "bad": self.plateau.num_bad_epochs}

    def load_state_dict(self, state: dict[str, float | int | None]) -> None:
        """Continue from a state."""
        if self.plateau is not None and state:
            self._stand_in.param_groups[0]["lr"] = state["rate"]
            self.plateau.best = float(state["best"] or 0.0)
            self.plateau.num_bad_epochs = int(state["bad"] or 0)


def _plateau(section: ReduceOnPlateau, optimizer: Optimizer) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(
        optimizer,
        factor=section.factor,
        patience=section.patience - 1,  # torch waits for one more than it is told
        threshold=section.threshold,
        threshold_mode="rel",
        min_lr=section.min_learning_rate,
        eps=0.0,
    )
