"""The LightningDataModule: batches of the sets for a Trainer."""

import numpy as np
import pytorch_lightning as pl
import torch

from modelforge.atoms.graph import Batch
from modelforge.data.batches import StructureTable, structure_table
from modelforge.data.store.content_hash import content_hash
from modelforge.data.edges import edges_of
from modelforge.data.order import BatchOrder, EvaluationBatches, TrainingBatches
from modelforge.data.packing import PackedOrder
from modelforge.data.prepare import PreparedData
from modelforge.data.store.prepared_once import Say, silent

WORTH_A_COPY = 4  # of the structures: where at most every fourth is used, those are copied and the others left alone


class DataModule(pl.LightningDataModule):
    """Training and validation batches for a Trainer; `first_step` and `last_step` bound the next call for training batches."""

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
        super().__init__()
        self.data = data
        self.evaluation_batch_size, self.rank, self.num_processes = evaluation_batch_size, rank, num_processes
        self.first_step = self.last_step = 0
        self.table, self.training, self.validation = _table(data, cutoff=cutoff, dtype=dtype, say=say)
        self.order: BatchOrder | PackedOrder = BatchOrder(len(self.training), batch_size, seed, rank, num_processes)
        if max_edges or max_atoms:
            self.order = PackedOrder(
                self.table.num_edges[self.training].numpy(),
                self.table.num_atoms[self.training].numpy(),
                max_edges=max_edges,
                max_atoms=max_atoms,
                seed=seed,
                rank=rank,
                num_processes=num_processes,
            )

    def train_dataloader(self) -> TrainingBatches:
        """The batches from `first_step` to `last_step`."""
        bounds = {"first_step": self.first_step, "last_step": self.last_step}
        return TrainingBatches(self.table, self.order, members=self.training, **bounds)

    def oversized(self) -> list[str]:
        """`file:index` of the training structures that alone exceed the budget of a batch: each is a batch of its own."""
        alone = self.order.oversized.tolist() if isinstance(self.order, PackedOrder) else []
        return [self.data.structures.place(int(self.data.split.train[place])) for place in alone]

    def val_dataloader(self) -> EvaluationBatches:
        """The validation set."""
        share = {"rank": self.rank, "num_processes": self.num_processes}
        return EvaluationBatches(self.table, self.evaluation_batch_size, members=self.validation, **share)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """A batch gathered on the device stays where it is."""
        return batch.to(device)


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
