"""Train SchNetPack's SchNet or PaiNN as its rMD17 example does; `benchmark_training.py` runs it.

Runs with an interpreter that has schnetpack installed, and imports nothing of modelforge. All parts are SchNetPack's own:
ASE database, AtomsDataModule, AtomisticTask, callbacks (weight average, best and last checkpoint) and loss weights of
configs/experiment/rmd17.yaml, in Lightning's Trainer. Only its loggers and progress bar are off.
"""

# mypy: allow-untyped-calls
# because ase annotates only some of its functions.

import argparse
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import schnetpack as spk
import torch
import torchmetrics
from ase.io import iread
from measuring import Figures, fixed, options, time_passes, write_figures
from schnetpack import transform
from schnetpack.data import AtomsDataFormat, AtomsDataModule, create_dataset
from schnetpack.train import ExponentialMovingAverage, ModelCheckpoint, ReduceLROnPlateau

UNITS = {"energy": "eV", "forces": "eV/Ang"}


class Clock(pl.Callback):
    """Notes the time at the end of each validation; the difference of two is a whole epoch, with its checkpoint."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.seconds.append(time.perf_counter())


def write_database(data: Path, folder: Path, *, num_validation: int) -> None:
    """An ASE database of an extended XYZ file, and its split: the last structures validate."""
    frames = list(iread(data))
    database = create_dataset(str(folder / "data.db"), AtomsDataFormat.ASE, distance_unit="Ang", property_unit_dict=UNITS)
    labels = [{"energy": np.array([frame.get_potential_energy()]), "forces": np.array(frame.get_forces())} for frame in frames]
    for frame in frames:
        if not frame.pbc.any():
            frame.cell = None  # a box that means nothing would only slow the search for neighbours down
    database.add_systems(property_list=labels, atoms_list=frames)
    first = len(frames) - num_validation
    validation = np.arange(first, len(frames))
    np.savez(folder / "split.npz", train_idx=np.arange(first), val_idx=validation, test_idx=np.arange(0))


def build_data(chosen: argparse.Namespace, folder: Path) -> AtomsDataModule:
    """The data module of the rMD17 example."""
    transforms = [
        transform.SubtractCenterOfMass(),
        transform.RemoveOffsets("energy", remove_mean=True),
        # As in the example; for molecules it is faster than CachedNeighborList, which opens a file for each structure.
        transform.MatScipyNeighborList(cutoff=chosen.network["cutoff"]),
        transform.CastTo32(),
    ]
    return AtomsDataModule(
        str(folder / "data.db"),
        batch_size=chosen.batch_size,
        split_file=str(folder / "split.npz"),
        distance_unit="Ang",
        property_units=UNITS,
        transforms=transforms,
        num_workers=chosen.workers,
    )


def build_task(chosen: argparse.Namespace) -> spk.task.AtomisticTask:
    """The network with energy and forces, losses, AdamW and plateau schedule of the rMD17 example."""
    network = chosen.network
    representation = {"schnet": spk.representation.SchNet, "painn": spk.representation.PaiNN}[chosen.potential]
    potential = representation(
        n_atom_basis=network["num_features"],
        n_interactions=network["num_layers"],
        radial_basis=spk.nn.GaussianRBF(n_rbf=network["num_radial"], cutoff=network["cutoff"]),
        cutoff_fn=spk.nn.CosineCutoff(network["cutoff"]),
    )
    model = spk.model.NeuralNetworkPotential(
        representation=potential,
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[
            spk.atomistic.Atomwise(n_in=network["num_features"], output_key="energy"),
            spk.atomistic.Forces(energy_key="energy", force_key="forces"),
        ],
        postprocessors=[transform.CastTo64(), transform.AddOffsets("energy", add_mean=True)],
    )
    return spk.task.AtomisticTask(
        model=model,
        outputs=[_output("energy", weight=0.01), _output("forces", weight=0.99)],
        optimizer_cls=torch.optim.AdamW,
        optimizer_args={"lr": chosen.learning_rate, "weight_decay": 0.0},
        scheduler_cls=ReduceLROnPlateau,
        scheduler_args={"mode": "min", "factor": 0.5, "patience": 75, "threshold": 0.0, "cooldown": 10},
        scheduler_monitor="val_loss",
    )


def _output(name: str, *, weight: float) -> spk.task.ModelOutput:
    metrics = {
        "mae": torchmetrics.regression.MeanAbsoluteError(),
        "rmse": torchmetrics.regression.MeanSquaredError(squared=False),
    }
    return spk.task.ModelOutput(name, loss_fn=torch.nn.MSELoss(), loss_weight=weight, metrics=metrics)


def passes(task: spk.task.AtomisticTask, data: AtomsDataModule, chosen: argparse.Namespace) -> list[float]:
    """The optimizer step alone, as in `AtomisticTask.training_step` without its metrics."""
    optimizer = task.optimizer_cls(params=task.parameters(), **task.optimizer_kwargs)

    def step(batch: dict[str, torch.Tensor]) -> None:
        targets = {output.target_property: batch[output.target_property] for output in task.outputs}
        loss = task.loss_fn(task.predict_without_postprocessing(dict(batch)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return time_passes(step, fixed(data.train_dataloader(), chosen.fixed_batches), passes=chosen.epochs)


def train(task: spk.task.AtomisticTask, data: AtomsDataModule, chosen: argparse.Namespace) -> list[float]:
    """As the example does; the time after each validation."""
    folder, clock = chosen.folder, Clock()
    checkpoint = ModelCheckpoint(
        model_path=str(folder / "best_model"),
        monitor="val_loss",
        save_top_k=1,
        save_last=True,
        dirpath=str(folder / "checkpoints"),
        filename="{epoch:02d}",
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=chosen.epochs,
        callbacks=[clock, ExponentialMovingAverage(decay=chosen.ema_decay), checkpoint],
        num_sanity_val_steps=0,
        inference_mode=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        default_root_dir=folder,
    )
    trainer.fit(task, datamodule=data)
    return clock.seconds


def main() -> None:
    """Train, then write the figures."""
    chosen = options("Train a network of SchNetPack for benchmark_training.py.")
    warnings.filterwarnings("ignore")
    pl.seed_everything(0)
    write_database(chosen.data, chosen.folder, num_validation=chosen.num_validation)
    data, task = build_data(chosen, chosen.folder), build_task(chosen)
    data.setup()
    task.model.initialize_transforms(data)
    seconds = passes(task, data, chosen) if chosen.fixed_batches else train(task, data, chosen)
    write_figures(
        chosen.folder,
        Figures(
            seconds=seconds,
            num_parameters=sum(weight.numel() for weight in task.model.parameters() if weight.requires_grad),
            num_embedding=task.model.representation.embedding.weight.numel(),
            versions={"schnetpack": version("schnetpack"), "torch": torch.__version__},
        ),
    )


if __name__ == "__main__":
    main()
