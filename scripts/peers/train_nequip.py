"""Train NequIP, or Allegro which extends it, as `nequip-train` does; `benchmark_training.py` runs it.

All parts are NequIP's own, from a configuration with the sections of its tutorial: ASE data, statistics of the data, EMA
module, plateau schedule, checkpoints of the best and the last, in Lightning's Trainer; its command reads the same from YAML.
Allegro has the form of its tutorial with smaller networks. Off: the progress bar, weights and biases (a CSV log instead),
the errors of training batches, the repulsion at short range. Variants: `compiled` (`compile_mode: compile`);
`cuda` (on a GPU), there also `cuequivariance` and for NequIP `openequivariance`, its kernels, where installed.
"""

# mypy: allow-untyped-calls, allow-subclassing-any, disable-error-code="import-not-found"
# because ase annotates only some of its functions, and the peer is in an environment of its own.

import argparse
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from ase.data import chemical_symbols
from ase.io import iread, write
from hydra.utils import instantiate
from measuring import Figures, fixed, options, time_passes, write_figures
from nequip.data.datamodule import NequIPDataModule
from nequip.train import EMALightningModule
from nequip.utils.global_state import set_global_state

Config = dict[str, object]
MONITORED = "val0_epoch/weighted_sum"
MODIFIERS = {  # of the model, by variant
    ("nequip", "openequivariance"): "enable_OpenEquivariance",
    ("nequip", "cuequivariance"): "enable_CuEquivariance",
    ("allegro", "cuequivariance"): "enable_CuEquivarianceContracter",
}


