"""Train TorchMD-Net's TensorNet as `torchmd-train` does; `benchmark_training.py` runs it.

All parts are TorchMD-Net's own: the defaults of its command line with the settings of examples/TensorNet-rMD17.yaml, its
Custom data set of npy files, DataModule, LNNP module, checkpoints and CSV log, in Lightning's Trainer. Only the progress
bar, the test and the clipping of gradients are off, which ours leaves out too. Variants: `static shapes` (its own option),
and `no warp`, its code for where warp is not installed.
"""

# mypy: allow-untyped-calls, allow-subclassing-any, disable-error-code="import-not-found"
# because ase annotates only some of its functions, and the peer is in an environment of its own.

import argparse
import sys
import time
import warnings
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import lightning as pl
import numpy as np
import torch
from ase.io import iread
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from measuring import Figures, fixed, options, time_passes, write_figures
from torch_geometric.data import Data
from torchmdnet.extensions import ops  # noqa: F401 - its search for neighbours always needs warp

if any("no warp" in argument for argument in sys.argv):
    sys.modules["torchmdnet.extensions.warp_ops"] = None  # type: ignore[assignment] # TensorNet then takes its plain torch code

from torchmdnet.data import DataModule
from torchmdnet.module import LNNP
from torchmdnet.scripts.train import get_argparse

SETTINGS = """--model tensornet --activation silu --rbf-type expnorm --derivative True --y-weight 0.5 --neg-dy-weight 0.5
--lr-factor 0.8 --lr-min 1e-8 --lr-patience 25 --weight-decay 0.0 --lr-warmup-steps 500 --precision 32 --ngpus 1
--max-num-neighbors 32 --max-z 100 --dataset Custom"""


class Clock(pl.Callback):
    """Notes the time at the end of each validation; the difference of two is a whole epoch, with its checkpoint."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.seconds.append(time.perf_counter())


def write_arrays(data: Path, folder: Path, *, num_validation: int) -> None:
    """An npy file of each quantity and formula, and a split: the last structures of the XYZ file validate."""
    frames = list(iread(data))
    first = len(frames) - num_validation
    mean = np.mean([frame.get_potential_energy() for frame in frames[:first]])  # in single precision it would drown the rest
    formulas = defaultdict(list)
    for index, frame in enumerate(frames):
        formulas[tuple(frame.numbers.tolist())].append(index)
    for number, (numbers, members) in enumerate(formulas.items()):
        chosen = [frames[index] for index in members]
        np.save(folder / f"embed_{number:05d}.npy", np.array(numbers))
        np.save(folder / f"coord_{number:05d}.npy", np.array([frame.positions for frame in chosen], dtype=np.float32))
        np.save(folder / f"force_{number:05d}.npy", np.array([frame.get_forces() for frame in chosen], dtype=np.float32))
        energies = np.array([[frame.get_potential_energy() - mean] for frame in chosen], dtype=np.float32)
        np.save(folder / f"energy_{number:05d}.npy", energies)
    order = np.array([index for members in formulas.values() for index in members])
    training, validation = np.flatnonzero(order < first), np.flatnonzero(order >= first)
    np.savez(folder / "splits.npz", idx_train=training, idx_val=validation, idx_test=np.arange(0))


def arguments(chosen: argparse.Namespace, folder: Path) -> argparse.Namespace:
    """Those of `torchmd-train`."""
    network = chosen.network
    command = f"""{SETTINGS} --splits {folder}/splits.npz --log-dir {folder} --seed 1
    --coord-files {folder}/coord_*.npy --embed-files {folder}/embed_*.npy
    --energy-files {folder}/energy_*.npy --force-files {folder}/force_*.npy
    --embedding-dimension {network["num_features"]} --num-layers {network["num_layers"]} --num-rbf {network["num_radial"]}
    --cutoff-upper {network["cutoff"]} --batch-size {chosen.batch_size} --inference-batch-size {chosen.batch_size}
    --lr {chosen.learning_rate} --num-epochs {chosen.epochs} --num-workers {chosen.workers}"""
    if "static" in chosen.variant:
        command += " --static_shapes True"
    settings: argparse.Namespace = get_argparse().parse_args(command.split())
    return settings


def passes(module: LNNP, data: DataModule, chosen: argparse.Namespace) -> list[float]:
    """The optimizer step alone."""
    (optimizer,), _ = module.configure_optimizers()

    def step(batch: Data) -> None:
        loss = module.training_step(batch.clone(), 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        module._reset_losses_dict()  # what it adds up until the end of the epoch

    return time_passes(step, fixed(data.train_dataloader(), chosen.fixed_batches), passes=chosen.epochs)


def train(module: LNNP, data: DataModule, settings: argparse.Namespace, folder: Path) -> list[float]:
    """As `torchmd-train` does; the time after each validation."""
    clock = Clock()
    checkpoint = ModelCheckpoint(
        dirpath=folder,
        monitor=settings.checkpoint_monitor,
        save_top_k=10,
        every_n_epochs=settings.save_interval,
        filename="epoch={epoch}-val_loss={val_total_mse_loss:.4f}",
        auto_insert_metric_name=False,
    )
    trainer = pl.Trainer(
        strategy="auto",
        max_epochs=settings.num_epochs,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        callbacks=[clock, checkpoint],
        logger=CSVLogger(folder, name="", version=""),
        precision=settings.precision,
        inference_mode=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return clock.seconds


def main() -> None:
    """Train, then write the figures."""
    chosen = options("Train TorchMD-Net's TensorNet for benchmark_training.py.")
    warnings.filterwarnings("ignore")
    folder: Path = chosen.folder
    write_arrays(chosen.data, folder, num_validation=chosen.num_validation)
    settings = arguments(chosen, folder)
    pl.seed_everything(settings.seed, workers=True)
    data = DataModule(vars(settings))
    data.prepare_data()
    data.setup("fit")
    module = LNNP(vars(settings), prior_model=None, mean=data.mean, std=data.std)
    seconds = passes(module, data, chosen) if chosen.fixed_batches else train(module, data, settings, folder)
    # What `torchmd-train` calls the embedding of elements; the network of pairs that follows has nothing per element.
    embedding = module.model.representation_model.tensor_embedding.emb.weight
    write_figures(
        folder,
        Figures(
            seconds=seconds,
            num_parameters=sum(weight.numel() for weight in module.model.parameters() if weight.requires_grad),
            num_embedding=embedding.numel(),
            versions={"torchmd-net": version("torchmd-net"), "torch": torch.__version__},
        ),
    )


if __name__ == "__main__":
    main()
