"""Self-energies of a data set: from the TOML, from isolated atoms, from the source's table, or fitted to the training set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase.data import atomic_numbers as number_of_symbol
from ase.data import chemical_symbols
from pydantic import model_validator

from modelforge.atoms.self_energies import (
    PLAUSIBLE_ATOMISATION,
    SelfEnergies,
    element_counts,
    fit_self_energies,
    implausible,
    undetermined_in_words,
)
from modelforge.atoms.units import EnergyUnit, energy_in_ev
from modelforge.data.batches import sum_of_constants
from modelforge.data.structures import Floats, Integers, Structures
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
    section: SelfEnergiesSection, training: Structures, elements: tuple[int, ...], atoms: Mapping[int, float]
) -> Reference:
    """The reference of a data set: fitted on the training structures, `atoms` are energies of isolated atoms in eV."""
    labelled = training.take(np.flatnonzero(training.has_energy))
    if section.source == "none" or not len(labelled):
        zero = SelfEnergies(dict.fromkeys(elements, 0.0), (), np.zeros((0, len(elements))))
        return Reference(zero, {}, ())
    given = {number_of_symbol[symbol]: value * energy_in_ev(section.unit) for symbol, value in section.values.items()}
    given = {**atoms, **given} if section.source in ("isolated_atoms", "dataset") else given
    counts = element_counts(labelled.num_atoms, labelled.atomic_numbers, elements)
    found = fit_self_energies(counts, labelled.energy, elements, given=given)
    _stop_if_implausible(found, labelled)
    notes = list(filter(None, [undetermined_in_words(found)]))
    if found.fitted and section.source != "regression":
        symbols = ", ".join(chemical_symbols[z] for z in found.fitted)
        notes.append(f"no self-energy was given for {symbols}: fitted to the training set with the given ones fixed")
    return Reference(found, _shifts(found, counts, labelled, elements), tuple(notes))


def _shifts(found: SelfEnergies, counts: Floats, labelled: Structures, elements: tuple[int, ...]) -> dict[int, float]:
    """Interaction energy that an atom of each element has on average; a fit has taken it up already."""
    if len(found.fitted) == len(elements):
        return dict.fromkeys(elements, 0.0)
    interaction = labelled.energy - sum_of_constants(labelled, found.table())
    return fit_self_energies(counts, interaction, elements).by_element


def _stop_if_implausible(found: SelfEnergies, labelled: Structures) -> None:
    interaction = labelled.energy - sum_of_constants(labelled, found.table())
    outlier = implausible(interaction, labelled.num_atoms)
    if outlier is None:
        return
    per_atom = interaction[outlier] / labelled.num_atoms[outlier]
    values = ", ".join(f"{chemical_symbols[z]} {value:.3f}" for z, value in found.by_element.items())
    lowest, highest = PLAUSIBLE_ATOMISATION
    raise UserError(
        f"dataset.self_energies: without the self-energies ({values} eV) {labelled.place(outlier)} has "
        f"{per_atom:.3f} eV per atom; expected {lowest:g} to {highest:g}. They must come from the same method "
        "and have the same unit as the labels; correct the values, dataset.self_energies.unit or dataset.energy_unit, or set "
        'source = "regression"'
    )
