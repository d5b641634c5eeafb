"""`Progress`: what a run continues from besides its task: best loss, patience, time, stage, and why it ended."""

from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor


class BestWeights(TypedDict):
    """The weights of the best validation of a stage, as the product takes them."""

    steps: int
    kind: str  # "EMA", "SWA" or "raw"
    is_second_stage: bool
    weights: dict[str, Tensor]


@dataclass
class Progress:
    """Where a run stands; plain numbers, so that a checkpoint holds it."""

    best_loss: float = float("inf")  # of this stage
    validations_without_improvement: int = 0
    seconds: float = 0.0  # of training, over all resumptions
    reason: str = ""  # why the run ended, once it has
    ended_with: str = ""  # the keys that decided on that: with others it may go on
    validated_step: int = -1  # of the last validation that is recorded
    is_validating: bool = False  # a validation has begun that is not recorded

    @property
    def owes_validation(self) -> bool:
        """Whether the run begins with a validation: a new one, or one that was cut in a validation."""
        return self.validated_step < 0 or self.is_validating

    def scored(self, loss: float, *, step: int, threshold: float | None) -> bool:
        """Note a validation loss; whether it is the best of this stage.

        A relative improvement by `threshold` ends the waiting for one; with None the validation does not count as waited for.
        """
        is_best = loss < self.best_loss
        if threshold is not None:
            improves = loss < self.best_loss * (1.0 - threshold)
            self.validations_without_improvement = 0 if improves else self.validations_without_improvement + 1
        self.best_loss = min(loss, self.best_loss)
        self.validated_step, self.is_validating = step, False
        return is_best

    def begin_second_stage(self) -> None:
        """Losses of other weights cannot be compared with those before."""
        self.best_loss, self.validations_without_improvement = float("inf"), 0
