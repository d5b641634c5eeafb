"""From the files to what training needs: sets, self-energies, scale; everything checked, everything reported.

S structures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from modelforge.data.audited import AuditedSets, audit_opened, audit_overlaps, stop_if_found
from modelforge.data.detection import files_like
from modelforge.data.filter import element_table, filtered, refuse_unknown_subsets
from modelforge.data.inputs import Inputs, input_notes
from modelforge.data.labels import missing_label_notes, refuse_absent_keys, require_labels, require_training_labels
from modelforge.data.reduced_labels import ReducedLabels, reduced_labels
from modelforge.data.reference import (
    Compositions,
    Reference,
    compositions_of,
    energies_of_isolated_atoms,
    isolated_atoms,
    reference_of,
)
from modelforge.data.sources.gather import read
from modelforge.data.sources.read_report import ReadReport, Removal
from modelforge.data.sources.source import DataSource
from modelforge.data.split import Split, load_split, origin_of_split, save_split, split
from modelforge.data.store.opening import OpenedData, cache_folder, open_files
from modelforge.data.store.prepared_once import Say, silent
from modelforge.data.structures import Integers, Structures, sum_of_constants
from modelforge.errors import UserError
from modelforge.physics.fixed_energy import FixedTerms

NO_TERMS = FixedTerms()
WORSE_SPREAD = 2.0  # times as much: fixed energies that are right take something off the spread of the labels

NO_INPUTS = Inputs()


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The sets of a run and what was found out about them."""

    opened: OpenedData  # training, validation and, if cut out of them, test
    split: Split
    tests: dict[str, OpenedData]  # the named test files
    removals: tuple[Removal, ...]
    reference: Reference
    scale: float  # eV: what the network's output is multiplied with
    elements: tuple[int, ...]
    audit: AuditedSets
    subset_weights: Mapping[str, float]
    cache: Path
    notes: tuple[str, ...]  # what the user should know, in sentences
    reduced: ReducedLabels  # what training and validation learn from

    @property
    def structures(self) -> Structures:
        """All structures that were read, also those that are in no set."""
        return self.opened.structures

    @property
    def report(self) -> ReadReport:
        """What was found in the files."""
        return self.opened.report

    def evaluated_sets(self) -> dict[str, tuple[Structures, Integers]]:
        """Every set that is not trained on, as structures and the indices of its members."""
        found = _evaluated(self.opened, self.split, self.tests)
        return {name: (opened.structures, members) for name, (opened, members) in found.items()}


