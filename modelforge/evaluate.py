"""Predictions of a potential for structures, and their errors: the same for test sets, `modelforge evaluate` and scripts.

S structures, N atoms.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from modelforge.atoms.graph import Batch, Prediction, tensors_of
from modelforge.atoms.self_energies import element_counts, is_determined
from modelforge.data.audit.findings import Finding
from modelforge.data.audited import audit_opened
from modelforge.data.batching.batches import structure_table
from modelforge.data.batching.order import EvaluationBatches
from modelforge.data.detection import files_like, load_data
from modelforge.data.inputs import unsaid_notes
from modelforge.data.reduced_labels import less_fixed
from modelforge.data.sources.extxyz.writer import write_extxyz
from modelforge.data.sources.mixed import Mixed
from modelforge.data.sources.read_report import Reading
from modelforge.data.sources.source import DataSource, SourceFiles
from modelforge.data.sources.stored import Stored
from modelforge.data.store.opening import cache_folder, open_files
from modelforge.data.store.prepared_once import silent
from modelforge.data.structures import Floats, Structures, sum_of_constants
from modelforge.errors import UserError
from modelforge.experiment import inputs_of
from modelforge.files import write_text
from modelforge.model_file import FILE_NAME, TrainedPotential, load_potential
from modelforge.training.metrics import Errors, ErrorSums, errors, errors_by_element, errors_by_subset, without_energies
from modelforge.training.net_forces import net_forces
from modelforge.training.precision import HALF, matmul_precision

ATOMS_AT_A_TIME = 50_000
MEASURED = ("energy", "forces", "stress")
MEASURED_OF_CHARGES = ("dipole", "quadrupole", "partial_charges")

Metrics = dict[str, float | int | dict[str, Errors] | None]
Predicted = dict[str, Floats]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions with self-energies and fixed energies, in float64, and the errors where there are labels.

    There is a stress where a structure has a volume, charges and their moments where the potential has charges.
    """

    predicted: Predicted  # by the name of the label, with its shape
    metrics: Metrics
    notes: tuple[str, ...]
    sums: ErrorSums  # that the metrics come from; they add up over parts of a set

    @property
    def energy(self) -> Floats:
        """Energies (S,), eV; NaN if they have not been trained."""
        return self.predicted["energy"]

    @property
    def forces(self) -> Floats:
        """Forces (N, 3), eV/angstrom; NaN if they have not been trained."""
        return self.predicted["forces"]

    @property
    def stress(self) -> Floats | None:
        """Stress (S, 3, 3), eV/angstrom^3; NaN where a structure has no volume."""
        return self.predicted.get("stress")


