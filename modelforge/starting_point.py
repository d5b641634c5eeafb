"""`[training] start_from`: a saved potential that a run goes on from: its weights, its scale, and all the elements it knows.

The run folder keeps a copy, so a run that goes on does not need the file any more. Self-energies are corrected by what the
potential leaves of the new energies: data of another method, or of other molecules, then start with the best that its
network can do, and elements and compositions that the new data say nothing of keep what they had.

Legend: S structures, Z elements, R combinations of elements.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from modelforge.atoms.self_energies import SelfEnergies
from modelforge.configuration.writing import toml_value
from modelforge.data.prepare import PreparedData
from modelforge.data.reference import Reference, compositions_of
from modelforge.data.structures import Floats, Integers, Structures, sum_of_constants
from modelforge.errors import UserError
from modelforge.evaluate import evaluate
from modelforge.experiment import Experiment
from modelforge.files import replacing
from modelforge.model_file import TrainedPotential, file_of, load_potential
from modelforge.run_folder import RunFolder

KEY = "training.start_from"
MOST_STRUCTURES = 2000  # whose energies correct the self-energies
SAME_DIRECTION = 1 - 1e-9  # cosine above which two combinations of elements are one
Sections = dict[str, Any]  # dotted key -> value


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """A saved potential, and where it was found."""

    trained: TrainedPotential
    path: Path

    def keep_copy(self, folder: RunFolder) -> None:
        """Let the run folder have the file, if it has none yet."""
        if not folder.start.exists():
            with replacing(folder.start) as temporary:
                temporary.write_bytes(self.path.read_bytes())


def starting_point(experiment: Experiment, folder: RunFolder) -> StartingPoint | None:
    """What a run starts from, if it is to start from something: the copy in its folder, or the file that the TOML names."""
    place = experiment.training.start_from
    if place is None:
        return None
    try:
        path = folder.start if folder.start.exists() else file_of(Path(place))
        trained = load_potential(path)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from error
    _refuse_other_potential(experiment, trained)
    return StartingPoint(trained, path)


def prepared_for(start: StartingPoint, experiment: Experiment, data: PreparedData) -> PreparedData:
    """Data whose reference goes with the potential: all its elements, and self-energies corrected by what it leaves."""
    trained = start.trained
    if unknown := sorted(set(data.elements) - set(trained.elements)):
        raise UserError(
            f"{KEY}: the potential must know all elements of the data (it knows {_symbols(trained.elements)}; the data also "
            f"have {_symbols(unknown)}); leave these structures out (dataset.filter), or start from another potential"
        )
    chosen = _sample(data)
    if experiment.dataset.self_energies.source == "none" or not len(chosen) or not trained.has_energies:
        reference = _completed(data.reference, trained)
    else:
        few = data.structures.take(chosen)
        left = few.energy - evaluate(_in_double_precision(trained), few).energy
        is_fitted = experiment.dataset.self_energies.source == "regression"
        reference = _corrected(trained, few, left, data) if is_fitted else _shifted(trained, few, left, data)
    notes = tuple(note for note in data.notes if note not in data.reference.notes)
    return replace(data, reference=reference, scale=float(trained.model.scale), notes=(*notes, *reference.notes))


def start_summary(start: StartingPoint, data: PreparedData, dtype: torch.dtype) -> Iterator[str]:
    """What is taken over, in words."""
    trained = start.trained
    rounded = "" if dtype == trained.dtype else f", from {_name(trained.dtype)} to {_name(dtype)}"
    yield f"start: weights and scale of {start.path} ({trained.weights}{rounded})"
    if others := [z for z in trained.elements if z not in data.elements]:
        yield (
            f"note: the potential goes on to know {_symbols(others)}, of which the data have nothing: their self-energies stay "
            "as they were, and nothing here checks what it says of them"
        )


def _refuse_other_potential(experiment: Experiment, trained: TrainedPotential) -> None:
    completed = experiment.potential.completed_like(trained.potential)
    ours, theirs = (_flat(section.model_dump(mode="json")) for section in (completed, trained.potential))
    if ours.get("name") != theirs.get("name"):
        ours, theirs = {"name": ours.get("name")}, {"name": theirs.get("name")}
    different = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if different:
        raise UserError("\n".join(f"potential.{key}: {_as_there(ours.get(key), theirs.get(key))}" for key in different))


def _as_there(ours: object, theirs: object) -> str:
    if theirs is None:
        return f"must not be given, as the potential of {KEY} has none (got {toml_value(ours)}); remove it"
    got = "nothing" if ours is None else toml_value(ours)
    return f"must be {toml_value(theirs)}, as in the potential of {KEY} (got {got}); set it so, or start from another potential"


def _flat(values: Sections, prefix: str = "") -> Sections:
    flat: Sections = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _sample(data: PreparedData) -> Integers:
    """Training structures with energies: all, or some of each composition that is not rare."""
    labelled = data.split.train[data.structures.has_energy[data.split.train]]
    if len(labelled) <= MOST_STRUCTURES:
        return labelled
    by_composition = np.argsort(compositions_of(data.structures, labelled, data.elements).which, kind="stable")
    return np.sort(labelled[by_composition[np.linspace(0, len(labelled) - 1, MOST_STRUCTURES).astype(np.int64)]])


def _in_double_precision(trained: TrainedPotential) -> TrainedPotential:
    model = trained.model
    copied = type(model)(trained.potential.build(trained.elements)).to(torch.float64)
    copied.load_state_dict(model.state_dict())
    return replace(trained, model=copied.eval().requires_grad_(False))


def _corrected(trained: TrainedPotential, few: Structures, left: Floats, data: PreparedData) -> Reference:
    """The potential's self-energies, each changed by what fits best to the energies (S,) that it leaves."""
    everything = np.arange(len(few))
    change = compositions_of(few, everything, data.elements).fit(left, {})
    before = trained.constants()
    by_element = {z: float(before[z]) + change.by_element.get(z, 0.0) for z in trained.elements}
    open_now = _still_open(trained, change.undetermined, data.elements)
    named = ", ".join(f"{chemical_symbols[z]} {value:+.4g}" for z, value in change.by_element.items())
    note = f"self-energies are those that the run starts from, changed by what fits best to the new energies (eV): {named}"
    return Reference(SelfEnergies(by_element, data.elements, open_now), dict.fromkeys(trained.elements, 0.0), (note,))


