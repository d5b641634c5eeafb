"""Summaries for people: what would be trained, on what, and the errors at the end."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from rich.table import Table

from modelforge.data.prepare import PreparedData
from modelforge.experiment import Experiment
from modelforge.potentials.energy_model import EnergyModel

COLUMNS = (
    ("n", "num_structures", "{:d}"),
    ("E MAE\nmeV/atom", "energy_mae_mev_per_atom", "{:.3f}"),
    ("E RMSE\nmeV/atom", "energy_rmse_mev_per_atom", "{:.3f}"),
    ("E RMSE\nmeV", "energy_rmse_mev", "{:.2f}"),
    ("F MAE\nmeV/A", "forces_mae_mev_per_angstrom", "{:.2f}"),
    ("F RMSE\nmeV/A", "forces_rmse_mev_per_angstrom", "{:.2f}"),
    ("S RMSE\nmeV/A^3", "stress_rmse_mev_per_angstrom3", "{:.3f}"),
)


def data_summary(data: PreparedData) -> list[str]:
    """Structures, elements, labels with coverage and origin, sets, self-energies, notes."""
    structures = data.structures
    sizes = {name: len(chosen) for name, chosen in data.split.sets().items()} | {
        name: len(test) for name, test in data.tests.items()
    }
    unused = len(structures) - sum(len(chosen) for chosen in data.split.sets().values())
    lines = [
        f"data: {len(structures)} structures, {_range(structures.num_atoms)} atoms, "
        f"elements {' '.join(chemical_symbols[z] for z in data.elements)}"
        + (f", {int(structures.periodic.any(axis=1).sum())} periodic" if structures.periodic.any() else ""),
        *(f"  {line}" for line in _coverage(data)),
        "sets: "
        + ", ".join(f"{name} {size}" for name, size in sizes.items() if size)
        + (f" ({unused} structures unused)" if unused else ""),
        "self-energies (eV): "
        + ", ".join(f"{chemical_symbols[z]} {value:.6f}" for z, value in data.reference.self_energies.by_element.items()),
    ]
    return lines + [f"note: {note}" for note in data.notes]


def model_summary(experiment: Experiment, model: EnergyModel, steps_per_epoch: int) -> list[str]:
    """The network, its size, and the length of the run."""
    num_parameters = sum(weight.numel() for weight in model.parameters())
    return [
        f"potential: {experiment.potential.name}, {num_parameters:,} parameters, cutoff {experiment.potential.cutoff:g} A, "
        f"output scale {float(model.scale):.4g} eV",
        f"training: {experiment.training.max_epochs} epochs of {steps_per_epoch} steps, "
        f"batch size {experiment.training.batch_size}",
    ]


def error_table(results: Mapping[str, Any]) -> Table:
    """Errors of each set; `-` stands for what was not measured."""
    metrics = results["metrics"]
    columns = [column for column in COLUMNS if any(errors[column[1]] is not None for errors in metrics.values())]
    table = Table(title=f"errors ({results['weights']})" if results.get("weights") else "errors")
    table.add_column("set")
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    for name, errors in metrics.items():
        cells = [form.format(errors[key]) if errors[key] is not None else "-" for _, key, form in columns]
        table.add_row(name, *cells)
    return table


def _coverage(data: PreparedData) -> list[str]:
    num = len(data.structures)
    lines = []
    for origin in data.report.origins:
        if origin.unit:
            name = origin.option.removesuffix("_key")
            found = origin.num_carriers - origin.num_incomplete
            lines.append(f"{name}: {found} of {num} structures, from {origin.key!r} in the {origin.home}, unit {origin.unit}")
    return lines


def _range(num_atoms: np.ndarray[tuple[int], np.dtype[np.int64]]) -> str:
    low, high = int(num_atoms.min()), int(num_atoms.max())
    return str(low) if low == high else f"{low} to {high}"