def prepare(
    source: DataSource,
    *,
    weights: Mapping[str, float],
    inputs: Inputs = NO_INPUTS,
    fixed_terms: FixedTerms = NO_TERMS,
    split_file: Path | None = None,
    say: Say = silent,
) -> PreparedData:
    """Read, check, split and reference a data set for loss terms and for a potential with these inputs and fixed energies.

    `split_file` is where the split of an earlier start lies, or where it is saved; without it nothing is written there.
    `say` is told what takes long.
    """
    fixed_terms.refuse_unusable()  # before anything is read
    cache = cache_folder(source.cache_folder)
    opened = open_files(source.training_files(), cache=cache, say=say)
    structures, report = opened.structures, opened.report
    require_labels(report, weights)
    refuse_absent_keys(source, report)
    sources = tuple(dict.fromkeys(name.partition("/")[0] for name in structures.subset_names if "/" in name))
    refuse_unknown_subsets(source.subset_weights, (*structures.subset_names, *sources), key="dataset.subset_weights")
    kept, removals = filtered(source.filter, structures)
    atoms, usable, atom_notes = _isolated_atoms(source, structures, kept)
    drawn_from = {"data_hash": opened.content_hash, "origin": origin_of_split(source.split, structures, usable)}
    is_drawn = split_file is not None and split_file.exists()
    found = load_split(split_file, **drawn_from) if split_file and is_drawn else split(source.split, structures, usable)
    tests = _tests(source, opened, found, cache, say)
    require_training_labels(structures, found.train, report, weights, source.subset_weights)
    of_inputs = input_notes(structures, found.train, inputs, weights)
    elements = _elements(structures, found, tests)
    audited = _audited(opened, found, tests, cache)
    stop_if_found(audited.findings(), source.audit)
    fixed_terms.refuse_unusable(*(opened_set.structures for opened_set, _ in _evaluated(opened, found, tests).values()))
    used = np.concatenate([found.train, found.validation])
    reduced = reduced_labels(opened, fixed_terms, used, cache=cache, say=say)
    reference = reference_of(source.self_energies, reduced.structures, found.train, elements, atoms)
    if split_file and not is_drawn:  # only now, as no check has stopped the run
        save_split(split_file, found, **drawn_from)
    of_labels = (*_spread_notes(structures, reduced, found.train, elements), *missing_label_notes(report), *of_inputs)
    audit_notes = (f"{finding.key}: {finding.message}" for finding in audited.findings())
    return PreparedData(
        opened,
        found,
        tests,
        (*report.removals, *removals),
        reference,
        _scale(reduced.structures, found.train, reference, weights),
        elements,
        audited,
        source.subset_weights,
        cache,
        (*atom_notes, *_group_notes(source, structures), *reference.notes, *of_labels, *audit_notes),
        reduced,
    )


def _audited(opened: OpenedData, found: Split, tests: Mapping[str, OpenedData], cache: Path) -> AuditedSets:
    used = np.concatenate(list(found.sets().values()))
    return AuditedSets(
        audit_opened(opened, used, cache=cache),
        {name: audit_opened(test, np.arange(len(test.structures)), cache=cache) for name, test in tests.items()},
        audit_overlaps(opened, found.train, _evaluated(opened, found, tests), cache=cache),
    )


def _evaluated(opened: OpenedData, found: Split, tests: Mapping[str, OpenedData]) -> dict[str, tuple[OpenedData, Integers]]:
    """Every set that is not trained on, as opened data and the indices of its members."""
    sets = {"validation": (opened, found.validation)}
    if len(found.test):
        sets["test"] = (opened, found.test)
    return sets | {name: (test, np.arange(len(test.structures))) for name, test in tests.items()}


def _isolated_atoms(
    source: DataSource, structures: Structures, kept: Integers
) -> tuple[dict[int, float], Integers, tuple[str, ...]]:
    """Energies of isolated atoms, the structures that stay in the data set, and what was taken out of it."""
    section = source.self_energies
    if section.source == "dataset":
        return {atomic_numbers[symbol]: value for symbol, value in source.self_energy_table().items()}, kept, ()
    if section.source != "isolated_atoms":
        return {}, kept, ()
    if section.isolated_atoms_path:
        key = "dataset.self_energies.isolated_atoms_path"
        files = files_like(source, [section.isolated_atoms_path], key=key)
        found = energies_of_isolated_atoms(read([files]).structures)
        if not found:
            raise UserError(f"{key}: {section.isolated_atoms_path} holds no single atom with an energy; name another file")
        return found, kept, ()
    found = energies_of_isolated_atoms(structures)
    if not found:
        raise UserError(
            'dataset.self_energies.source: is "isolated_atoms", but the data hold no single atom with an energy; '
            "name their file in isolated_atoms_path, or give values"
        )
    taken = isolated_atoms(structures)
    note = f"{len(taken)} isolated atoms give the self-energies and are in none of the sets"
    return found, np.setdiff1d(kept, taken), (note,)


