"""Read the databases of ASE, in SQLite (.db, also those of SchNetPack) or LMDB (.aselmdb), into `Structures`.

Labels are found by their key among the calculator's results, the key-value pairs and the data of a row. Units are
converted here, once. A label that a row lacks is NaN.

Legend: R rows that were read together, N atoms of all of them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from modelforge.atoms.units import EnergyUnit, LengthUnit
from modelforge.data.sources.ase_database import lmdb as lmdb_file
from modelforge.data.sources.ase_database import sqlite as sqlite_file
from modelforge.data.sources.ase_database.labels import (
    in_rows,
    read_cells,
    read_components,
    read_names,
    read_numbers,
    read_positions,
    read_stresses,
    read_weights,
)
from modelforge.data.sources.ase_database.rows import PART_ATOMS, Request, Row
from modelforge.data.sources.ase_database.units import Conventions, conventions_of, says_units, self_energies_of
from modelforge.data.sources.conversion import with_units
from modelforge.data.sources.file_source import LABEL_OF_OPTION, PER_ATOM_OPTIONS, FileSource
from modelforge.data.sources.part import Part
from modelforge.data.structures import Structures
from modelforge.errors import UserError

SERVER = re.compile(r"(postgres|postgresql|mysql|mariadb):/")


class AseDatabase(FileSource):
    """Structures and labels from databases of ASE or SchNetPack."""

    homes: ClassVar[tuple[str, str]] = ("keys of rows", "per-atom arrays of rows")

    name: Literal["ase"] = "ase"
    energy_unit: EnergyUnit | None = None
    """Unit of the energy, where the database does not state it: eV by default, except for databases of SchNetPack."""
    length_unit: LengthUnit | None = None
    """Unit of positions and cells, where the database does not state it: angstrom, except for databases of SchNetPack."""

    def expand(self, patterns: Sequence[str], *, key: str) -> list[Path]:
        """The files that paths and globs name."""
        for pattern in patterns:
            if SERVER.search(pattern):
                raise UserError(
                    f"{key}: must name files (got the server {pattern!r}); write a file: ase db ADDRESS --insert-into data.db"
                )
        return super().expand(patterns, key=key)

    def read_file(self, path: Path) -> Iterator[Part]:
        """The structures of a file in parts of bounded memory; a file that cannot be read to its end is a `UserError`."""
        return read_parts(path, self)

    def self_energy_table(self) -> dict[str, float]:
        """Self-energies in eV by element symbol from the metadata of the first file of `path`; empty where it has none."""
        path = self.expand(self.path, key="dataset.path")[0]
        metadata = metadata_of(path)
        return self_energies_of(metadata, self, conventions_of_file(path, metadata, self))


def read_parts(path: Path, section: AseDatabase, *, part_atoms: int = PART_ATOMS) -> Iterator[Part]:
    """The structures of a file, part by part of about `part_atoms` atoms."""
    conventions = conventions_of_file(path, metadata_of(path), section)
    asked = {key: option in PER_ATOM_OPTIONS for option, key in section.label_keys().items()}
    request = Request(asked, conventions.of_data)
    rows = sqlite_file.read_rows(path, request) if kind_of(path) == "sqlite" else lmdb_file.read_rows(path, request)
    for some in gathered(rows, path, part_atoms):
        yield part_of(some, section, conventions)


def metadata_of(path: Path) -> dict[str, object]:
    """What the writer of a database says of it."""
    return sqlite_file.read_metadata(path) if kind_of(path) == "sqlite" else lmdb_file.read_metadata(path)


def conventions_of_file(path: Path, metadata: Mapping[str, object], section: FileSource) -> Conventions:
    """The conventions of a database."""
    told = says_units(metadata) or kind_of(path) != "sqlite"
    return conventions_of(metadata, section, path=path, only_data=not told and sqlite_file.has_only_data(path))


def kind_of(path: Path) -> Literal["sqlite", "lmdb"]:
    """Which kind of file holds a database, by how it begins."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise UserError(f"{path}: must be a file that can be read (got: {error.strerror})") from None
    if start.startswith(sqlite_file.MAGIC):
        return "sqlite"
    if start[16:20] == lmdb_file.MAGIC:
        return "lmdb"
    got = "an empty file" if not start else "something else"
    if start.lstrip().startswith(b"{"):
        got = f"JSON; convert it: ase db {path.name} --insert-into {path.stem}.db"
    elif path.suffix == ".csv":
        got = "a table without positions; use the database that it was made from"
    raise UserError(f"{path}: must be an ASE database in SQLite (.db) or LMDB (.aselmdb) (got {got})")


def gathered(rows: Iterator[Row], path: Path, part_atoms: int) -> Iterator[list[Row]]:
    """Consecutive rows of about so many atoms."""
    some: list[Row] = []
    found, atoms = False, 0
    for row in rows:
        found = True
        some.append(row)
        atoms += len(row.numbers)
        if atoms >= part_atoms:
            yield some
            some, atoms = [], 0
    if some:
        yield some
    if not found:
        raise UserError(f"{path}: must hold at least one structure (got an empty database)")


def part_of(rows: Sequence[Row], section: AseDatabase, conventions: Conventions) -> Part:
    """The structures of some rows."""
    keys = Counter(chain.from_iterable(row.keys for row in rows))
    columns = Counter(chain.from_iterable(row.columns for row in rows))
    structures, units = with_units(
        structures_of(rows, section, conventions.path),
        section,
        stated=conventions.stated,
        usual=conventions.usual(section, frozenset((*keys, *columns))),
        place=str(conventions.path),
    )
    doubles = {key for row in rows for key in row.doubles}
    for option, key in section.label_keys().items():
        label = LABEL_OF_OPTION.get(option, "")
        if key in doubles and label in units:
            units[label] += f" (of two in the row, {'the one in its data' if key in conventions.of_data else 'the first'})"
    groups = read_names(rows, section.group_key) if section.group_key else None
    return Part(structures, keys=keys, columns=columns, units=units, groups=groups)


def structures_of(rows: Sequence[Row], section: AseDatabase, path: Path) -> Structures:
    """The structures of some rows in units of the file; a gradient stands for the forces, a virial for the stress."""
    num_atoms = np.array([len(row.numbers) for row in rows])  # (R,)
    one = np.ones_like(num_atoms)  # (R,)
    cell, periodic = read_cells(rows)
    names = [name or "" for name in read_names(rows, section.subset_key)]
    subsets = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return Structures(
        num_atoms=num_atoms,
        atomic_numbers=read_numbers(rows, num_atoms),
        positions=read_positions(rows, num_atoms),
        cell=cell,
        periodic=periodic,
        energy=read_components(rows, section.energy_key, one),
        forces=in_rows(read_components(rows, section.gradient_key or section.forces_key, 3 * num_atoms), (3,)),
        stress=read_stresses(rows, section.virial_key or section.stress_key),
        total_charge=read_components(rows, section.total_charge_key, one),
        spin_multiplicity=read_components(rows, section.spin_multiplicity_key, one),
        dipole=in_rows(read_components(rows, section.dipole_key, 3 * one), (3,)),
        quadrupole=in_rows(read_components(rows, section.quadrupole_key, 9 * one), (3, 3)),
        partial_charges=read_components(rows, section.partial_charges_key, num_atoms),
        weight=read_weights(rows, section.weight_key),
        subset=np.array([subsets[name] for name in names]),
        index_in_file=np.array([row.place.index for row in rows]),
        subset_names=tuple(subsets),
        files=(str(path),),
    )
