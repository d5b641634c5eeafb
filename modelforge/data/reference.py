"""Self-energies of a data set: from the TOML, from isolated atoms, from the source's table, or fitted to the training set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase.data import atomic_numbers as number_of_symbol
from ase.data import chemical_symbols
from pydantic import model_validator

from modelforge.atoms.self_energies import (
    NUM_ATOMIC_NUMBERS,
    PLAUSIBLE_ATOMISATION,
    SelfEnergies,
    element_counts,
    fit_compositions,
    implausible,
    undetermined_in_words,
)
from modelforge.atoms.units import EnergyUnit, energy_in_ev
from modelforge.data.structures import Floats, Integers, Structures, sum_of_constants
from modelforge.errors import UserError
from modelforge.section import PathText, Section, SectionError


class SelfEnergiesSection(Section):
    """Where the energies of atoms without interactions come from; they are removed from the labels in float64."""

    source: Literal["regression", "values", "isolated_atoms", "dataset", "none"] = "regression"
    """Least squares on the training set, `values` below, single atoms in the data, the data set's own table, or no removal."""
    values: dict[str, float] = {}
    """Self-energies by element symbol, fixed first; elements that are not named are fitted."""
    unit: EnergyUnit = "eV"
    """Unit of `values`."""
    isolated_atoms_path: PathText | None = None
    """File with the isolated atoms; without it, single atoms that are not periodic are taken out of the data set."""

    @model_validator(mode="after")
    def _options_are_used(self) -> "SelfEnergiesSection":
        problems = [
            (f"values.{symbol}", f"unknown element {symbol!r}; use symbols such as H or Cl")
            for symbol in self.values
            if symbol not in number_of_symbol or symbol == "X"
        ]
        if self.source == "values" and not self.values:
            problems.append(("values", 'missing; source "values" needs a table such as values = { H = -13.6 }'))
        if self.values and self.source in ("none", "dataset"):
            problems.append(("values", f'has no effect with source = "{self.source}"; remove it'))
        if self.isolated_atoms_path and self.source != "isolated_atoms":
            problems.append(("isolated_atoms_path", f'has no effect with source = "{self.source}"; remove it'))
        if problems:
            raise SectionError(*problems)
        return self


@dataclass(frozen=True, eq=False)
class Reference:
    """The constants per element that are taken off the energies, and what has to be said about them."""

    self_energies: SelfEnergies
    shifts: dict[int, float]  # mean interaction energy per atom of each element, eV; zero for fitted self-energies
    notes: tuple[str, ...]

    def table(self) -> Floats:
        """What is taken off per atom, by atomic number, eV, (119,)."""
        table = self.self_energies.table()
        table[list(self.shifts)] += list(self.shifts.values())
        return table


def isolated_atoms(structures: Structures) -> Integers:
    """Indices of the single atoms that are not periodic and carry an energy."""
    return np.flatnonzero((structures.num_atoms == 1) & ~structures.periodic.any(axis=1) & structures.has_energy)


def energies_of_isolated_atoms(structures: Structures) -> dict[int, float]:
    """The energy of each element's isolated atom in eV; an error where two of them differ."""
    found: dict[int, float] = {}
    for index in isolated_atoms(structures).tolist():
        element = int(structures.atomic_numbers[structures.offsets[index]])
        energy = float(structures.energy[index])
        if abs(found.setdefault(element, energy) - energy) > 1e-6:
            raise UserError(
                f"{structures.place(index)}: a second isolated {chemical_symbols[element]} atom with another energy "
                f"({energy} eV, the first had {found[element]} eV); keep one of them"
            )
    return found


def reference_of(
    section: SelfEnergiesSection,
    structures: Structures,
    training: Integers,
    elements: tuple[int, ...],
    atoms: Mapping[int, float],
) -> Reference:
    """The reference of a data set: fitted on the training structures, `atoms` are energies of isolated atoms in eV."""
    labelled = training[structures.has_energy[training]]
    if section.source == "none" or not len(labelled):
        zero = SelfEnergies(dict.fromkeys(elements, 0.0), (), np.zeros((0, len(elements))))
        return Reference(zero, {}, ())
    given = {number_of_symbol[symbol]: value * energy_in_ev(section.unit) for symbol, value in section.values.items()}
    given = {**atoms, **given} if section.source in ("isolated_atoms", "dataset") else given
    compositions = compositions_of(structures, labelled, elements)
    found = compositions.fit(structures.energy[labelled], given)
    interaction = structures.energy[labelled] - sum_of_constants(structures, found.table())[labelled]
    _stop_if_implausible(found, structures, labelled, interaction)
    notes = list(filter(None, [undetermined_in_words(found)]))
    if found.fitted and section.source != "regression":
        symbols = ", ".join(chemical_symbols[z] for z in found.fitted)
        notes.append(f"no self-energy was given for {symbols}: fitted to the training set with the given ones fixed")
    fitted_all = len(found.fitted) == len(elements)  # then the fit has taken up what an atom has on average
    shifts = dict.fromkeys(elements, 0.0) if fitted_all else compositions.fit(interaction, {}).by_element
    return Reference(found, shifts, tuple(notes))


@dataclass(frozen=True, eq=False)
class Compositions:
    """The different compositions among some structures."""

    counts: Floats  # (C, Z) atoms of each element
    which: Integers  # (S,) the composition of each structure
    elements: tuple[int, ...]

    def fit(self, energies: Floats, given: Mapping[int, float]) -> SelfEnergies:
        """Self-energies for these energies (S,) in eV."""
        sizes = np.bincount(self.which, minlength=len(self.counts))
        means = np.bincount(self.which, weights=energies, minlength=len(self.counts)) / sizes
        return fit_compositions(self.counts, means, sizes, self.elements, given=given)


def compositions_of(structures: Structures, chosen: Integers, elements: tuple[int, ...]) -> Compositions:
    """The compositions of the chosen structures; counts are compared by a 64-bit hash, so that memory stays small."""
    multipliers = np.random.default_rng(0).integers(1, 2**63, size=NUM_ATOMIC_NUMBERS, dtype=np.uint64)
    hashes = np.concatenate(
        [np.add.reduceat(multipliers[piece.atomic_numbers], piece.offsets[:-1]) for piece in structures.pieces()]
    )
    _, first, which = np.unique(hashes[chosen], return_index=True, return_inverse=True)
    examples = structures.take(chosen[first])
    return Compositions(element_counts(examples.num_atoms, examples.atomic_numbers, elements), which, elements)


def _stop_if_implausible(found: SelfEnergies, structures: Structures, labelled: Integers, interaction: Floats) -> None:
    num_atoms = structures.num_atoms[labelled]
    outlier = implausible(interaction, num_atoms)
    if outlier is None:
        return
    per_atom = interaction[outlier] / num_atoms[outlier]
    values = ", ".join(f"{chemical_symbols[z]} {value:.3f}" for z, value in found.by_element.items())
    lowest, highest = PLAUSIBLE_ATOMISATION
    raise UserError(
        f"dataset.self_energies: without the self-energies ({values} eV) {structures.place(int(labelled[outlier]))} has "
        f"{per_atom:.3f} eV per atom; expected {lowest:g} to {highest:g}. They must come from the same method "
        "and have the same unit as the labels; correct the values, dataset.self_energies.unit or dataset.energy_unit, or set "
        'source = "regression"'
    )