def evaluate(
    trained: TrainedPotential,
    structures: Structures,
    *,
    batch_size: int = 64,
    max_edges: int | None = None,
    max_atoms: int | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Predict all that the potential has, stress in periodic structures; errors against the labels that there are.

    Beside direct forces the stress, which is a derivative of the energy, is computed only to be compared with labels.

    Batches have `batch_size` structures, or stay within the budgets of edges and atoms if there is one. The errors are those
    of the potential as it is used: in the numbers of its weights, with its precision of matrix products, without autocast.
    """
    _refuse_unknown_elements(trained, structures)
    constants, terms = trained.constants(), trained.potential.fixed_terms
    fixed = terms.of(structures)
    reduced = structures if terms.is_empty else less_fixed(structures, fixed)  # errors are the same, and lose no digits
    model = trained.model.to(device).eval()
    sums = ErrorSums(len(structures.subset_names), has_charges=model.has_charges, over_processes=False).to(device)
    with_stress = _is_stress_wanted(trained, structures)
    predictions: list[Prediction] = []
    for batch in _batches(trained, reduced, batch_size=batch_size, max_edges=max_edges, max_atoms=max_atoms):
        moved = batch.to(torch.device(device))
        with matmul_precision(trained.matmul_precision):
            prediction = model(moved.graph, forces=trained.has_forces, stress=with_stress)
        prediction = prediction if trained.has_energies else without_energies(prediction)
        sums.update(prediction, moved)
        predictions.append(Prediction(*(tensor.cpu() for tensor in tensors_of(prediction))))
    names = ("energy", "forces", *(("stress",) if with_stress else ()), *(MEASURED_OF_CHARGES if model.has_charges else ()))
    predicted = {name: torch.cat([getattr(p, name) for p in predictions]).double().numpy() for name in names}
    predicted["energy"] += sum_of_constants(structures, constants) + fixed.energy
    predicted["forces"] += fixed.forces
    if with_stress:
        predicted["stress"] += fixed.stress
    return evaluation_of(trained, structures, predicted, sums)


def evaluation_of(trained: TrainedPotential, structures: Structures, predicted: Predicted, sums: ErrorSums) -> Evaluation:
    """Predictions and sums of errors with what is to be told of them."""
    metrics = metrics_of(sums, structures.subset_names)
    if not trained.model.is_conservative:
        metrics |= net_forces(structures, predicted["forces"])
    return Evaluation(predicted, metrics, notes_of(trained, structures), sums)


def _is_stress_wanted(trained: TrainedPotential, structures: Structures) -> bool:
    has_volume = structures.periodic.all(axis=1)
    wanted = has_volume if trained.model.is_conservative else has_volume & structures.has_stress
    return bool(wanted.any()) and trained.has_energies


def _batches(
    trained: TrainedPotential, structures: Structures, *, batch_size: int, max_edges: int | None, max_atoms: int | None
) -> Iterator[Batch]:
    """All structures in order; edges are found for a piece at a time, so that memory stays bounded."""
    for piece in structures.pieces(ATOMS_AT_A_TIME):
        table = structure_table(piece, reach=trained.model.reach, self_energies=trained.constants(), dtype=trained.dtype)
        yield from EvaluationBatches(table, batch_size, max_edges=max_edges, max_atoms=max_atoms)


def evaluate_files(
    model: Path, data: Sequence[str], *, settings: Sequence[str] = (), out: Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Evaluate a run folder's or file's potential on files; writes results.json and predictions.extxyz, gives the results.

    The files are read with the keys and units of the training data, or with `settings` of `[dataset]` if there are any.
    Without `out` they go to `evaluation/<name of the first file>` beside the potential; of a file with another name than in a
    run folder to `evaluation/<its name>/...`. Only these two files are replaced.
    """
    trained = load_potential(model, device=_device(device))
    files = (
        load_data(data, settings).section.dataset.training_files("--data")[0]
        if settings
        else files_like(trained.dataset, data, key="--data")
    )
    paths, cache = files.paths, cache_folder(trained.dataset.cache_folder)
    opened = open_files([files], cache=cache, say=silent)
    reading, findings = opened.reading, audit_opened(opened, np.arange(len(opened.structures)), cache=cache).findings
    evaluation = evaluate(trained, reading.structures, device=device)
    folder = out or _evaluation_folder(model) / paths[0].stem
    results = {
        "metrics": {paths[0].stem: evaluation.metrics},
        "weights": trained.weights,
        "forces": trained.potential.forces,
        "model": str(model),
        "files": [str(path) for path in paths],
        "notes": [
            *evaluation.notes,
            *_absent_labels(trained, reading),
            *([] if settings else _how_read(trained.dataset, files)),
            *_in_words(findings),
        ],
        "folder": str(folder),
    }
    _make(folder)
    write_predictions(folder / "predictions.extxyz", reading.structures, evaluation)
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def _evaluation_folder(model: Path) -> Path:
    """Where evaluations of a potential go: potentials in one folder have one each."""
    if model.is_dir():
        return model / "evaluation"
    return model.parent / "evaluation" / ("" if model.name == FILE_NAME else model.stem)


def _in_words(findings: Sequence[Finding]) -> list[str]:
    """What the audit says; errors against labels in other units mean nothing."""
    return [
        f"{finding.key}: {finding.message}" + ("; the errors mean nothing before" if finding.severity == "stop" else "")
        for finding in findings
    ]


def _how_read(dataset: DataSource, files: SourceFiles) -> list[str]:
    """Whose keys and units the files were read with, where that is not obvious."""
    if isinstance(files.reader, Stored):
        return []
    if isinstance(dataset, Mixed):
        return [f"the files were read with the keys and units of dataset.sources.{next(iter(dataset.sources))}"]
    if files.reader.name != dataset.files([]).reader.name:
        return [f"the files were read with the usual keys and units of their format, {files.reader.name}"]
    return []


def metrics_of(sums: ErrorSums, subset_names: tuple[str, ...]) -> Metrics:
    """All errors of a set: of the whole, by element and, where there are several, by subset."""
    metrics: Metrics = {**errors(sums), "by_element": errors_by_element(sums)}
    by_subset = errors_by_subset(sums, subset_names)
    return {**metrics, "by_subset": by_subset} if set(by_subset) - {""} else metrics


def write_predictions(path: Path, structures: Structures, evaluation: Evaluation) -> None:
    """Structures with reference labels and predictions, as extended XYZ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_extxyz(path, structures, **{f"predicted_{name}": values for name, values in evaluation.predicted.items()})


def _device(name: str) -> torch.device:
    """A device that is there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: must be a device such as cpu, cuda or cuda:1 (got {name!r})") from None
    if device.type == "mps":
        raise UserError("--device: must be a device that has float64, in which errors are added up, such as cpu (got 'mps')")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device: must be a device of this machine (got {name!r}: {reason})") from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: must be a folder to write to (got {folder}: {error.strerror}); choose another") from error


