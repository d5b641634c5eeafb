"""Which structures make up each batch: an order that is a function of the seed and the step alone.

S structures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from modelforge.atoms.graph import Batch
from modelforge.data.batching.batches import StructureTable
from modelforge.data.batching.packing import evaluation_batches


class Order(Protocol):
    """Which members of a set make up the batches of an epoch, on one of several processes."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches that each process sees in an epoch."""

    def epoch(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch, in order, as places in the set."""


@dataclass(frozen=True)
class BatchOrder:
    """Batches of a fixed number of structures; epoch after epoch every structure comes once.

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
    """The batches from one step up to another; `members` are the places in the table of the set that is trained on."""

    def __init__(
        self, table: StructureTable, order: Order, *, first_step: int, last_step: int, members: Tensor | None = None
    ) -> None:
        self.table, self.order, self.first_step, self.last_step = table, order, first_step, last_step
        self.members = torch.arange(len(table)) if members is None else members

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[Batch]:
        return (self.table.batch(chosen.to(self.table.num_atoms.device)) for chosen in self._choices())

    def _choices(self) -> Iterator[Tensor]:
        step = self.first_step
        while step < self.last_step:
            epoch, place = divmod(step, self.order.steps_per_epoch)
            for chosen in self.order.epoch(epoch)[place : place + self.last_step - step]:
                yield self.members[chosen]
                step += 1


class EvaluationBatches:
    """All members of a set in order; each process takes its share, none is seen twice.

    A batch has at most `batch_size` structures, or stays within budgets of edges and atoms, if there is one.
    """

    def __init__(
        self,
        table: StructureTable,
        batch_size: int,
        *,
        max_edges: int | None = None,
        max_atoms: int | None = None,
        rank: int = 0,
        num_processes: int = 1,
        members: Tensor | None = None,
    ) -> None:
        members = torch.arange(len(table)) if members is None else members
        self.table = table
        if max_edges or max_atoms:
            places = evaluation_batches(
                table.num_edges[members].numpy(),
                table.num_atoms[members].numpy(),
                max_edges=max_edges,
                max_atoms=max_atoms,
                rank=rank,
                num_processes=num_processes,
            )
        else:
            own = torch.arange(len(members))[rank::num_processes]
            places = list(torch.split(own, batch_size)) if len(own) else []
        self.chosen = [members[place] for place in places]

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Batch]:
        return (self.table.batch(chosen.to(self.table.num_atoms.device)) for chosen in self.chosen)
