"""`NotFinite`: the loss or a gradient is not finite any more, and where that began, on whichever process it did."""

from pathlib import Path

import pytorch_lightning as pl
import torch.distributed

from modelforge.errors import RunFailure
from modelforge.training.fault_record import Fault
from modelforge.training.task import TrainingTask


class NotFinite(RunFailure):
    """The loss or a gradient is not finite; with the step of the batch where that began, and its process, if they are known."""

    def __init__(self, message: str, *, step: int | None = None, rank: int = 0) -> None:
        super().__init__(message)
        self.step, self.rank = step, rank


def not_finite(trainer: pl.Trainer, task: TrainingTask, otherwise: str, *, kept_in: Path, together: bool = True) -> NotFinite:
    """The failure to raise; `otherwise` is said if no step is known to be the first. With `together` all processes meet."""
    rank, fault = trainer.global_rank, task.faults.first_fault()
    if together and trainer.world_size > 1:
        faults: list[Fault | None] = [None] * trainer.world_size
        torch.distributed.all_gather_object(faults, fault)
        known = [(found.step, not found.is_term, place) for place, found in enumerate(faults) if found]
        rank = min(known)[2] if known else 0
        fault = faults[rank]
    found = f"{fault.what} is not finite at step {fault.step}" if fault else otherwise
    return NotFinite(
        f"{found}. The last good weights are in {kept_in}. Look for wrong labels, or lower training.optimizer.learning_rate or "
        "training.clipping.factor in another run folder (--run-folder)",
        step=fault.step if fault else None,
        rank=rank,
    )
