"""Errors, accumulated as sums and counts in float64 on the device: one function for log, csv, results.json and plots.

Legend: S structures, N atoms of a batch. Nothing here waits for the device until `errors`, and no number depends on how
structures are batched or spread over processes.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from ase.data import chemical_symbols
from torch import Tensor
from torchmetrics import Metric

from modelforge.atoms.graph import AtomicGraph, Batch, Prediction
from modelforge.atoms.self_energies import NUM_ATOMIC_NUMBERS
from modelforge.training.loss import atoms_per_structure, without_trace

MILLI = 1e3
Errors = dict[str, float | int | None]

# Columns of the sums. Of an error x that is labelled n times: n, sum |x|, sum x^2.
STRUCTURE_SUMS = ("energy", "energy_per_atom", "forces", "stress", "dipole", "quadrupole", "partial_charges")
COLUMNS = 1 + 3 * len(STRUCTURE_SUMS)  # the number of structures comes first


class ErrorSums(Metric):
    """Sums of errors of a set of structures, by subset and by element."""

    full_state_update = False
    by_subset: Tensor  # (subsets, COLUMNS)
    by_element: Tensor  # (119, 3) forces of the atoms of each element

    def __init__(self, num_subsets: int = 1, *, has_charges: bool = False, over_processes: bool = True) -> None:
        """`has_charges`: whether charges and their moments are predicted, whose errors cost as much as all others."""
        super().__init__(sync_on_compute=over_processes)
        self.has_charges = has_charges
        sums = torch.zeros(num_subsets, COLUMNS, dtype=torch.float64)
        self.add_state("by_subset", sums, dist_reduce_fx="sum")
        self.add_state("by_element", torch.zeros(NUM_ATOMIC_NUMBERS, 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, prediction: Prediction, batch: Batch) -> None:
        """Add the errors of a batch."""
        labels, graph = batch.labels, batch.graph
        energy = prediction.energy.double() - labels.energy.double()
        forces = _sums(prediction.forces.double() - labels.forces.double())  # (N, 3)
        stress = _sums((prediction.stress.double() - labels.stress.double()).flatten(1))
        per_atom = energy / atoms_per_structure(graph)
        count = (batch.indices >= 0).to(energy.dtype)[:, None]  # a stand-in of a process without a structure is none
        rows = [count, _sums(energy[:, None]), _sums(per_atom[:, None]), _over_atoms(forces, graph), stress]
        rows += _charge_sums(prediction, batch) if self.has_charges else []
        together = torch.cat(rows, dim=1)  # (S, COLUMNS), or the first of them
        subset = batch.subset.clamp(max=len(self.by_subset) - 1)
        self.by_subset[:, : together.shape[1]].index_add_(0, subset, together)
        self.by_element.index_add_(0, graph.atomic_numbers, forces)

    def compute(self) -> tuple[Tensor, Tensor]:
        """The sums by subset and by element, over all processes."""
        return self.by_subset, self.by_element


def without_energies(prediction: Prediction) -> Prediction:
    """The prediction of a potential whose energies nothing has trained: not computed, so that nobody takes them for some."""
    return replace(prediction, energy=torch.full_like(prediction.energy, torch.nan))


def errors(sums: ErrorSums) -> Errors:
    """Errors of the whole set; what was not measured is None."""
    return _errors_of(sums.compute()[0].sum(0).tolist())


def errors_by_subset(sums: ErrorSums, names: Sequence[str]) -> dict[str, Errors]:
    """Errors of each subset that occurs."""
    rows = sums.compute()[0].tolist()
    return {name: _errors_of(row) for name, row in zip(names, rows, strict=True) if row[0]}


def errors_by_element(sums: ErrorSums) -> dict[str, Errors]:
    """Force errors of the atoms of each element that occurs."""
    rows = sums.compute()[1].tolist()
    return {chemical_symbols[z]: _force_errors(row) for z, row in enumerate(rows) if row[0]}


def _sums(differences: Tensor) -> Tensor:
    """Number of labels, sum of magnitudes and of squares along the second axis, (M, K) -> (M, 3); NaN is no label."""
    known = torch.isfinite(differences)
    values = torch.where(known, differences, torch.zeros_like(differences))
    return torch.stack([known.double().sum(1), values.abs().sum(1), values.square().sum(1)], dim=1)


def _over_atoms(of_atoms: Tensor, graph: AtomicGraph) -> Tensor:
    """Sums of the atoms of each structure, (N, 3) -> (S, 3)."""
    return of_atoms.new_zeros(graph.num_structures, 3).index_add(0, graph.structure_index, of_atoms)


def _charge_sums(prediction: Prediction, batch: Batch) -> list[Tensor]:
    """Sums of dipole, quadrupole and partial charges, each (S, 3)."""
    labels = batch.labels
    dipole = prediction.dipole.double() - labels.dipole.double()
    quadrupole = without_trace(prediction.quadrupole.double() - labels.quadrupole.double())
    charges = prediction.partial_charges.double() - labels.partial_charges.double()
    return [_sums(dipole), _sums(quadrupole.flatten(1)), _over_atoms(_sums(charges[:, None]), batch.graph)]


def _errors_of(row: Sequence[float]) -> Errors:
    energy, per_atom, forces, stress, dipole, quadrupole, charges = (
        row[1 + 3 * k : 4 + 3 * k] for k in range(len(STRUCTURE_SUMS))
    )
    found: Errors = {
        "energy_mae_mev_per_atom": _mae(per_atom),
        "energy_rmse_mev_per_atom": _rmse(per_atom),
        "energy_mae_mev": _mae(energy),
        "energy_rmse_mev": _rmse(energy),
    }
    found |= _force_errors(forces)
    found |= {
        "stress_mae_mev_per_angstrom3": _mae(stress),
        "stress_rmse_mev_per_angstrom3": _rmse(stress),
        "dipole_mae_me_angstrom": _mae(dipole),
        "dipole_rmse_me_angstrom": _rmse(dipole),
        "quadrupole_mae_me_angstrom2": _mae(quadrupole),  # without trace, as in the loss
        "quadrupole_rmse_me_angstrom2": _rmse(quadrupole),
        "partial_charges_mae_me": _mae(charges),
        "partial_charges_rmse_me": _rmse(charges),
    }
    return found | {
        "num_structures": round(row[0]),
        "num_energy_labels": round(energy[0]),
        "num_stress_components": round(stress[0]),
        "num_dipole_components": round(dipole[0]),
        "num_quadrupole_components": round(quadrupole[0]),
        "num_partial_charges": round(charges[0]),
    }


def _force_errors(row: Sequence[float]) -> Errors:
    return {
        "forces_mae_mev_per_angstrom": _mae(row),
        "forces_rmse_mev_per_angstrom": _rmse(row),
        "num_force_components": round(row[0]),
    }


def _mae(row: Sequence[float]) -> float | None:
    return MILLI * row[1] / row[0] if row[0] else None


def _rmse(row: Sequence[float]) -> float | None:
    return MILLI * math.sqrt(row[2] / row[0]) if row[0] else None