class Clock(lightning.Callback):
    """Notes the time at the end of each validation; the difference of two is a whole epoch, with its checkpoints."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        self.seconds.append(time.perf_counter())


def write_parts(data: Path, folder: Path, *, num_validation: int) -> list[str]:
    """Two XYZ files, the last structures validate; energies from their mean on, as it is small then. Gives the elements."""
    frames = list(iread(data))
    first = len(frames) - num_validation
    mean = np.mean([frame.get_potential_energy() for frame in frames[:first]])
    for frame in frames:
        frame.calc.results["energy"] -= mean
        if not frame.pbc.any():
            frame.cell = None
    write(folder / "training.xyz", frames[:first], format="extxyz")
    write(folder / "validation.xyz", frames[first:], format="extxyz")
    return [chemical_symbols[number] for number in sorted({int(number) for frame in frames for number in frame.numbers})]


def data_config(chosen: argparse.Namespace, elements: list[str]) -> Config:
    """The section `data`."""
    loader = {
        "_target_": "torch.utils.data.DataLoader",
        "batch_size": chosen.batch_size,
        "num_workers": chosen.workers,
        "persistent_workers": chosen.workers > 0,
    }
    return {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": 456,
        "train_file_path": str(chosen.folder / "training.xyz"),
        "val_file_path": str(chosen.folder / "validation.xyz"),
        "transforms": [
            {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": elements},
            {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": chosen.network["cutoff"]},
        ],
        "train_dataloader": {**loader, "shuffle": True},
        "val_dataloader": loader,
        "stats_manager": {
            "_target_": "nequip.data.CommonDataStatisticsManager",
            "dataloader_kwargs": {"batch_size": 10},
            "type_names": elements,
        },
    }


def model_config(chosen: argparse.Namespace, elements: list[str], statistics: dict[str, object]) -> Config:
    """The section `training_module.model`."""
    network = chosen.network
    sizes = nequip_sizes(network) if chosen.potential == "nequip" else allegro_sizes(network)
    model: Config = {
        "seed": 456,
        "model_dtype": "float32",
        "type_names": elements,
        "r_max": network["cutoff"],
        "l_max": network["l_max"],
        "parity": network["parity"],
        "num_layers": network["num_layers"],
        "avg_num_neighbors": statistics["num_neighbors_mean"],
        "per_type_energy_scales": statistics["per_type_forces_rms"],
        "per_type_energy_shifts": statistics["per_atom_energy_mean"],
        "compile_mode": "compile" if "compiled" in chosen.variant else "eager",
        **sizes,
    }
    modifiers = [{"modifier": name} for name in modifiers_of(chosen)]
    return {"_target_": "nequip.model.modify", "modifiers": modifiers, "model": model} if modifiers else model


def modifiers_of(chosen: argparse.Namespace) -> list[str]:
    """What puts the kernels of the variant into the model."""
    kernels = [kernel for kernel in ("openequivariance", "cuequivariance") if kernel in chosen.variant]
    missing = [kernel for kernel in kernels if (chosen.potential, kernel) not in MODIFIERS]
    if missing:
        raise SystemExit(f"--variant: {chosen.potential} has no kernels of {missing[0]}")
    return [MODIFIERS[chosen.potential, kernel] for kernel in kernels]


def nequip_sizes(network: dict[str, Any]) -> Config:
    """What only NequIP has."""
    return {
        "_target_": "nequip.model.NequIPGNNModel",
        "num_features": network["num_features"],
        "num_bessels": network["num_bessel"],
        **hidden_layers("radial_mlp", network["radial_hidden"]),
    }


def allegro_sizes(network: dict[str, Any]) -> Config:
    """What only Allegro has."""
    return {
        "_target_": "allegro.model.AllegroModel",
        "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": network["num_bessel"]},
        "num_scalar_features": network["num_scalar_features"],
        "num_tensor_features": network["num_tensor_features"],
        **hidden_layers("scalar_embed_mlp_hidden_layers", network["scalar_embed_hidden"]),
        **hidden_layers("allegro_mlp_hidden_layers", network["mlp_hidden"]),
        **hidden_layers("readout_mlp_hidden_layers", network["readout_hidden"]),
    }


def hidden_layers(prefix: str, widths: list[int]) -> Config:
    """Hidden layers as it wants them: all are as wide."""
    if len(set(widths)) != 1:
        raise SystemExit(f"--network: hidden layers of one width (got {widths})")
    return {f"{prefix}_depth": len(widths), f"{prefix}_width": widths[0]}


def module_config(chosen: argparse.Namespace, model: Config) -> Config:
    """The section `training_module`."""
    schedule = {"factor": 0.6, "patience": 5, "threshold": 0.2, "min_lr": 1e-6}
    return {
        "_target_": "nequip.train.EMALightningModule",
        "ema_decay": chosen.ema_decay,
        "loss": {"_target_": "nequip.train.EnergyForceLoss", "coeffs": {"total_energy": 1.0, "forces": 1.0}},
        "val_metrics": {
            "_target_": "nequip.train.EnergyForceMetrics",
            "coeffs": {"total_energy_mae": 1.0, "forces_mae": 1.0},
        },
        "optimizer": {"_target_": "torch.optim.Adam", "lr": chosen.learning_rate},
        "lr_scheduler": {
            "scheduler": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", **schedule},
            "monitor": MONITORED,
            "interval": "epoch",
            "frequency": 1,
        },
        "model": model,
    }


def passes(module: EMALightningModule, data: NequIPDataModule, chosen: argparse.Namespace) -> list[float]:
    """The optimizer step alone."""
    data.setup("fit")
    optimizer = module.configure_optimizers()["optimizer"]
    module.log_dict = lambda values: None  # noqa: ARG005 - Lightning's log, which there is no Trainer for

    def step(batch: dict[str, torch.Tensor]) -> None:
        loss = module.training_step(batch.copy(), 0)
        optimizer.zero_grad()
        loss.backward()
        module.optimizer_step(0, 0, optimizer)

    device = device_of(chosen)
    module.to(device)
    batches = fixed(data.train_dataloader(), chosen.fixed_batches)
    moved = [{name: value.to(device) for name, value in batch.items()} for batch in batches]
    return time_passes(step, moved, passes=chosen.epochs)


def train(module: EMALightningModule, data: NequIPDataModule, chosen: argparse.Namespace) -> list[float]:
    """As `nequip-train` does; the time after each validation."""
    clock, folder = Clock(), chosen.folder
    callbacks = [
        clock,
        lightning.pytorch.callbacks.ModelCheckpoint(monitor=MONITORED, dirpath=folder, filename="best", save_last=True),
        lightning.pytorch.callbacks.LearningRateMonitor(logging_interval="epoch"),
    ]
    trainer = lightning.Trainer(
        max_epochs=chosen.epochs,
        accelerator=device_of(chosen),
        devices=1,
        logger=lightning.pytorch.loggers.CSVLogger(folder, name="", version=""),
        callbacks=callbacks,
        default_root_dir=folder,
        inference_mode=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return clock.seconds


def device_of(chosen: argparse.Namespace) -> str:
    """Where it trains."""
    return "cuda" if "cuda" in chosen.variant else "cpu"


def main() -> None:
    """Train, then write the figures."""
    chosen = options("Train NequIP or Allegro for benchmark_training.py.")
    warnings.filterwarnings("ignore")
    elements = write_parts(chosen.data, chosen.folder, num_validation=chosen.num_validation)
    set_global_state()
    data = instantiate(data_config(chosen, elements), _recursive_=False)
    model = model_config(chosen, elements, data.get_statistics(dataset="train"))
    config = module_config(chosen, model)
    module = instantiate(config, _recursive_=False, _convert_="all", num_datasets=data.num_datasets, info_dict={})
    seconds = (passes if chosen.fixed_batches else train)(module, data, chosen)
    tables = ("type_embed.embed_module.weight", "center_embed.weight", "neighbor_embed.weight")
    weights = {name: weight.numel() for name, weight in module.model.named_parameters() if weight.requires_grad}
    names = ("nequip", "nequip-allegro", "e3nn", "lightning")
    write_figures(
        chosen.folder,
        Figures(
            seconds=seconds,
            num_parameters=sum(weights.values()),
            num_embedding=sum(size for name, size in weights.items() if name.endswith(tables)),
            versions={name: version(name) for name in names} | {"torch": torch.__version__},
        ),
    )


if __name__ == "__main__":
    main()
