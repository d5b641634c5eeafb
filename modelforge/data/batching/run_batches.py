"""The batches of a run: training in its order, validation, both from one table of structures."""

import numpy as np
import torch

from modelforge.data.batching.batches import StructureTable, structure_table
from modelforge.data.batching.edges import edges_of
from modelforge.data.batching.order import BatchOrder, EvaluationBatches, TrainingBatches
from modelforge.data.batching.packing import PackedOrder
from modelforge.data.prepare import PreparedData
from modelforge.data.store.content_hash import content_hash
from modelforge.data.store.prepared_once import Say, silent
from modelforge.data.structures import Integers
from modelforge.errors import UserError

WORTH_A_COPY = 4  # of the structures: where at most every fourth is used, those are copied and the others left alone


class RunBatches:
    """Training and validation batches of one of several processes."""

    def __init__(
        self,
        data: PreparedData,
        *,
        cutoff: float,
        dtype: torch.dtype,
        batch_size: int,
        max_edges: int | None = None,
        max_atoms: int | None = None,
        evaluation_batch_size: int,
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
        say: Say = silent,
    ) -> None:
        if len(data.split.validation) < num_processes:
            raise UserError(
                f"dataset.split: leaves {len(data.split.validation)} structures for validation, fewer than the {num_processes} "
                "processes; give validation a larger share, or use fewer devices"
            )
        self.data, self.max_edges, self.max_atoms = data, max_edges, max_atoms
        self.evaluation_batch_size, self.rank, self.num_processes = evaluation_batch_size, rank, num_processes
        self.table, self.members, self.validation_members = _table(data, cutoff=cutoff, dtype=dtype, say=say)
        self.order: BatchOrder | PackedOrder = BatchOrder(len(self.members), batch_size, seed, rank, num_processes)
        if max_edges or max_atoms:
            self.order = PackedOrder(
                self.table.num_edges[self.members].numpy(),
                self.table.num_atoms[self.members].numpy(),
                max_edges=max_edges,
                max_atoms=max_atoms,
                seed=seed,
                rank=rank,
                num_processes=num_processes,
            )

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of this process in an epoch."""
        return self.order.steps_per_epoch

    def training(self, first_step: int, last_step: int) -> TrainingBatches:
        """The training batches from one step up to another."""
        return TrainingBatches(self.table, self.order, members=self.members, first_step=first_step, last_step=last_step)

    def structures_of_step(self, step: int) -> Integers:
        """Indices among all structures of the training batch of a step of this process."""
        epoch, place = divmod(step, self.order.steps_per_epoch)
        chosen: Integers = self.data.split.train[self.order.epoch(epoch)[place].numpy()]
        return chosen

    def validation(self) -> EvaluationBatches:
        """The validation set."""
        return EvaluationBatches(
            self.table,
            self.evaluation_batch_size,
            max_edges=self.max_edges,
            max_atoms=self.max_atoms,
            rank=self.rank,
            num_processes=self.num_processes,
            members=self.validation_members,
        )

    def oversized(self) -> list[str]:
        """`file:index` of the training structures that alone exceed the budget of a batch: each is a batch of its own."""
        alone = self.order.oversized.tolist() if isinstance(self.order, PackedOrder) else []
        return [self.data.structures.place(int(self.data.split.train[place])) for place in alone]


def _table(
    data: PreparedData, *, cutoff: float, dtype: torch.dtype, say: Say
) -> tuple[StructureTable, torch.Tensor, torch.Tensor]:
    """The table of all structures, or of those that are used if they are few, and where training and validation lie in it."""
    structures, mapped, key = data.structures, data.opened.columns, data.opened.content_hash
    used = np.concatenate([data.split.train, data.split.validation])
    members = used
    if len(used) * WORTH_A_COPY <= len(structures):
        structures, mapped, members = structures.take(used), None, np.arange(len(used))
        key = content_hash(structures)
    precision = str(dtype).removeprefix("torch.")
    edges = edges_of(structures, cutoff=cutoff, dtype=precision, key=key, cache=data.cache, mapped=mapped, say=say)
    constants = data.reference.table()
    table = structure_table(
        structures,
        cutoff=cutoff,
        self_energies=constants,
        dtype=dtype,
        edges=edges,
        subset_weights=data.subset_weights,
        mapped=mapped,
    )
    places = torch.from_numpy(members)
    return table, places[: len(data.split.train)], places[len(data.split.train) :]
