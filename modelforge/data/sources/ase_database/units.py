"""What a database says about its units and about the energies of single atoms.

ASE's own convention is eV and angstrom. SchNetPack states units in the metadata; its databases from before it did so have
labels in the rows' data only, and their units have to be given.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ase.data import chemical_symbols

from modelforge.data.sources.ase_database.values import numbers_of, shown
from modelforge.data.sources.file_source import FileSource
from modelforge.errors import UserError

ASKED = {"gradient_key": "forces", "virial_key": "virial"}
NO_UNIT = ("", "arb. unit", "arbitrary unit", "arb.unit")  # what SchNetPack's writers put where they know none
UNIT = re.compile(r"[^\d]{0,60}(\d(?!\d)[^\d]{0,20}){0,9}\Z")  # powers of one digit


@dataclass(frozen=True)
class Conventions:
    """Units that a database states or implies."""

    path: Path
    stated: Mapping[str, str]  # by label (or "length")
    of_data: frozenset[str]  # the keys that it states units of, which are keys of data
    states_units: bool
    follows_ase: bool  # whether eV and angstrom may be taken for granted

    def usual(self, section: FileSource, present: frozenset[str]) -> dict[str, str]:
        """Units for "energy", "length" and "virial" that are neither stated nor given; an error where one is needed."""
        for option, key in section.label_keys().items():
            label = label_of(option)
            if self.states_units and key in present and label not in self.stated and self._is_needed(section, label):
                raise UserError(f"dataset.{label}_unit: missing; {self.path} states units, but none of {key!r}")
        if self.follows_ase:
            return {"energy": "eV", "length": "angstrom"}
        usual = {} if section.energy_key in present else {"energy": "eV"}  # there is nothing to convert
        return {**usual, "virial": self.stated["energy"]} if "energy" in self.stated else usual

    def _is_needed(self, section: FileSource, label: str) -> bool:
        return hasattr(section, f"{label}_unit") and not getattr(section, f"{label}_unit")


def label_of(option: str) -> str:
    """The label whose unit the values of a key have."""
    return ASKED.get(option, option.removesuffix("_key"))


def conventions_of(metadata: Mapping[str, object], section: FileSource, *, path: Path, only_data: bool) -> Conventions:
    """The conventions of a database; `only_data` where no calculator gave any label."""
    units = metadata.get("_property_unit_dict") or {}
    if not isinstance(units, dict):
        raise UserError(f"{path}: metadata: _property_unit_dict: must be units by property (got {shown(units)})")
    length = _unit(metadata.get("_distance_unit"), place=f"{path}: metadata: _distance_unit")
    stated = {"length": length} if length else {}
    for option, key in section.label_keys().items():
        if unit := _unit(units.get(key), place=f"{path}: metadata: _property_unit_dict: {key}"):
            stated[label_of(option)] = unit
    follows_ase = not (says_units(metadata) or only_data or "atref_labels" in metadata)
    return Conventions(path, stated, frozenset(units), says_units(metadata), follows_ase)


def says_units(metadata: Mapping[str, object]) -> bool:
    """Whether the metadata state units, as those of SchNetPack do."""
    return bool(metadata.get("_property_unit_dict") or metadata.get("_distance_unit"))


def _unit(value: object, *, place: str) -> str:
    if value is None or (isinstance(value, str) and value.lower() in NO_UNIT):
        return ""
    if not isinstance(value, str) or not UNIT.match(value):
        raise UserError(f"{place}: must be a unit, like 'eV/Ang' (got {shown(value)})")
    return value


def self_energies_of(metadata: Mapping[str, object], section: FileSource, conventions: Conventions) -> dict[str, float]:
    """Energies of single atoms in eV by element symbol; zeros stand for elements that the table says nothing about."""
    place = f"{conventions.path}: metadata: atomrefs: {section.energy_key}"
    column = _column(metadata, section.energy_key, place=place)
    if column is None:
        return {}
    numbers = numbers_of(column)
    if numbers is None or not len(numbers) <= len(chemical_symbols[:119]):
        raise UserError(f"{place}: must be one number for each atomic number from 0 to 118 at most (got {shown(column)})")
    energies = {symbol: float(number) for symbol, number in zip(chemical_symbols, numbers, strict=False) if number}
    if not all(abs(energy) < float("inf") for energy in energies.values()):
        raise UserError(f"{place}: must be finite numbers (got {shown(numbers)})")
    usual = "eV" if conventions.follows_ase else ""
    unit = conventions.stated.get("energy", "")
    factor, _ = section.unit_of("energy", stated=unit, usual=usual, place=str(conventions.path))
    return {symbol: energy * factor for symbol, energy in energies.items() if symbol != "X"}


def _column(metadata: Mapping[str, object], key: str | None, *, place: str) -> object:
    """The values by atomic number that belong to a property, None where there are none."""
    table, labels = metadata.get("atomrefs"), metadata.get("atref_labels")
    if isinstance(table, dict):
        return table.get(key) or None
    if not table or not isinstance(labels, list) or key not in labels:
        return None
    if not isinstance(table, list) or not all(isinstance(row, list) and len(row) == len(labels) for row in table):
        raise UserError(f"{place}: must be a table with {len(labels)} columns (got {shown(table)})")
    return [row[labels.index(key)] for row in table]
