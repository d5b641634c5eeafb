"""`Rehearsal`: what a rehearsal is told of the run that is about to start, and the words that its parts share."""

import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modelforge.atoms.graph import Batch
from modelforge.data.batching.run_batches import RunBatches
from modelforge.data.prepare import PreparedData
from modelforge.errors import UserError
from modelforge.experiment import Experiment
from modelforge.model_file import TrainedPotential
from modelforge.run_folder import RunFolder
from modelforge.training.checkpoint import Checkpoint
from modelforge.training.loss import LossSection

MOST_PLACES = 8  # structures that a message names


class RehearsalFailed(Exception):
    """Something fails that no setting is known to be the cause of."""


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """A run that is about to start, as one of its processes sees it."""

    trained: TrainedPotential  # with the weights of now, on the device
    experiment: Experiment
    batches: RunBatches
    data: PreparedData
    folder: RunFolder
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]  # what training and validation steps run in
    sum_over_processes: Callable[[Tensor], Tensor]
    make_checkpoint: Callable[[], Checkpoint]
    is_first: bool  # whether this is the process that writes

    @property
    def loss(self) -> LossSection:
        """The loss with all terms that the run ever trains on."""
        return self.experiment.training.widest_loss

    def places(self, part: Literal["training", "validation"], positions: Tensor) -> str:
        """`file:index` of structures of a heaviest batch, by their positions in it."""
        numbers = self.batches.heaviest_places(part)[positions.numpy()].tolist()
        named = ", ".join(self.data.structures.place(number) for number in numbers[:MOST_PLACES])
        return f"{named} and {len(numbers) - MOST_PLACES} more" if len(numbers) > MOST_PLACES else named


def sizes_in_words(batch: Batch) -> str:
    """How large a batch is."""
    graph = batch.graph
    return f"{graph.num_structures:,} structures, {graph.num_atoms:,} atoms, {graph.num_edges:,} edges"


def bytes_in_words(num_bytes: float) -> str:
    """An amount of memory or disk, in MB or GB."""
    amount, unit = (num_bytes / 1e9, "GB") if num_bytes >= 1e9 else (num_bytes / 1e6, "MB")
    return f"{amount:,.{2 if amount < 10 else 0}f} {unit}"


def peak_memory(device: torch.device) -> str:
    """The most memory so far: of a GPU since it was last reset, else of the process, whose peak never falls."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"peak memory {bytes_in_words(torch.cuda.max_memory_allocated(device))} of {bytes_in_words(total)}"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"peak memory of the process so far {bytes_in_words(peak)}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was too small: torch has an exception of its own for that on CUDA only."""
    says_so = "out of memory" in str(error) or "allocate memory" in str(error)  # on any GPU; on the CPU
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and says_so)


def no_number(places: str) -> UserError:
    """The error for predictions that are not finite."""
    return UserError(
        f"{places}: predicted energies and forces must be finite, and are not. Look for atoms on top of each other; "
        "correct them, or leave this out of the data"
    )
