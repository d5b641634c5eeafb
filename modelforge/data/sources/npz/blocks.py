"""From the arrays of an npz file to blocks.

Legend: C conformations, n atoms of each, with those that only fill up; B atoms of all conformations without these.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelforge.data.sources.blocks.parts import GEOMETRY, Block, Contents, Names, Plan
from modelforge.data.sources.blocks.shapes import Homes, as_column, homes_of, rows_of_parts, stands_once
from modelforge.data.sources.npz.arrays import NpzFile, RowReader
from modelforge.data.structures import COLUMNS, Array, Integers
from modelforge.errors import UserError


@dataclass(frozen=True, eq=False)
class NpzReader:
    """Reads one file."""

    file: NpzFile
    plan: Plan
    unit_arrays: Mapping[str, str]  # that state the units of energy and length

    def blocks(self, max_atoms: int) -> Iterator[Block]:
        """The conformations in blocks of about so many atoms."""
        num, num_atoms = self._sizes()
        columns = self._columns(num, num_atoms)
        units, contents, names = self._units(), self._contents(num, num_atoms), self._names(num, num_atoms)
        rows = rows_of_parts(max_atoms, num_atoms)
        for first in range(0, num, rows):
            some = min(rows, num - first)
            values = {column: source.rows(some, num_atoms) for column, source in columns.items()}
            if first + some == num:
                for source in columns.values():
                    source.finish()
            num_atoms_of, values = without_fill(values, some, num_atoms, padded=not columns["atomic_numbers"].once)
            yield Block(
                str(self.file.path),
                first,
                num_atoms_of,
                values,
                units,
                contents,
                **{option: given[first : first + some] if len(given) == num else given for option, given in names.items()},
            )

    def _sizes(self) -> tuple[int, int]:
        """Numbers of conformations and atoms."""
        positions = self.file.arrays[self.plan.names["positions"]]
        shape = positions.shape
        if len(shape) != 3 or shape[2] != 3:
            raise UserError(f"{positions.place}: must have the shape (structures, atoms, 3) (got {shape})")
        if shape[0] == 0 or shape[1] == 0:
            raise UserError(f"{positions.place}: must hold at least one structure of one atom (got the shape {shape})")
        return shape[0], shape[1]

    def _columns(self, num: int, num_atoms: int) -> dict[str, "ColumnReader"]:
        """Readers of the columns that the file holds."""
        columns = {}
        for column, name in self.plan.names.items():
            if name in self.file.arrays:
                array = self.file.arrays[name]
                once = stands_once(column, array.shape, num=num, num_atoms=num_atoms, place=array.place)
                reader = self.file.reader(name, _kind(column, array.type_name))
                columns[column] = ColumnReader(column, once, reader, [reader.whole()] if once else [])
            elif column in ("cell", "periodic"):
                raise UserError(f"{self.file.path}: must hold the array {name} (dataset.{column}_key); in it: {self._listed()}")
        return columns

    def _units(self) -> dict[str, str]:
        """What the file states; units of forces and others follow from these."""
        stated = {}
        for label, name in self.unit_arrays.items():
            if name in self.file.arrays:
                texts = self.file.texts(name)
                if len(texts) != 1:
                    raise UserError(f"{self.file.arrays[name].place}: must be one text, the unit of {label} (got {len(texts)})")
                stated[label] = texts[0].strip()
        return stated

    def _contents(self, num: int, num_atoms: int) -> Contents:
        """What the file holds besides the geometry."""
        asked = {name: column for column, name in self.plan.names.items()}
        homes = {name: homes_of(array.shape, num=num, num_atoms=num_atoms) for name, array in self.file.arrays.items()}
        for name, column in asked.items():
            homes[name] = Homes(not COLUMNS[column].per_atom, COLUMNS[column].per_atom)
        others = [name for name in self.file.arrays if asked.get(name) not in GEOMETRY]
        return Contents(
            tuple(name for name in others if homes[name].of_structures), tuple(name for name in others if homes[name].of_atoms)
        )

    def _names(self, num: int, num_atoms: int) -> dict[str, Names]:
        """Names of subsets and groups, one for all conformations or one for each."""
        names: dict[str, Names] = {}
        for option, key in (("subsets", self.plan.section.subset_key), ("groups", self.plan.section.group_key)):
            if key and key in self.file.arrays:
                array = self.file.arrays[key]
                stands_once("name", array.shape, num=num, num_atoms=num_atoms, place=array.place)
                names[option] = self.file.texts(key)
        return names

    def _listed(self) -> str:
        return ", ".join(sorted(self.file.arrays))


@dataclass(frozen=True, eq=False)
class ColumnReader:
    """Reads one column."""

    column: str
    once: bool
    reader: RowReader
    whole: Sequence[Array]  # what stands once for all conformations

    def rows(self, num: int, num_atoms: int) -> Array:
        """The column of the next conformations."""
        values = self.whole[0] if self.once else self.reader.rows(num)
        return as_column(self.column, values, num=num, num_atoms=num_atoms, once=self.once)

    def finish(self) -> None:
        """Come to the end of the array."""
        if not self.once:
            self.reader.finish()


def without_fill(values: dict[str, Array], num: int, num_atoms: int, *, padded: bool) -> tuple[Integers, dict[str, Array]]:
    """Numbers of atoms (C,), and the columns without atoms whose number 0 or -1 says that they only fill up."""
    if not padded:
        return np.full(num, num_atoms), values
    numbers = values["atomic_numbers"]
    kept: NDArray[np.bool_] = (numbers != 0) & (numbers != -1)  # (C*n,)
    columns = {column: rows[kept] if COLUMNS[column].per_atom else rows for column, rows in values.items()}
    return kept.reshape(num, num_atoms).sum(axis=1), columns


def _kind(column: str, type_name: str) -> str:
    """What values a column needs; truth values may be saved as whole numbers."""
    if column == "periodic":
        return "bool" if type_name[-2:] == "b1" else "int64"
    return "int64" if column == "atomic_numbers" else "float64"
