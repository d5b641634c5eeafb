"""What a run tells those who show it: a bar, plain lines, a file."""

from dataclasses import dataclass
from typing import Protocol

from modelforge.training.metrics import Errors


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
