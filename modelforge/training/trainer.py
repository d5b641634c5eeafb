"""The Lightning Trainer of a runtime section, and whether its steps can be compiled."""

import logging
import warnings

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import TensorBoardLogger

from modelforge.errors import UserError
from modelforge.training.runtime import RuntimeSection
from modelforge.training.section import TrainingSection

# What Lightning says about choices that are deliberate here.
QUIET = (
    ".*does not have many workers.*",
    ".*The number of training batches.*is smaller than the logging interval.*",
    ".*`isinstance\\(treespec, LeafSpec\\)`.*",
    ".*Starting from v1.9.0, `tensorboardX`.*",
    ".*GPU available but not used.*",
    ".*pin_memory.*",
    ".*is not supported by the dataloader.*",
    ".*Checkpoint directory.*",
    ".*Grad strides do not match bucket view strides.*",
)


def build_trainer(runtime: RuntimeSection, training: TrainingSection, *, folder: str) -> pl.Trainer:
    """A Trainer whose epochs are the stretches between validations; checkpoints and progress are left to callbacks."""
    _quieten()
    try:
        return pl.Trainer(
            accelerator=runtime.accelerator,
            devices=list(runtime.devices) if isinstance(runtime.devices, tuple) else runtime.devices,
            num_nodes=runtime.num_nodes,
            strategy=runtime.strategy,
            # In double precision model and data are float64 from the start, so there is nothing for Lightning to convert.
            precision="32-true" if runtime.precision == "64-true" else runtime.precision,
            logger=TensorBoardLogger(folder, name="tensorboard", version="") if runtime.tensorboard else False,
            max_epochs=1,  # until it is known how many stretches there are
            accumulate_grad_batches=training.accumulate_batches,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,  # forces are derivatives
            use_distributed_sampler=False,  # each process takes its share of one order
            default_root_dir=folder,
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
        raise UserError(f"runtime: Lightning cannot build a trainer for these settings: {error}") from error


def reason_not_to_compile(runtime: RuntimeSection, device: torch.device) -> str | None:
    """Why a step with these settings runs eagerly, or None."""
    if runtime.precision not in ("32-true", "64-true"):
        return f'runtime.precision = "{runtime.precision}" is not compiled, only "32-true" and "64-true"'
    if device.type not in ("cpu", "cuda"):
        return f"there is no compiler for accelerator {device.type}"
    return None


def _quieten() -> None:
    for pattern in QUIET:
        warnings.filterwarnings("ignore", pattern)
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