def _tests(source: DataSource, opened: OpenedData, found: Split, cache: Path, say: Say) -> dict[str, OpenedData]:
    tests = {}
    for name, files in source.test_files().items():
        test = open_files(files, cache=cache, say=say)
        if test.content_hash == opened.content_hash:
            raise UserError(
                f"dataset.test_paths.{name}: holds the same structures as dataset.path, so its errors would say nothing; "
                "name another file, or cut a test set out of the data with dataset.split.fractions"
            )
        tests[name] = test
    if len(found.test) and "test" in tests:
        raise UserError(
            'dataset.test_paths.test: the name "test" is taken by the set that dataset.split cuts out; choose another'
        )
    return tests


def _group_notes(source: DataSource, structures: Structures) -> tuple[str, ...]:
    """Whether structures that belong together are drawn one by one."""
    num_groups = len(np.unique(structures.group))
    if source.split.strategy != "random" or num_groups == len(structures):
        return ()
    return (
        f"the {len(structures)} structures belong to {num_groups} groups, such as molecules, but dataset.split.strategy = "
        '"random" draws structures: those of a group get into different sets; set it to "group" to keep them together',
    )


def _elements(structures: Structures, found: Split, tests: Mapping[str, OpenedData]) -> tuple[int, ...]:
    """Elements of the training set; elements that only other sets have cannot be predicted."""
    table = element_table(structures)
    training = np.flatnonzero(table[found.train].any(axis=0))
    others = {name: np.flatnonzero(table[found.sets()[name]].any(axis=0)) for name in ("validation", "test")}
    for name, elements in (others | {name: np.array(test.structures.elements) for name, test in tests.items()}).items():
        if len(unknown := np.setdiff1d(elements, training)):
            symbols = ", ".join(chemical_symbols[z] for z in unknown)
            key = f"test_paths.{name}" if name in tests else "split"
            raise UserError(
                f"dataset.{key}: the set {name!r} has elements that no training structure has ({symbols}); "
                "add structures with them to the training set, or remove them from this one"
            )
    return tuple(training.tolist())


def _scale(structures: Structures, training: Integers, reference: Reference, weights: Mapping[str, float]) -> float:
    """What the network has to produce: the RMS force or the spread of the energy over sqrt(N), whichever is larger."""
    scale = 0.0
    if "forces" in weights:
        scale = _rms_force(structures, training)
    if "energy" in weights and structures.has_energy[training].any():
        interaction = (structures.energy - sum_of_constants(structures, reference.table()))[training]
        scale = max(scale, float(np.sqrt(np.nanmean(interaction**2 / structures.num_atoms[training]))))
    return scale if scale > 0 else 1.0


def _spread_notes(
    structures: Structures, reduced: ReducedLabels, training: Integers, elements: tuple[int, ...]
) -> tuple[str, ...]:
    """Whether the labels spread much more without the fixed energies, which should explain a part of them."""
    labelled = training[structures.has_energy[training]]
    if reduced.terms.is_empty or not len(labelled):
        return ()
    compositions = compositions_of(structures, labelled, elements)
    before, after = (_spread(some, labelled, compositions) for some in (structures, reduced.structures))
    if after <= WORSE_SPREAD * before:
        return ()
    return (
        f"without the fixed energies, {reduced.terms}, the training energies of structures of one composition spread over "
        f"{after:.3g} eV, with them over {before:.3g} eV, so they explain nothing: look for labels in a wrong unit, for atoms "
        "that are too close, for labels that have no such energy in them, or for a cutoff that is too long",
    )


def _spread(structures: Structures, labelled: Integers, compositions: Compositions) -> float:
    """The RMS of the energies around those that the compositions explain."""
    energies = structures.energy[labelled]
    explained = sum_of_constants(structures, compositions.fit(energies, {}).table())[labelled]
    return float(np.sqrt(np.mean((energies - explained) ** 2)))


def _rms_force(structures: Structures, training: Integers) -> float:
    total, count = 0.0, 0
    for piece in structures.taken(training):
        known = piece.forces[piece.has_force]
        total, count = total + float((known**2).sum()), count + known.size
    return float(np.sqrt(total / count)) if count else 0.0
