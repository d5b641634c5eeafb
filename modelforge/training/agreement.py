"""What several processes decide together, so that none waits for one that has left."""

from collections.abc import Sequence

import pytorch_lightning as pl
import torch


def any_process(trainer: pl.Trainer, wishes: Sequence[bool]) -> list[bool]:
    """For each wish whether any process has it; the same answer on all. A meeting of all processes, if there are several."""
    if trainer.world_size == 1:
        return list(wishes)
    votes = torch.tensor(wishes, dtype=torch.int32, device=trainer.strategy.root_device)
    return [bool(vote) for vote in trainer.strategy.reduce(votes, reduce_op="max").tolist()]
