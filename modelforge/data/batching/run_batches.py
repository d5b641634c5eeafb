"""The batches of a run: training in its order, validation, both from one table of structures; and the heaviest of each."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from modelforge.atoms.graph import Batch, Reach
from modelforge.data.batching.batches import StructureTable, structure_table
from modelforge.data.batching.edges import LONGEST_CUTOFF, edges_of
from modelforge.data.batching.order import BatchOrder, EvaluationBatches, TrainingBatches, shared_batch
from modelforge.data.batching.packing import PackedOrder
from modelforge.data.batching.shares import share_of
from modelforge.data.prepare import PreparedData
from modelforge.data.store.content_hash import content_hash
from modelforge.data.store.prepared_once import Say, silent
from modelforge.data.structures import Integers

WORTH_A_COPY = 4  # of the structures: where at most every fourth is used, those are copied and the others left alone


class RunBatches:
    """Training and validation batches of one of several processes; `accumulate` training batches make up an optimizer step."""

    def __init__(
        self,
        data: PreparedData,
        *,
        reach: Reach,
        dtype: torch.dtype,
        batch_size: int,
        max_edges: int | None = None,
        max_atoms: int | None = None,
        evaluation_batch_size: int,
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
        accumulate: int = 1,
        say: Say = silent,
    ) -> None:
        self.data, self.max_edges, self.max_atoms = data, max_edges, max_atoms
        self.evaluation_batch_size, self.rank, self.num_processes = evaluation_batch_size, rank, num_processes
        self.accumulate = accumulate
        self.table, self.members, self.validation_members = _table(data, reach=reach, dtype=dtype, say=say)
        self.order: BatchOrder | PackedOrder = BatchOrder(len(self.members), batch_size, seed)
        if max_edges or max_atoms:
            self.order = PackedOrder(
                self.table.num_edges[self.members].numpy(),
                self.table.num_atoms[self.members].numpy(),
                max_edges=max_edges,
                max_atoms=max_atoms,
                seed=seed,
            )

    @property
    def steps_per_epoch(self) -> int:
        """Training batches in an epoch."""
        return self.order.steps_per_epoch

    def training(self, first_step: int, last_step: int) -> TrainingBatches:
        """The training batches from one step up to another."""
        return TrainingBatches(
            self.table,
            self.order,
            first_step=first_step,
            last_step=last_step,
            members=self.members,
            rank=self.rank,
            num_processes=self.num_processes,
            accumulate=self.accumulate,
        )

    def validation(self) -> EvaluationBatches:
        """The validation set."""
        return self._validation(self.rank)

    def sample(self, num_structures: int) -> Batch:
        """Some training structures, always the same, as a batch of their own."""
        return self.table.batch(self.members[self.order.epoch(0)[0][:num_structures]])

    def structures_of_step(self, step: int, rank: int | None = None) -> Integers:
        """Indices among all structures of the training batch of a step: of the share of a process, or of the whole."""
        epoch, place = divmod(step, self.order.steps_per_epoch)
        places = self.order.epoch(epoch)[place].numpy()
        if rank is not None:
            places = self._share(self.table.costs(self.members), places, rank)
        chosen: Integers = self.data.split.train[places]
        return chosen

    def heaviest_training(self) -> Batch:
        """A share of this process as heavy as they get, as if its batch were an optimizer step of its own.

        It is of the costliest structures that make up a batch, or where there are budgets, the heaviest share of the first
        epoch.
        """
        whole = self.members[torch.from_numpy(self._heaviest_whole())]
        counts = self.table.num_labels(whole)
        return shared_batch(self.table, whole, counts, rank=self.rank, num_processes=self.num_processes)

    def heaviest_validation(self) -> Batch:
        """The heaviest validation batch of this process, or of process 0 if this one has only a stand-in."""
        return self.table.batch(self.validation_members[self._heaviest_of_validation()])

    def heaviest_places(self, part: Literal["training", "validation"]) -> Integers:
        """Indices among all structures of those in the heaviest batch."""
        if part == "training":
            share = self._share(self.table.costs(self.members), self._heaviest_whole(), self.rank)
            training: Integers = self.data.split.train[share]
            return training
        validation: Integers = self.data.split.validation[self._heaviest_of_validation().numpy()]
        return validation

    def oversized(self) -> list[str]:
        """`file:index` of the training structures that alone exceed the budget of a batch: each is a batch of its own."""
        alone = self.order.oversized.tolist() if isinstance(self.order, PackedOrder) else []
        return [self.data.structures.place(int(self.data.split.train[place])) for place in alone]

    def _validation(self, rank: int) -> EvaluationBatches:
        return EvaluationBatches(
            self.table,
            self.evaluation_batch_size,
            max_edges=self.max_edges,
            max_atoms=self.max_atoms,
            rank=rank,
            num_processes=self.num_processes,
            members=self.validation_members,
        )

    def _share(self, costs: Integers, whole: Integers, rank: int) -> Integers:
        """The share of a process of a batch of places in the training set, which has these costs, as such places."""
        return whole[share_of(costs[whole], rank=rank, num_processes=self.num_processes).places]

    def _heaviest_whole(self) -> Integers:
        """The batch in which this process has the most to do, as places in the training set."""
        costs = self.table.costs(self.members)
        if isinstance(self.order, BatchOrder):
            return np.argsort(-costs, kind="stable")[: self.order.batch_size]
        batches = (batch.numpy() for batch in self.order.epoch(0))
        return max(batches, key=lambda batch: int(costs[self._share(costs, batch, self.rank)].sum()))

    def _heaviest_of_validation(self) -> Tensor:
        """Places in the validation set."""
        own, costs = self.validation(), self.table.costs(self.validation_members)
        batches = self._validation(0) if own.is_stand_in else own
        return max(batches.places, key=lambda places: int(costs[places.numpy()].sum()))


def _table(data: PreparedData, *, reach: Reach, dtype: torch.dtype, say: Say) -> tuple[StructureTable, Tensor, Tensor]:
    """The table of all structures, or of those that are used if they are few, and where training and validation lie in it."""
    structures, mapped, key = data.reduced.structures, data.opened.columns, data.opened.content_hash
    forces_mapped = data.reduced.columns
    used = np.concatenate([data.split.train, data.split.validation])
    members = used
    endless = max(reach.cutoff, reach.far_cutoff) > LONGEST_CUTOFF  # where edges of what is periodic cannot be found
    if len(used) * WORTH_A_COPY <= len(structures) or (endless and structures.periodic.any()):
        structures, mapped, forces_mapped, members = structures.take(used), None, None, np.arange(len(used))
        key = content_hash(structures)
    precision = str(dtype).removeprefix("torch.")
    edges, far_edges = (
        edges_of(structures, cutoff=cutoff, dtype=precision, key=key, cache=data.cache, mapped=mapped, say=say)
        if cutoff
        else None
        for cutoff in (reach.cutoff, reach.far_cutoff)
    )
    constants = data.reference.table()
    table = structure_table(
        structures,
        reach=reach,
        self_energies=constants,
        dtype=dtype,
        edges=edges,
        far_edges=far_edges,
        subset_weights=data.subset_weights,
        mapped=mapped,
        forces_mapped=forces_mapped,
    )
    places = torch.from_numpy(members)
    return table, places[: len(data.split.train)], places[len(data.split.train) :]
