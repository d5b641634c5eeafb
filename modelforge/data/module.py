"""The LightningDataModule: batches of the sets for a Trainer."""

import pytorch_lightning as pl
import torch

from modelforge.atoms.graph import Batch
from modelforge.data.batches import StructureTable, structure_table
from modelforge.data.order import BatchOrder, EvaluationBatches, TrainingBatches
from modelforge.data.prepare import PreparedData
from modelforge.data.structures import Structures


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
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        super().__init__()
        self.data, self.cutoff, self.dtype = data, cutoff, dtype
        self.batch_size, self.evaluation_batch_size, self.seed = batch_size, evaluation_batch_size, seed
        self.rank, self.num_processes = rank, num_processes
        self.first_step = self.last_step = 0
        self.training = self.table(data.training)
        self.validation = self.table(data.validation)

    def table(self, structures: Structures) -> StructureTable:
        """A set with edges, without self-energies, in the training precision."""
        return structure_table(structures, cutoff=self.cutoff, self_energies=self.data.reference.table(), dtype=self.dtype)

    def order(self) -> BatchOrder:
        """The order of the training batches of this process."""
        return BatchOrder(len(self.training), self.batch_size, self.seed, self.rank, self.num_processes)

    def train_dataloader(self) -> TrainingBatches:
        """The batches from `first_step` to `last_step`."""
        return TrainingBatches(self.training, self.order(), first_step=self.first_step, last_step=self.last_step)

    def val_dataloader(self) -> EvaluationBatches:
        """The validation set."""
        return EvaluationBatches(self.validation, self.evaluation_batch_size, rank=self.rank, num_processes=self.num_processes)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """A batch gathered on the device stays where it is."""
        return batch.to(device)
