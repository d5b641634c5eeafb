"""Train TorchANI's ANI-2x network as its training example does, with forces; `benchmark_training.py` runs it.

All parts are TorchANI's own: HDF5 data set, batches made once and kept in memory (`ANIBatchedDataset.cache`), `Assembler`
with the AEV constants and widths of ANI-2x, one network of the eight. The loop, the losses and the checkpoints (best and
latest) are those of examples/training.py and nnp_training_force.py. The network is for the elements of the data, as ours, in
the order of ANI-2x, as `simple_ani(symbols)` builds it. Variants: `scripted` (TorchScript), `all seven elements` of ANI-2x.
"""

# mypy: allow-untyped-calls, disable-error-code="import-not-found"
# because ase annotates only some of its functions, and the peer is in an environment of its own.

import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import torch
from ase.io import iread
from ase.symbols import symbols2numbers
from measuring import Figures, fixed, options, time_passes, write_figures
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchani.arch import Assembler
from torchani.datasets import ANIBatchedDataset, ANIDataset, create_batched_dataset
from torchani.utils import SYMBOLS_2X

Batch = dict[str, Tensor]
FORCE_COEFFICIENT = 0.1  # of the example


def write_batches(data: Path, folder: Path, *, num_validation: int, batch_size: int) -> set[int]:
    """Two folders of batches, of the training structures and of the last ones; gives the elements."""
    frames = list(iread(data))
    first = len(frames) - num_validation
    elements = {int(number) for frame in frames for number in frame.numbers}
    numbers = sorted(elements)
    counts = np.array([[(frame.numbers == number).sum() for number in numbers] for frame in frames])
    energies = np.array([frame.get_potential_energy() for frame in frames])
    # The example takes self-energies off; a fit leaves what is left small enough for single precision.
    energies = energies - counts @ np.linalg.lstsq(counts[:first].astype(float), energies[:first], rcond=None)[0]
    for name, members in (("training", range(first)), ("validation", range(first, len(frames)))):
        store = ANIDataset(folder / f"{name}.h5", grouping="by_num_atoms")
        for size in sorted({len(frames[index]) for index in members}):
            chosen = [index for index in members if len(frames[index]) == size]
            store.append_conformers(
                str(size),
                {
                    "species": np.stack([frames[index].numbers for index in chosen]),
                    "coordinates": np.stack([frames[index].positions for index in chosen]).astype(np.float32),
                    "energies": energies[chosen],
                    "forces": np.stack([frames[index].get_forces() for index in chosen]).astype(np.float32),
                },
            )
        create_batched_dataset(store, folder / name, batch_size=batch_size, splits={"training": 1.0}, verbose=False)
    return elements


def loader(folder: Path, *, shuffle: bool) -> Iterable[Batch]:
    """Batches in memory, the faster of the ways of the example."""
    dataset = ANIBatchedDataset(folder, split="training").cache(verbose=False)
    return cast(Iterable[Batch], torch.utils.data.DataLoader(dataset, shuffle=shuffle, batch_size=None))


def build_model(elements: set[int], variant: str) -> nn.Module:
    """ANI-2x with random weights."""
    chosen = [symbol for symbol in SYMBOLS_2X if "all" in variant or symbols2numbers(symbol)[0] in elements]
    assembler = Assembler()
    assembler.set_symbols(chosen)
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(radial="ani2x", angular="ani2x", strategy="auto")
    assembler.set_atomic_networks(ctor="ani2x")
    assembler.set_neighborlist("all_pairs")
    assembler.set_zeros_as_self_energies()
    model = assembler.assemble(1).to(torch.float32)
    return cast(nn.Module, torch.jit.script(model)) if "scripted" in variant else model


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Energies and forces as in the example."""
    species, energies, forces = batch["species"], batch["energies"].float(), batch["forces"].float()
    coordinates = batch["coordinates"].float().requires_grad_(True)
    num_atoms = (species >= 0).sum(dim=1, dtype=energies.dtype)
    predicted = model((species, coordinates))[1]
    predicted_forces = -torch.autograd.grad(predicted.sum(), coordinates, create_graph=True, retain_graph=True)[0]
    energy_loss = ((predicted - energies).square() / num_atoms.sqrt()).mean()
    force_loss = ((predicted_forces - forces).square().sum(dim=(1, 2)) / num_atoms).mean()
    loss: Tensor = energy_loss + FORCE_COEFFICIENT * force_loss
    return loss


def validate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Mean loss; forces need gradients by the coordinates, not by the weights."""
    _require_gradients(model, False)
    losses = [float(loss_of(model, batch).detach()) for batch in batches]
    _require_gradients(model, True)
    return sum(losses) / len(losses)


def _require_gradients(model: nn.Module, required: bool) -> None:
    for weight in model.parameters():  # one by one: a scripted module cannot do it at once
        weight.requires_grad_(required)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[Batch], None],
    folder: Path,
    *,
    epochs: int,
) -> list[float]:
    """The loop of the example; the time after each validation and its checkpoints."""
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=100, threshold=0)
    training, validation = loader(folder / "training", shuffle=True), loader(folder / "validation", shuffle=False)
    seconds = []
    for _ in range(epochs):
        for batch in training:
            step(batch)
        error = validate(model, validation)
        if error < scheduler.best:
            torch.save(model.state_dict(), folder / "best_model_state.pt")
        scheduler.step(error)
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        torch.save(states, folder / "latest_training_state.pt")
        seconds.append(time.perf_counter())
    return seconds


def main() -> None:
    """Train, then write the figures."""
    chosen = options("Train TorchANI's ANI-2x for benchmark_training.py.")
    warnings.filterwarnings("ignore")
    folder: Path = chosen.folder
    elements = write_batches(chosen.data, folder, num_validation=chosen.num_validation, batch_size=chosen.batch_size)
    model = build_model(elements, chosen.variant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen.learning_rate, weight_decay=0.0)

    def step(batch: Batch) -> None:
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    if chosen.fixed_batches:
        batches = fixed(loader(folder / "training", shuffle=False), chosen.fixed_batches)
        seconds = time_passes(step, batches, passes=chosen.epochs)
    else:
        seconds = train(model, optimizer, step, folder, epochs=chosen.epochs)
    write_figures(
        folder,
        Figures(
            seconds=seconds,
            num_parameters=sum(weight.numel() for weight in model.parameters()),
            num_embedding=0,
            versions={"torchani": version("torchani"), "torch": torch.__version__},
        ),
    )


if __name__ == "__main__":
    main()
