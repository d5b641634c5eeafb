"""The LightningDataModule: the batches of a run for a Trainer."""

import pytorch_lightning as pl
import torch

from modelforge.atoms.graph import Batch
from modelforge.data.batching.order import EvaluationBatches, TrainingBatches
from modelforge.data.batching.run_batches import RunBatches


class DataModule(pl.LightningDataModule):
    """Training and validation batches for a Trainer; `first_step` and `last_step` bound the next call for training batches."""

    def __init__(self, batches: RunBatches) -> None:
        super().__init__()
        self.batches = batches
        self.first_step = self.last_step = 0

    def train_dataloader(self) -> TrainingBatches:
        """The batches from `first_step` to `last_step`."""
        return self.batches.training(self.first_step, self.last_step)

    def val_dataloader(self) -> EvaluationBatches:
        """The validation set."""
        return self.batches.validation()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """A batch gathered on the device stays where it is."""
        return batch.to(device)
