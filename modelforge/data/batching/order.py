"""Which structures make up each batch: an order that is a function of the seed and the step alone.

A batch is what one step sees on all processes together; each process gathers its share. S structures.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from modelforge.atoms.graph import Batch, Labels, tensors_of
from modelforge.data.batching.batches import StructureTable
from modelforge.data.batching.packing import evaluation_batches
from modelforge.data.batching.shares import share_of


class Order(Protocol):
    """Which members of a set make up the batches of an epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch, in order, as places in the set."""


@dataclass(frozen=True)
class BatchOrder:
    """Batches of a fixed number of structures; epoch after epoch every structure comes once.

    A pure function of the seed and the step, so a run continues from a step count alone.
    """

    num_structures: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_structures // self.batch_size)

    def epoch(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch, in order."""
        order = np.random.default_rng([self.seed, 0x0B, epoch]).permutation(self.num_structures)
        return list(torch.split(torch.from_numpy(order), self.batch_size))


class TrainingBatches:
    """One process' shares of the batches from one step up to another.

    `members` are the places in the table of the set that is trained on. `accumulate` batches make up an optimizer step,
    counted from the first one here; the last optimizer step may have fewer. `label_counts` of a batch are those of all
    structures of its optimizer step.
    """

    def __init__(
        self,
        table: StructureTable,
        order: Order,
        *,
        first_step: int,
        last_step: int,
        members: Tensor | None = None,
        rank: int = 0,
        num_processes: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.table, self.order, self.first_step, self.last_step = table, order, first_step, last_step
        self.members = torch.arange(len(table)) if members is None else members
        self.rank, self.num_processes, self.accumulate = rank, num_processes, accumulate

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[Batch]:
        choices = self._choices()
        while group := list(islice(choices, self.accumulate)):
            counts = self.table.num_labels(torch.cat(group))
            for whole in group:
                yield shared_batch(self.table, whole, counts, rank=self.rank, num_processes=self.num_processes)

    def _choices(self) -> Iterator[Tensor]:
        """The batches as places in the table."""
        step = self.first_step
        while step < self.last_step:
            epoch, place = divmod(step, self.order.steps_per_epoch)
            for chosen in self.order.epoch(epoch)[place : place + self.last_step - step]:
                yield self.members[chosen]
                step += 1


class EvaluationBatches:
    """All members of a set in order; each process takes its share of each batch, none is seen twice.

    A batch has at most `batch_size` structures, or stays within budgets of edges and atoms, if there is one. A process that
    would have no batch at all gets a stand-in, as a Trainer leaves out the validation of a process without batches.
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
        self.table = table
        self.members = torch.arange(len(table)) if members is None else members
        self.places = _wholes(table, batch_size, self.members, max_edges=max_edges, max_atoms=max_atoms)  # in the set
        self.is_stand_in = False
        if num_processes > 1:
            self._share(rank, num_processes)

    def _share(self, rank: int, num_processes: int) -> None:
        """Keep the shares of one process, or the cheapest member as a stand-in."""
        costs = self.table.costs(self.members)
        shares = [share_of(costs[whole.numpy()], rank=rank, num_processes=num_processes) for whole in self.places]
        pairs = zip(self.places, shares, strict=True)
        own = [whole[torch.from_numpy(share.places)] for whole, share in pairs if not share.is_stand_in]
        self.is_stand_in = not own
        self.places = own or [torch.tensor([int(costs.argmin())])]

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Batch]:
        batches = (self.table.batch(self.members[place]) for place in self.places)
        return map(stand_in, batches) if self.is_stand_in else batches


def _wholes(
    table: StructureTable, batch_size: int, members: Tensor, *, max_edges: int | None, max_atoms: int | None
) -> list[Tensor]:
    """The batches of all processes together, as places in the set."""
    if max_edges or max_atoms:
        sizes = (table.num_edges[members].numpy(), table.num_atoms[members].numpy())
        return evaluation_batches(*sizes, max_edges=max_edges, max_atoms=max_atoms)
    return list(torch.split(torch.arange(len(members)), batch_size)) if len(members) else []


def shared_batch(table: StructureTable, whole: Tensor, label_counts: Tensor, *, rank: int, num_processes: int) -> Batch:
    """One process' share of a batch of places in the table (S,), with the numbers of labels (8,) of its optimizer step."""
    if num_processes == 1:
        return table.batch(whole, label_counts=label_counts)
    share = share_of(table.costs(whole), rank=rank, num_processes=num_processes)
    batch = table.batch(whole[torch.from_numpy(share.places)], label_counts=label_counts)
    return replace(stand_in(batch), label_counts=label_counts) if share.is_stand_in else batch


def stand_in(batch: Batch) -> Batch:
    """The same structures without labels, weight and a place in the data set: they count nowhere."""
    labels = Labels(*(torch.full_like(values, torch.nan) for values in tensors_of(batch.labels)))
    nowhere, no_labels = torch.full_like(batch.indices, -1), torch.zeros_like(batch.label_counts)
    return replace(batch, labels=labels, indices=nowhere, weight=torch.zeros_like(batch.weight), label_counts=no_labels)
