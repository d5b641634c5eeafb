"""Read extended XYZ, the text format of most data sets, into `Structures`.

Labels are found by their key in the header or among the columns, wherever a version of ASE would put them later. Units
are converted here, once. A label that a structure lacks is NaN.

Legend: S structures (one for each of F frames), N atoms of all of them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from modelforge.atoms.units import EnergyUnit, LengthUnit
from modelforge.data.sources.conversion import with_units
from modelforge.data.sources.extxyz.atoms import (
    AtomTable,
    frames_by_properties,
    frames_with_column,
    parse_layout,
    read_atoms,
)
from modelforge.data.sources.extxyz.cells import read_cells
from modelforge.data.sources.extxyz.frames import TEXT_SIZE, Frames, read_frames
from modelforge.data.sources.extxyz.labels import (
    UNIT_LABELS,
    read_components,
    read_energies,
    read_groups,
    read_partial_charges,
    read_stresses,
    read_subsets,
    read_weights,
    stated_units,
    units_differ,
)
from modelforge.data.sources.file_source import PER_ATOM_OPTIONS, FileSource
from modelforge.data.sources.gather import read
from modelforge.data.sources.part import Part
from modelforge.data.sources.paths import one_by_one
from modelforge.data.structures import Structures

GEOMETRY_KEYS = ("Properties", "Lattice", "pbc")
GEOMETRY_COLUMNS = ("species", "symbols", "Z", "numbers", "pos", "positions")


class ExtendedXYZ(FileSource):
    """Structures and labels from files in extended XYZ."""

    homes: ClassVar[tuple[str, str]] = ("header keys", "per-atom columns")

    name: Literal["extxyz"] = "extxyz"
    energy_unit: EnergyUnit | None = None
    """Unit of the energy, where no header states it (`energy_unit=...`): eV by default."""
    length_unit: LengthUnit | None = None
    """Unit of positions and cells, where no header states it (`length_unit=...`): angstrom by default."""

    def read_file(self, path: Path) -> Iterator[Part]:
        """The structures of a file in parts of bounded memory; a file that cannot be read to its end is a `UserError`."""
        return read_parts(path, self)


def read_extxyz(paths: str | Path | Sequence[str | Path], section: ExtendedXYZ | None = None) -> Structures:
    """Read all structures of some files, with the keys and units of a section, by default the usual ones in eV and angstrom.

    Equal group names mean one group, in whichever file. A file that cannot be read to its end is a `UserError`.
    """
    files = one_by_one(paths)
    return read([(section or ExtendedXYZ(path=tuple(map(str, files)))).files(files)]).structures


def read_parts(path: Path, section: ExtendedXYZ, *, text_size: int = TEXT_SIZE) -> Iterator[Part]:
    """The structures of a file, part by part of about `text_size` bytes; units are stated in all of them alike, or in none."""
    first: dict[str, str] | None = None
    for frames in read_frames(path, text_size=text_size):
        stated = stated_units(frames)
        first = stated if first is None else first
        for label in [label for label in UNIT_LABELS if stated[label] != first[label]]:
            raise units_differ(frames, f"{label}_unit", {stated[label], first[label]})
        yield part_of(frames, section, stated)


def part_of(frames: Frames, section: ExtendedXYZ, stated: dict[str, str]) -> Part:
    """The structures of some frames, whose headers state these units."""
    by_properties = frames_by_properties(frames)
    atoms = read_atoms(
        frames,
        by_properties,
        forces_key=section.label_keys().get(forces_option(section)),
        charges_key=section.partial_charges_key,
    )
    key_of_charges = section.partial_charges_key
    charges, num_in_header = read_partial_charges(
        frames, key_of_charges, atoms.partial_charges, with_column=frames_with_column(by_properties, key_of_charges)
    )
    columns: Counter[str] = Counter()
    for properties, members in by_properties.items():
        columns.update(dict.fromkeys(parse_layout(properties).columns, len(members)))
    structures = structures_of(frames, section, atoms, charges)
    keys = Counter(chain.from_iterable(frames.headers))
    if key_of_charges and num_in_header:
        columns[key_of_charges] += num_in_header
        if key_of_charges not in keys_of_structures(section):
            keys[key_of_charges] -= num_in_header
    converted, names = with_units(
        structures, section, stated=stated, usual={"energy": "eV", "length": "angstrom"}, place=str(frames.path)
    )
    return Part(
        converted,
        keys={key: count for key, count in keys.items() if count and key not in GEOMETRY_KEYS},
        columns={name: count for name, count in columns.items() if name not in GEOMETRY_COLUMNS},
        units=names,
        groups=read_groups(frames, section.group_key),
    )


def forces_option(section: ExtendedXYZ) -> str:
    """Which key names the column of forces."""
    return "gradient_key" if section.gradient_key else "forces_key"


def keys_of_structures(section: ExtendedXYZ) -> set[str]:
    """The keys that something is read from for each structure."""
    return {key for option, key in section.label_keys().items() if option not in PER_ATOM_OPTIONS}


def structures_of(frames: Frames, section: ExtendedXYZ, atoms: AtomTable, charges: np.ndarray) -> Structures:
    """The structures of some frames in units of the file; a gradient stands for the forces, a virial for the stress."""
    cell, periodic = read_cells(frames)
    subset, subset_names = read_subsets(frames, section.subset_key)
    return Structures(
        num_atoms=np.array(frames.num_atoms),
        atomic_numbers=atoms.atomic_numbers,
        positions=atoms.positions,
        cell=cell,
        periodic=periodic,
        energy=read_energies(frames, section.energy_key),
        forces=atoms.forces,
        stress=read_stresses(frames, section.virial_key or section.stress_key),
        total_charge=read_components(frames, section.total_charge_key, ()),
        spin_multiplicity=read_components(frames, section.spin_multiplicity_key, ()),
        dipole=read_components(frames, section.dipole_key, (3,)),
        quadrupole=read_components(frames, section.quadrupole_key, (3, 3)),
        partial_charges=charges,
        weight=read_weights(frames, section.weight_key),
        subset=subset,
        index_in_file=frames.first_index + np.arange(len(frames)),
        subset_names=subset_names,
        files=(str(frames.path),),
    )
