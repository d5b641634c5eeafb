"""From the files to what training needs: sets, self-energies, scale; everything checked, everything reported.

S structures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from modelforge.data.batches import sum_of_constants
from modelforge.data.reference import Reference, energies_of_isolated_atoms, isolated_atoms, reference_of
from modelforge.data.sources.paths import expand_paths
from modelforge.data.sources.read_report import Reading, ReadReport
from modelforge.data.sources.source import DataSource
from modelforge.data.split import Split, content_hash, load_split, save_split, split
from modelforge.data.structures import Floats, Integers, Structures
from modelforge.errors import UserError

CLOSEST_DISTANCE = 0.05  # angstrom; below it two atoms are one atom written twice


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The sets of a run and what was found out about them."""

    structures: Structures  # training, validation and, if cut out of them, test
    split: Split
    tests: dict[str, Structures]  # every test set by name
    reference: Reference
    scale: float  # eV: what the network's output is multiplied with
    elements: tuple[int, ...]
    report: ReadReport
    data_hash: str
    notes: tuple[str, ...]  # what the user should know, in sentences

    @property
    def training(self) -> Structures:
        """The training set."""
        return self.structures.take(self.split.train)

    @property
    def validation(self) -> Structures:
        """The validation set."""
        return self.structures.take(self.split.validation)


def prepare(source: DataSource, *, weights: Mapping[str, float], split_file: Path | None = None) -> PreparedData:
    """Read, check, split and reference a data set for loss terms with these weights.

    `split_file` is where the split of an earlier start lies, or where it is saved; without it nothing is written.
    """
    reading = source.read()
    structures = reading.structures
    _require_labels(reading, weights)
    _refuse_identical_atoms(structures)
    atoms, usable, notes = _isolated_atoms(source, structures)
    data_hash = content_hash(structures)
    found = _split(source, structures, usable, split_file, data_hash)
    tests = _tests(source, structures, found)
    training = structures.take(found.train)
    _require_training_labels(training, reading, weights)
    elements = _elements(structures, found, tests)
    reference = reference_of(source.self_energies, training, elements, atoms)
    notes += reference.notes + _missing_label_notes(reading) + _duplicate_notes(structures, found, tests)
    return PreparedData(
        structures,
        found,
        tests,
        reference,
        _scale(training, reference, weights),
        elements,
        reading.report,
        data_hash,
        notes,
    )


def _require_labels(reading: Reading, weights: Mapping[str, float]) -> None:
    """A label with a weight must be somewhere; the error names the keys that are there."""
    problems = []
    for label in weights:
        origin = reading.report.origin(f"{label}_key")
        if origin is None:
            problems.append(f"dataset.{label}_key: missing, but training.loss.{label}_weight is {weights[label]:g}")
        elif origin.num_carriers == origin.num_incomplete == 0:
            remedy = f"; name the right key, or set training.loss.{label}_weight = 0"
            problems.append(f"dataset.{label}_key: {reading.report.absence(origin)}{remedy}")
    if problems:
        raise UserError("\n".join(problems))


def _require_training_labels(training: Structures, reading: Reading, weights: Mapping[str, float]) -> None:
    has = {"energy": training.has_energy, "forces": training.has_force, "stress": training.has_stress}
    for label, weight in weights.items():
        if not has[label].any():
            origin = reading.report.origin(f"{label}_key")
            assert origin is not None, "_require_labels has seen it"
            raise UserError(
                f"dataset.{label}_key: {origin.key!r} is missing or NaN in all structures of the training set, but "
                f"training.loss.{label}_weight is {weight:g}; name another key, or set the weight to 0"
            )


def _refuse_identical_atoms(structures: Structures) -> None:
    """Two atoms of a molecule in one place give no finite forces."""
    keys = np.repeat(np.arange(len(structures)), structures.num_atoms)
    rounded = np.round(structures.positions / CLOSEST_DISTANCE).astype(np.int64)
    order = np.lexsort((*rounded.T, keys))
    same = (np.diff(rounded[order], axis=0) == 0).all(axis=1) & (np.diff(keys[order]) == 0)
    for place in np.flatnonzero(same).tolist():
        first, second = sorted(order[place : place + 2].tolist())
        distance = float(np.linalg.norm(structures.positions[first] - structures.positions[second]))
        structure = int(keys[first])
        start = int(structures.offsets[structure])
        raise UserError(
            f"{structures.place(structure)}: atoms {first - start} and {second - start} are in the same place "
            f"({distance:.4f} angstrom apart); remove one of them, or the structure"
        )


