"""The LightningDataModule: batches of the sets, in an order that is a function of the seed and the step alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from modelforge.atoms.graph import Batch
from modelforge.data.batches import StructureTable, structure_table
from modelforge.data.prepare import PreparedData
from modelforge.data.structures import Structures


@dataclass(frozen=True)
class BatchOrder:
    """Which structures make up the batch of each step; epoch after epoch every structure comes once.

    A pure function of the seed and the step, so a run continues from a step count alone. With several processes each takes
    every `num_processes`-th structure of the same order.
    """

    num_structures: int
    batch_size: int
    seed: int
    rank: int = 0
    num_processes: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches that each process sees in an epoch."""
        return -(-self.num_structures // (self.batch_size * self.num_processes))

    def epoch(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch, in order."""
        order = np.random.default_rng([self.seed, 0x0B, epoch]).permutation(self.num_structures)
        size = self.batch_size * self.num_processes
        batches = [order[start : start + size] for start in range(0, self.num_structures, size)]
        if len(batches[-1]) < self.num_processes:  # every process needs a structure in every step
            batches[-1] = np.resize(batches[-1], self.num_processes)
        return [torch.from_numpy(batch[self.rank :: self.num_processes].copy()) for batch in batches]


class TrainingBatches:
    """The batches from one step up to another."""

    def __init__(self, table: StructureTable, order: BatchOrder, *, first_step: int, last_step: int) -> None:
        self.table, self.order, self.first_step, self.last_step = table, order, first_step, last_step

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[Batch]:
        step = self.first_step
        while step < self.last_step:
            epoch, place = divmod(step, self.order.steps_per_epoch)
            for chosen in self.order.epoch(epoch)[place : place + self.last_step - step]:
                yield self.table.batch(chosen.to(self.table.num_atoms.device))
                step += 1


class EvaluationBatches:
    """All structures of a set in order; each process takes its share, none is seen twice."""

    def __init__(self, table: StructureTable, batch_size: int, *, rank: int = 0, num_processes: int = 1) -> None:
        chosen = torch.arange(rank, len(table), num_processes)
        self.table, self.chosen = table, [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Batch]:
        return (self.table.batch(chosen.to(self.table.num_atoms.device)) for chosen in self.chosen)


class DataModule(pl.LightningDataModule):
    """Training and validation batches for a Trainer; `first_step` and `last_step` bound the next call for training batches."""

    def __init__(
        self,
        data: PreparedData,
        *,
        cutoff: float,
        dtype: torch.dtype,
        batch_size: int,
        evaluation_batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.data, self.cutoff, self.dtype = data, cutoff, dtype
        self.batch_size, self.evaluation_batch_size, self.seed = batch_size, evaluation_batch_size, seed
        self.first_step = self.last_step = 0
        self.training = self.table(data.training)
        self.validation = self.table(data.validation)

    def table(self, structures: Structures) -> StructureTable:
        """A set with edges, without self-energies, in the training precision."""
        return structure_table(structures, cutoff=self.cutoff, self_energies=self.data.reference.table(), dtype=self.dtype)

    def order(self) -> BatchOrder:
        """The order of the training batches of this process."""
        rank, num_processes = self._process()
        return BatchOrder(len(self.training), self.batch_size, self.seed, rank, num_processes)

    def train_dataloader(self) -> TrainingBatches:
        """The batches from `first_step` to `last_step`."""
        return TrainingBatches(self.training, self.order(), first_step=self.first_step, last_step=self.last_step)

    def val_dataloader(self) -> EvaluationBatches:
        """The validation set."""
        rank, num_processes = self._process()
        return EvaluationBatches(self.validation, self.evaluation_batch_size, rank=rank, num_processes=num_processes)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """A batch gathered on the device stays where it is."""
        return batch.to(device)

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