def _absent_labels(trained: TrainedPotential, reading: Reading) -> list[str]:
    """Why there are no errors of a quantity."""
    report, measured = reading.report, MEASURED + (MEASURED_OF_CHARGES if trained.model.has_charges else ())
    return [
        f"no errors of {origin.label}: {report.absence(origin)}"
        for origin in report.origins
        if origin.label in measured and not origin.num_carriers
    ]


def _refuse_unknown_elements(trained: TrainedPotential, structures: Structures) -> None:
    if unknown := sorted(set(structures.elements) - set(trained.elements)):
        first = int(np.flatnonzero(np.isin(structures.atomic_numbers, unknown))[0])
        structure = int(np.searchsorted(structures.offsets, first, side="right")) - 1
        raise UserError(
            f"{structures.place(structure)}: has {', '.join(chemical_symbols[z] for z in unknown)}, which the potential was "
            f"not trained on (it knows {', '.join(chemical_symbols[z] for z in trained.elements)})"
        )


def notes_of(trained: TrainedPotential, structures: Structures) -> tuple[str, ...]:
    """What the reader of the errors should know."""
    return (
        *_arithmetic(trained),
        *_untrained(trained),
        *unsaid_notes(structures, inputs_of(trained.potential)),
        *_open_self_energies(trained, structures),
    )


def _untrained(trained: TrainedPotential) -> Iterator[str]:
    """What forces that are no derivatives mean for the rest, and what nothing has trained."""
    if not trained.model.is_conservative:
        yield (
            "forces are predicted directly: they are not minus the gradient of the energy, and conserve none; a stress is that "
            "of the energy, and does not belong to the forces"
        )
    if not trained.has_forces:
        yield "no energies and forces: their weights in training.loss were 0, so that nothing has trained them"
    elif not trained.has_energies:
        yield "no energies: training.loss.energy_weight was 0 and forces are direct, so that nothing has trained them"


def _arithmetic(trained: TrainedPotential) -> Iterator[str]:
    """What differs from plain float32 or float64."""
    if trained.training_precision in HALF:
        dtype = str(trained.dtype).removeprefix("torch.")
        yield f"trained with precision {trained.training_precision}; predicted, and so tested, in {dtype} throughout"
    if trained.matmul_precision != "highest":
        yield f'products of float32 matrices are rounded as in the training (matmul_precision "{trained.matmul_precision}")'


def _open_self_energies(trained: TrainedPotential, structures: Structures) -> tuple[str, ...]:
    """Structures whose total energy is not determined."""
    if not len(trained.self_energies.undetermined):
        return ()
    num_open = 0
    for piece in structures.pieces():
        counts = element_counts(piece.num_atoms, piece.atomic_numbers, trained.elements)
        num_open += int((~is_determined(trained.self_energies, counts)).sum())
    if not num_open:
        return ()
    return (
        f"{num_open} of {len(structures)} structures have compositions whose self-energy the training set left open: "
        "their total energies mean nothing (forces are right); see dataset.self_energies",
    )
