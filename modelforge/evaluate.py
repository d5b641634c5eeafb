"""Predictions of a potential for structures, and their errors: the same for test sets, `modelforge evaluate` and scripts.

S structures, N atoms.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols

from modelforge.atoms.graph import Batch, Prediction
from modelforge.atoms.self_energies import element_counts, is_determined
from modelforge.data.batches import structure_table, sum_of_constants
from modelforge.data.module import EvaluationBatches
from modelforge.data.sources.extxyz_writer import write_extxyz
from modelforge.data.structures import Floats, Structures
from modelforge.errors import UserError
from modelforge.model_file import TrainedPotential
from modelforge.training.metrics import Errors, ErrorSums, errors, errors_by_element, errors_by_subset

Metrics = dict[str, float | int | None | dict[str, Errors]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions with self-energies, in float64, and the errors where there are labels."""

    energy: Floats  # (S,) eV
    forces: Floats  # (N, 3) eV/angstrom
    stress: Floats | None  # (S, 3, 3) eV/angstrom^3, where a structure has a volume
    metrics: Metrics
    notes: tuple[str, ...]


def evaluate(
    trained: TrainedPotential, structures: Structures, *, batch_size: int = 64, device: torch.device | str = "cpu"
) -> Evaluation:
    """Predict energies, forces and, in periodic structures, stress; errors against the labels that there are."""
    _refuse_unknown_elements(trained, structures)
    constants = trained.constants()
    table = structure_table(structures, cutoff=trained.cutoff, self_energies=constants, dtype=trained.dtype)
    model = trained.model.to(device).eval()
    sums = ErrorSums(len(structures.subset_names)).to(device)
    with_stress = bool(structures.periodic.all(axis=1).any())
    predictions: list[Prediction] = []
    for batch in EvaluationBatches(table, batch_size):
        moved: Batch = batch.to(torch.device(device))
        prediction = model(moved.graph, stress=with_stress)
        sums.update(prediction, moved)
        predictions.append(prediction)
    interaction, forces, stress = (
        torch.cat([getattr(p, name) for p in predictions]).double().cpu().numpy() for name in ("energy", "forces", "stress")
    )
    return Evaluation(
        interaction + sum_of_constants(structures, constants),
        forces,
        stress if with_stress else None,
        metrics_of(sums, structures.subset_names),
        _notes(trained, structures),
    )


def metrics_of(sums: ErrorSums, subset_names: tuple[str, ...]) -> Metrics:
    """All errors of a set: of the whole, by element and, where there are several, by subset."""
    metrics: Metrics = {**errors(sums), "by_element": errors_by_element(sums)}
    by_subset = errors_by_subset(sums, subset_names)
    return {**metrics, "by_subset": by_subset} if set(by_subset) - {""} else metrics


def write_predictions(path: Path, structures: Structures, evaluation: Evaluation) -> None:
    """Structures with reference labels and predictions, as extended XYZ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_extxyz(
        path,
        structures,
        predicted_energy=evaluation.energy,
        predicted_forces=evaluation.forces,
        predicted_stress=evaluation.stress,
    )


def _refuse_unknown_elements(trained: TrainedPotential, structures: Structures) -> None:
    if unknown := sorted(set(structures.elements) - set(trained.elements)):
        first = int(np.flatnonzero(np.isin(structures.atomic_numbers, unknown))[0])
        structure = int(np.searchsorted(structures.offsets, first, side="right")) - 1
        raise UserError(
            f"{structures.place(structure)}: has {', '.join(chemical_symbols[z] for z in unknown)}, which the potential was "
            f"not trained on (it knows {', '.join(chemical_symbols[z] for z in trained.elements)})"
        )


def _notes(trained: TrainedPotential, structures: Structures) -> tuple[str, ...]:
    counts = element_counts(structures.num_atoms, structures.atomic_numbers, trained.elements)
    num_open = int((~is_determined(trained.self_energies, counts)).sum())
    if not num_open:
        return ()
    return (
        f"{num_open} of {len(structures)} structures have compositions whose self-energy the training set left open: "
        "their total energies mean nothing (forces are right); see dataset.self_energies",
    )
