"""What a run tells those who show it: a bar, plain lines, a file."""

import math
from dataclasses import dataclass, replace
from typing import Protocol

from modelforge.training.ledger import LedgerEntry
from modelforge.training.metrics import Errors


@dataclass(frozen=True)
class Validation:
    """What is known after a validation."""

    step: int
    epoch: float
    seconds: float  # of training so far
    learning_rate: float
    training_loss: float | None  # None before the first step
    validation_loss: float
    training: Errors
    validation: Errors
    ledger: tuple[LedgerEntry, ...]
    structures_per_second: float | None
    is_best: bool = False
    waiting_for: str = ""  # plateau and early stopping in words

    def judged(self, *, is_best: bool, waiting_for: str) -> "Validation":
        """The same with what it means for the run."""
        return replace(self, is_best=is_best, waiting_for=waiting_for)

    @property
    def faulty_loss(self) -> str | None:
        """The loss that is not finite, if one is not."""
        if self.training_loss is not None and not math.isfinite(self.training_loss):
            return "training"
        return None if math.isfinite(self.validation_loss) else "validation"

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
        for entry in self.ledger:
            numbers |= entry.row()
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
