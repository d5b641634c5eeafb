"""Train graph-pes's SchNet, PaiNN or TensorNet as `graph-pes-train` does; `benchmark_training.py` runs it.

All parts are graph-pes's own: its data set, loader, `trainer_from_config` with all callbacks that this adds, and
`train_with_lightning`. Its networks differ from the published ones in some widths; these are given back here, with its own
layers, so that both sides have the same: the read-out of PaiNN; in TensorNet the networks of distances, the read-out, and
the bias of the pairs of elements. Radial functions are not trained. Kept as they are: what it leaves out of TensorNet (the
atom itself in its own messages), its envelopes and norms. Off: the progress bar, and an export for LAMMPS at each
improvement.
"""

# mypy: allow-untyped-calls, disable-error-code="import-not-found"
# because ase annotates only some of its functions, and the peer is in an environment of its own.

import argparse
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from ase.io import iread, write
from graph_pes import AtomicGraph, GraphPESModel
from graph_pes.config.training import FittingConfig, GeneralConfig, TorchConfig, TrainingConfig
from graph_pes.data.datasets import DatasetCollection, file_dataset
from graph_pes.data.loader import GraphDataLoader
from graph_pes.models import PaiNN, SchNet, TensorNet
from graph_pes.models.components.distances import DistanceExpansion
from graph_pes.scripts.train import trainer_from_config
from graph_pes.training.callbacks import SaveBestModel
from graph_pes.training.loss import MSE, PerAtomEnergyLoss, PropertyLoss, TotalLoss
from graph_pes.training.tasks import TrainingTask, train_with_lightning
from graph_pes.utils.nn import MLP, PerElementParameter
from measuring import Figures, fixed, options, time_passes, write_figures
from torch import nn


class Clock(pl.Callback):
    """Notes the time at the end of each validation; the difference of two is a whole epoch, with its checkpoint."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.seconds.append(time.perf_counter())


def write_parts(data: Path, folder: Path, *, num_validation: int) -> None:
    """Two XYZ files, the last structures validate; energies from their mean on, as single precision would lose the rest."""
    frames = list(iread(data))
    first = len(frames) - num_validation
    mean = np.mean([frame.get_potential_energy() for frame in frames[:first]])
    for frame in frames:
        frame.calc.results["energy"] -= mean
        if not frame.pbc.any():
            frame.cell = None
    write(folder / "training.xyz", frames[:first], format="extxyz")
    write(folder / "validation.xyz", frames[first:], format="extxyz")


def build_model(name: str, network: dict[str, float]) -> GraphPESModel:
    """The network with the widths of ours."""
    channels, radial = int(network["num_features"]), int(network["num_radial"])
    sizes = {"channels": channels, "layers": int(network["num_layers"]), "cutoff": network["cutoff"]}
    half = channels // 2
    model: GraphPESModel
    if name == "schnet":
        model = SchNet(expansion_features=radial, **sizes)
    elif name == "painn":
        model = PaiNN(radial_features=radial, **sizes)
        model.read_out = MLP([channels, half, 1], activation=nn.SiLU())
    else:
        model = TensorNet(radial_features=radial, **sizes)
        model.embedding.edge_embedding.z_map = nn.Linear(2 * channels, channels)
        widths = [radial, channels, 2 * channels, 3 * channels]
        for interaction in model.interactions:
            distances = interaction.distance_embedding.components[0]
            distances[1] = MLP(widths, activation=nn.SiLU(), activate_last=True)
        model.energy_read_out.mlp = MLP([3 * channels, channels, half, 1], activation=nn.SiLU())
    for module in model.modules():
        if isinstance(module, DistanceExpansion):
            module.requires_grad_(False)
    return model


def configuration(model: GraphPESModel, chosen: argparse.Namespace, clock: Clock) -> TrainingConfig:
    """What `graph-pes-train` makes of its YAML file."""
    folder, cutoff = chosen.folder, chosen.network["cutoff"]
    best = SaveBestModel()
    best.try_to_deploy = False
    data = DatasetCollection(
        train=file_dataset(folder / "training.xyz", cutoff=cutoff), valid=file_dataset(folder / "validation.xyz", cutoff=cutoff)
    )
    fitting = FittingConfig(
        pre_fit_model=True,
        max_n_pre_fit=5_000,
        auto_fit_reference_energies=False,
        early_stopping=None,
        early_stopping_patience=None,
        loader_kwargs={
            "num_workers": chosen.workers,
            "persistent_workers": chosen.workers > 0,
            "batch_size": chosen.batch_size,
            "pin_memory": False,
        },
        keep="best",
        trainer_kwargs={
            "max_epochs": chosen.epochs,
            "accelerator": "cpu",
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        },
        optimizer={"name": "AdamW", "lr": chosen.learning_rate, "weight_decay": 0.0},
        callbacks=[clock, best],
    )
    general = GeneralConfig(
        seed=42, root_dir=str(folder), run_id="run", torch=TorchConfig("float32", "highest"), progress="logged"
    )
    loss = TotalLoss([PerAtomEnergyLoss(metric=MSE()), PropertyLoss("forces", metric=MSE(), weight=10.0)])
    return TrainingConfig(model=model, data=data, loss=loss, fitting=fitting, general=general, wandb=None)


def passes(config: TrainingConfig, chosen: argparse.Namespace) -> list[float]:
    """The optimizer step alone."""
    model, data = config.model, config.data
    data.train.setup()
    task = TrainingTask(model, config.loss, config.fitting.get_optimizer(), None, [])
    optimizer = config.fitting.get_optimizer()(model)
    model.train()

    def step(batch: AtomicGraph) -> None:
        loss = config.loss(model, batch, model.predict(batch, task.train_properties)).loss_value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    loader = GraphDataLoader(data.train, batch_size=chosen.batch_size, shuffle=True)
    return time_passes(step, fixed(loader, chosen.fixed_batches), passes=chosen.epochs)


def train(config: TrainingConfig, folder: Path, clock: Clock) -> list[float]:
    """As `graph-pes-train` does; the time after each validation."""
    trainer = trainer_from_config(config, folder)
    optimizer = config.fitting.get_optimizer()
    train_with_lightning(trainer, config.model, config.data, config.loss, config.fitting, optimizer)
    return clock.seconds


def main() -> None:
    """Train, then write the figures."""
    chosen = options("Train a network of graph-pes for benchmark_training.py.")
    warnings.filterwarnings("ignore")
    write_parts(chosen.data, chosen.folder, num_validation=chosen.num_validation)
    model, clock = build_model(chosen.potential, chosen.network), Clock()
    config = configuration(model, chosen, clock)
    seconds = passes(config, chosen) if chosen.fixed_batches else train(config, chosen.folder, clock)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    tables = [weight for weight in weights if isinstance(weight, PerElementParameter)]  # embedding and scales
    write_figures(
        chosen.folder,
        Figures(
            seconds=seconds,
            num_parameters=sum(weight.numel() for weight in weights),
            num_embedding=sum(table.numel() for table in tables),
            versions={"graph-pes": version("graph-pes"), "torch": torch.__version__},
        ),
    )


if __name__ == "__main__":
    main()
