"""Summaries for people: what would be trained, on what, and the errors at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from rich.table import Table

from modelforge.data.batching.packing import PackedOrder
from modelforge.data.batching.run_batches import RunBatches
from modelforge.data.filter import counts_by_reason
from modelforge.data.prepare import PreparedData
from modelforge.data.structures import LABELS
from modelforge.experiment import Experiment
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.potential import NormalizedSums
from modelforge.training.freezing import num_trained

MOST_PLACES = 5  # structures that are named
MOST_REMOVALS = 10  # files with removed structures that are named

COLUMNS = (
    ("n", "num_structures", "{:d}"),
    ("E MAE\nmeV/atom", "energy_mae_mev_per_atom", "{:.3f}"),
    ("E RMSE\nmeV/atom", "energy_rmse_mev_per_atom", "{:.3f}"),
    ("E RMSE\nmeV", "energy_rmse_mev", "{:.2f}"),
    ("F MAE\nmeV/A", "forces_mae_mev_per_angstrom", "{:.2f}"),
    ("F RMSE\nmeV/A", "forces_rmse_mev_per_angstrom", "{:.2f}"),
    ("S RMSE\nmeV/A^3", "stress_rmse_mev_per_angstrom3", "{:.3f}"),
)
MORE_COLUMNS = (
    ("dipole RMSE\nme A", "dipole_rmse_me_angstrom", "{:.2f}"),
    ("quadrupole RMSE\nme A^2", "quadrupole_rmse_me_angstrom2", "{:.2f}"),
    ("charge RMSE\nme", "partial_charges_rmse_me", "{:.2f}"),
    ("net force\nmeV/A", "net_force_rms_mev_per_angstrom", "{:.2f}"),
    ("per atom\nmeV/A", "net_force_per_atom_rms_mev_per_angstrom", "{:.2f}"),
    ("torque\nmeV", "net_torque_rms_mev", "{:.2f}"),
)


def data_summary(data: PreparedData) -> list[str]:
    """Structures, elements, labels with coverage and origin, sets, self-energies, notes."""
    structures = data.structures
    lines = [
        f"data: {len(structures)} structures, {_range(structures.num_atoms)} atoms, "
        f"elements {' '.join(chemical_symbols[z] for z in data.elements)}"
        + (f", {int(structures.periodic.any(axis=1).sum())} periodic" if structures.periodic.any() else ""),
        *(f"  {line}" for line in _coverage(data)),
        *_removals(data),
        "sets: " + ", ".join(_set_in_words(name, counts) for name, counts in label_counts(data).items()),
        "audit:",
        *(f"  {line}" for line in data.audit.data.lines()),
        "self-energies (eV): "
        + ", ".join(f"{chemical_symbols[z]} {data.reference.self_energies.by_element[z]:.6f}" for z in data.elements),
        *_fixed_energies(data),
    ]
    return lines + [f"note: {note}" for note in data.notes]


def _fixed_energies(data: PreparedData) -> list[str]:
    """What the fixed energies of the potential take off the training set."""
    if data.reduced.terms.is_empty:
        return []
    taken = data.reduced.fixed_energy[data.split.train]
    return [
        f"fixed energies: {data.reduced.terms}, mean {taken.mean():.4g} eV per structure of the training set "
        f"({taken.min():.4g} to {taken.max():.4g}); taken off the labels, added to predictions"
    ]


def model_summary(experiment: Experiment, model: EnergyModel) -> list[str]:
    """The network and its size."""
    num_parameters = sum(weight.numel() for weight in model.parameters())
    trained = num_trained(model)
    of_which = "" if trained == num_parameters else f", {trained:,} of them trained"
    return [
        f"potential: {experiment.potential.name}, {num_parameters:,} parameters{of_which}, "
        f"cutoff {experiment.potential.cutoff:g} A, output scale {float(model.scale):.4g} eV"
        + _neighbors(model)
        + ("" if model.is_conservative else ", forces predicted directly (not conservative)")
        + (", adds a penalty of its own to the loss of training" if model.has_penalty else ""),
    ]


def _neighbors(model: EnergyModel) -> str:
    section = model.potential.section
    return f", {section.avg_num_neighbors:.6g} neighbours on average" if isinstance(section, NormalizedSums) else ""


def batch_summary(experiment: Experiment, batches: RunBatches) -> str:
    """The length of the run, and how structures are batched."""
    training, order = experiment.training, batches.order
    if experiment.potential.is_closed_form:
        return f"training: none; the weights are solved for with {order.num_structures} structures"
    length = f"training: {training.max_epochs} epochs of {order.steps_per_epoch} steps"
    if not isinstance(order, PackedOrder):
        return f"{length}, batch size {training.batch_size}"
    budgets = {"edges": training.max_edges, "atoms": training.max_atoms}
    limits = " and ".join(f"{budget:,} {name}" for name, budget in budgets.items() if budget)
    alone = batches.oversized()
    named = ", ".join(alone[:MOST_PLACES]) + (" and others" if len(alone) > MOST_PLACES else "")
    over = f"; {len(alone)} structures are over it and are batches of their own: {named}" if alone else ""
    return f"{length}, batches of at most {limits}, {100 * order.efficiency():.0f} % of it used{over}"


def error_table(results: Mapping[str, Any]) -> Table:
    """Errors of each set; `-` stands for what was not measured. What few potentials have comes in a table beneath."""
    title = f"errors ({results['weights']})" if results.get("weights") else "errors"
    first, second = _table(results, COLUMNS, title), _table(results, MORE_COLUMNS, "")
    if len(second.columns) == 1:
        return first
    both = Table.grid()
    both.add_row(first)
    both.add_row(second)
    return both


def _table(results: Mapping[str, Any], all_columns: Sequence[tuple[str, str, str]], title: str) -> Table:
    metrics = results["metrics"]
    columns = [column for column in all_columns if any(errors.get(column[1]) is not None for errors in metrics.values())]
    table = Table(title=title)
    table.add_column("set")
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    for name, errors in metrics.items():
        cells = [form.format(errors[key]) if errors.get(key) is not None else "-" for _, key, form in columns]
        table.add_row(name, *cells)
    return table


def direct_forces_in_words(results: Mapping[str, Any]) -> list[str]:
    """That forces are not conservative, where they are not; the table shows what they leave on whole structures."""
    if results.get("forces") != "direct":
        return []
    return [
        "forces are direct: not minus the gradient of an energy, so dynamics with them conserve none; net forces and torques "
        "(RMS over structures) would be 0 otherwise"
    ]


def data_report(data: PreparedData) -> dict[str, Any]:
    """What was read, used, left out and audited, for results.json."""
    return {
        "content_hash": data.opened.content_hash,
        "structures_read": _num_read(data),
        "removed": counts_by_reason(data.removals),
        "unused": _num_unused(data),
        "labels": label_counts(data),
        "audit": data.audit.to_json(),
    }


def label_counts(data: PreparedData) -> dict[str, dict[str, int]]:
    """For each set the number of structures, and of those that carry each label which any structure was read with."""
    sets = {"train": (data.structures, data.split.train), **data.evaluated_sets()}
    asked = [label for label in LABELS if data.report.origins_of(label)]
    return {
        name: {"structures": len(members)} | {label: int(structures.has(label)[members].sum()) for label in asked}
        for name, (structures, members) in sets.items()
    }


def _set_in_words(name: str, counts: dict[str, int]) -> str:
    """Name and size of a set, and the labels that some of its structures lack."""
    size = counts["structures"]
    missing = [f"{label} of {count}" for label, count in counts.items() if count < size]
    return f"{name} {size}" + (f" ({', '.join(missing)})" if missing else "")


def _num_read(data: PreparedData) -> int:
    return len(data.structures) + sum(removal.count for removal in data.report.removals)


def _num_unused(data: PreparedData) -> int:
    """Structures that passed all filters and are in no set."""
    in_sets = sum(len(chosen) for chosen in data.split.sets().values())
    return _num_read(data) - in_sets - sum(removal.count for removal in data.removals)


def _removals(data: PreparedData) -> list[str]:
    """Structures read = structures used + removals."""
    counts, unused = counts_by_reason(data.removals), _num_unused(data)
    if unused:
        counts |= {"in none of the sets": unused}
    if not counts:
        return []
    used = sum(len(chosen) for chosen in data.split.sets().values())
    of_files = [f"  {removal.count} of {removal.file}: {removal.reason}" for removal in data.removals[:MOST_REMOVALS]]
    left_out = ", ".join(f"{count} left out ({reason})" for reason, count in counts.items())
    more = len(data.removals) - MOST_REMOVALS
    return [f"read {_num_read(data)} = {used} used, {left_out}", *of_files, *([f"  and {more} more"] if more > 0 else [])]


def _coverage(data: PreparedData) -> list[str]:
    """For each label: how many structures have it, and where it comes from."""
    num, lines = len(data.structures), []
    for origin in data.report.origins:
        if origin.label:
            found, home = origin.num_carriers - origin.num_incomplete, data.report.home(origin)
            source = origin.option.removeprefix("sources.").rpartition(".")[0]
            of = f" ({source})" if source else ""
            lines.append(
                f"{origin.label}: {found} of {num} structures{of}, from {origin.key!r} in the {home}, unit {origin.unit}"
            )
    return lines


def _range(num_atoms: np.ndarray[tuple[int], np.dtype[np.int64]]) -> str:
    low, high = int(num_atoms.min()), int(num_atoms.max())
    return str(low) if low == high else f"{low} to {high}"