def _isolated_atoms(source: DataSource, structures: Structures) -> tuple[dict[int, float], Integers, tuple[str, ...]]:
    """Energies of isolated atoms, the structures that stay in the data set, and what was taken out of it."""
    section, everything = source.self_energies, np.arange(len(structures))
    if section.source == "dataset":
        return {atomic_numbers[symbol]: value for symbol, value in source.self_energy_table().items()}, everything, ()
    if section.source != "isolated_atoms":
        return {}, everything, ()
    if section.isolated_atoms_path:
        key = "dataset.self_energies.isolated_atoms_path"
        found = energies_of_isolated_atoms(
            source.read_files(expand_paths([section.isolated_atoms_path], Path(), key=key)).structures
        )
        if not found:
            raise UserError(f"{key}: {section.isolated_atoms_path} holds no single atom with an energy; name another file")
        return found, everything, ()
    found = energies_of_isolated_atoms(structures)
    if not found:
        raise UserError(
            'dataset.self_energies.source: is "isolated_atoms", but the data hold no single atom with an energy; '
            "name their file in isolated_atoms_path, or give values"
        )
    taken = isolated_atoms(structures)
    note = f"{len(taken)} isolated atoms give the self-energies and are in none of the sets"
    return found, np.setdiff1d(everything, taken), (note,)


def _split(source: DataSource, structures: Structures, usable: Integers, split_file: Path | None, data_hash: str) -> Split:
    if split_file is not None and split_file.exists():
        return load_split(split_file, data_hash)
    found = split(source.split, structures, usable)
    if split_file is not None:
        save_split(split_file, found, data_hash)
    return found


def _tests(source: DataSource, structures: Structures, found: Split) -> dict[str, Structures]:
    tests = {name: reading.structures for name, reading in source.read_tests().items()}
    for name, test in tests.items():
        _refuse_identical_atoms(test)
        if content_hash(test) == content_hash(structures):
            raise UserError(
                f"dataset.test_paths.{name}: holds the same structures as dataset.path, so its errors would say nothing; "
                "name another file, or cut a test set out of the data with dataset.split.fractions"
            )
    if len(found.test):
        if "test" in tests:
            raise UserError(
                'dataset.test_paths.test: the name "test" is taken by the set that dataset.split cuts out; choose another'
            )
        tests = {"test": structures.take(found.test), **tests}
    return tests


def _elements(structures: Structures, found: Split, tests: Mapping[str, Structures]) -> tuple[int, ...]:
    """Elements of the training set; elements that only other sets have cannot be predicted."""
    training = structures.take(found.train).elements
    for name, others in {"validation": structures.take(found.validation), **tests}.items():
        if unknown := sorted(set(others.elements) - set(training)):
            symbols = ", ".join(chemical_symbols[z] for z in unknown)
            key = "split" if name in found.sets() else f"test_paths.{name}"
            raise UserError(
                f"dataset.{key}: the set {name!r} has elements that no training structure has ({symbols}); "
                "add structures with them to the training set, or remove them from this one"
            )
    return training


def _scale(training: Structures, reference: Reference, weights: Mapping[str, float]) -> float:
    """What the network has to produce: the RMS force or the spread of the energy over sqrt(N), whichever is larger."""
    scale, has_force = 0.0, training.has_force
    if "forces" in weights and has_force.any():
        scale = float(np.sqrt(np.mean(training.forces[has_force] ** 2)))
    if "energy" in weights and training.has_energy.any():
        interaction = training.energy - sum_of_constants(training, reference.table())
        scale = max(scale, float(np.sqrt(np.nanmean(interaction**2 / training.num_atoms))))
    return scale if scale > 0 else 1.0


def _missing_label_notes(reading: Reading) -> tuple[str, ...]:
    return tuple(
        f"{origin.num_incomplete} structures have NaN for {origin.key!r}: taken as missing"
        for origin in reading.report.origins
        if origin.num_incomplete
    )


def _duplicate_notes(structures: Structures, found: Split, tests: Mapping[str, Structures]) -> tuple[str, ...]:
    """How many structures of the other sets are in the training set, atom for atom."""
    training = _fingerprints(structures.take(found.train))
    others = {"validation": structures.take(found.validation), **tests}
    counts = {name: int(np.isin(_fingerprints(others[name]), training).sum()) for name in others if len(others[name])}
    return tuple(
        f"{count} of the {len(others[name])} structures of the set {name!r} are also in the training set, so its errors flatter"
        for name, count in counts.items()
        if count
    )


def _fingerprints(structures: Structures) -> Floats:
    """A number per structure that is equal for equal atoms in equal places, (S,)."""
    weights = np.random.default_rng(0).uniform(1.0, 2.0, size=(3 + 119))
    of_atoms = structures.positions @ weights[:3] * weights[3 + structures.atomic_numbers]
    place = np.arange(len(of_atoms)) - np.repeat(structures.offsets[:-1], structures.num_atoms)
    return np.add.reduceat(of_atoms * np.sqrt(place + 1.0), structures.offsets[:-1])