def _shifted(trained: TrainedPotential, few: Structures, left: Floats, data: PreparedData) -> Reference:
    """The self-energies that the experiment gives, and shifts so that the network's energies fit to them."""
    given = _completed(data.reference, trained)
    difference = trained.constants() - given.self_energies.table()
    beside = left + sum_of_constants(few, difference)
    shifts = compositions_of(few, np.arange(len(few)), data.elements).fit(beside, {}).by_element
    return replace(given, shifts={z: shifts.get(z, given.shifts.get(z, 0.0)) for z in trained.elements})


def _completed(reference: Reference, trained: TrainedPotential) -> Reference:
    """A reference with what the potential says of elements that the data do not have."""
    ours, theirs = reference.self_energies, trained.self_energies
    by_element = {z: ours.by_element.get(z, theirs.by_element[z]) for z in trained.elements}
    shifts = {z: reference.shifts.get(z, trained.shifts.get(z, 0.0)) for z in trained.elements}
    undetermined = _still_open(trained, ours.undetermined, tuple(ours.by_element))
    return Reference(SelfEnergies(by_element, ours.fitted, undetermined), shifts, reference.notes)


def _still_open(trained: TrainedPotential, found: Floats, elements: tuple[int, ...]) -> Floats:
    """Combinations (R, Z) that neither the potential's data determined nor the new ones, which leave `found` open."""
    columns = [trained.elements.index(z) for z in elements]
    absent = np.delete(np.eye(len(trained.elements)), columns, axis=0)
    wide = np.zeros((len(found), len(trained.elements)))
    wide[:, columns] = found
    before, now = trained.self_energies.undetermined, np.concatenate([wide, absent])
    left, cosines, _ = np.linalg.svd(before @ now.T, full_matrices=False)
    both: Floats = left[:, cosines > SAME_DIRECTION].T @ before
    return both


def _symbols(elements: tuple[int, ...] | list[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in elements)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
