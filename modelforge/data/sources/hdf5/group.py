"""From one group of an HDF5 file to blocks.

Legend: C conformations, n atoms of each, M molecules that share a group of the modelforge layout.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from modelforge.data.sources.blocks.parts import Block, Contents, Names, Plan
from modelforge.data.sources.blocks.shapes import Homes, Shape, as_column, homes_of, rows_of_parts, stands_once
from modelforge.data.sources.hdf5.file import Hdf5Array, Hdf5Group, shown
from modelforge.data.sources.hdf5.layouts import Layout
from modelforge.data.structures import COLUMNS, LABELS, Array, Integers
from modelforge.errors import UserError

GROUPED = ("grouped_names", "grouped_n_configs")


@dataclass(frozen=True)
class GroupReader:
    """Reads groups of one file, of which many hold the same names."""

    plan: Plan
    layout: Layout
    max_atoms: int
    _contents: dict[tuple[bytes, ...], Contents] = field(default_factory=dict)

    def blocks(self, group: Hdf5Group) -> Iterator[Block]:
        """The conformations of a group, in blocks of bounded size."""
        names = self.plan.names
        for needed in (names["atomic_numbers"], names["positions"]):
            if not group.holds(needed):
                raise UserError(
                    f"{group.place}: must hold {needed!r}; in it: {', '.join(map(shown, group.names)) or 'nothing'}"
                )
        arrays = {column: group.array(name) for column, name in names.items() if group.holds(name)}
        yield from self._blocks(OpenGroup(group, arrays, *_sizes(arrays["positions"])))

    def _blocks(self, opened: "OpenGroup") -> Iterator[Block]:
        group, num = opened.group, opened.num
        opened.check_counts()
        molecules = molecules_of(opened) if group.holds(GROUPED[0]) else None
        rows = rows_of_parts(self.max_atoms, opened.num_atoms, chunk_rows=opened.chunk_rows(self.max_atoms))
        once = {column: opened.is_once(column) for column in opened.arrays if molecules is None or column != "atomic_numbers"}
        units = {self.plan.label_of(column): self._unit(array) for column, array in opened.arrays.items() if _has_unit(column)}
        contents = self._contents_of(opened)
        subsets, groups = self._names(opened, "subset_key", molecules), self._groups(opened, molecules)
        whole = {column: opened.read(column) for column, stands in once.items() if stands}
        for first in range(0, num, rows):
            last = min(first + rows, num)
            columns = {column: opened.column(column, first, last, whole) for column in once}
            if molecules is not None:
                columns["atomic_numbers"] = molecules.atomic_numbers[molecules.index[first:last]].reshape(-1)
            yield Block(
                group.place,
                first,
                np.full(last - first, opened.num_atoms),
                columns,
                units,
                contents,
                _some(subsets or ("",), first, last, num),
                _some(groups, first, last, num),
            )

    def _unit(self, array: Hdf5Array) -> str:
        return array.text_attribute(self.layout.unit_attribute)

    def _groups(self, opened: "OpenGroup", molecules: "Molecules | None") -> Names:
        """Names of the groups by which data are split, one for all conformations or one for each."""
        if self.plan.section.group_key:
            return self._names(opened, "group_key", molecules) or (None,)
        if molecules is not None:
            return [molecules.names[index] for index in molecules.index.tolist()]
        return (opened.group.name,) if self.layout.groups_are_kin else (None,)

    def _names(self, opened: "OpenGroup", option: str, molecules: "Molecules | None") -> Sequence[str]:
        """Texts that the dataset of an option holds, one for all conformations or one for each; none where it is not there."""
        key = getattr(self.plan.section, option)
        if not key or not opened.group.holds(key):
            return ()
        array = opened.group.array(key)
        if molecules is not None and array.shape in [(len(molecules.names),), (len(molecules.names), 1)]:
            texts = array.texts()
            return [texts[index] for index in molecules.index.tolist()]
        stands_once("name", array.shape, num=opened.num, num_atoms=opened.num_atoms, place=array.place)
        return array.texts()

    def _contents_of(self, opened: "OpenGroup") -> Contents:
        """What a group holds besides the geometry; looked up once for all groups with the same names."""
        names = opened.group.names
        if names not in self._contents:
            structural = {self.plan.names[column] for column in ("atomic_numbers", "positions")} | {*self.layout.structural}
            others = [name for name in names if shown(name) not in structural]
            homes = {shown(name): self._homes(opened, name) for name in others}
            self._contents[names] = Contents(
                tuple(name for name, home in homes.items() if home.of_structures),
                tuple(name for name, home in homes.items() if home.of_atoms),
            )
        return self._contents[names]

    def _homes(self, opened: "OpenGroup", name: bytes) -> Homes:
        """What a dataset holds something for: by the option that asks for it, as the file says, or by its shape."""
        for column, key in self.plan.names.items():
            if key.encode() == name:
                return Homes(not COLUMNS[column].per_atom, COLUMNS[column].per_atom)
        try:
            array = opened.group.array(name)
            stated = array.text_attribute("format") if self.layout.name == "modelforge" else ""
        except UserError:  # nobody asks for it
            return Homes(True, False)
        if stated:
            return Homes(stated != "per_atom", stated == "per_atom")
        return homes_of(array.shape, num=opened.num, num_atoms=opened.num_atoms)


@dataclass(frozen=True, eq=False)
class OpenGroup:
    """A group with the arrays that are asked for."""

    group: Hdf5Group
    arrays: Mapping[str, Hdf5Array]  # by column
    num: int  # of conformations
    num_atoms: int

    def check_counts(self) -> None:
        """Arrays hold numbers, and as many conformations as the group says where it says it."""
        if self.num_atoms == 0:
            raise UserError(f"{self.arrays['positions'].place}: must have at least one atom (got the shape {self._shape})")
        for column, array in self.arrays.items():
            array.check_is("int64" if column == "atomic_numbers" else "float64")
        if self.group.holds("n_configs"):
            stated = self.group.array("n_configs")
            stated.check_is("int64")
            if stated.whole("int64").ravel().tolist() != [self.num]:
                raise UserError(
                    f"{self.arrays['positions'].place}: must have the {stated.whole('int64').ravel().tolist()} conformations "
                    f"that n_configs states (got the shape {self._shape})"
                )

    @property
    def _shape(self) -> Shape:
        return self.arrays["positions"].shape

    def is_once(self, column: str) -> bool:
        """Whether a column stands once for all conformations."""
        array = self.arrays[column]
        return stands_once(column, array.shape, num=self.num, num_atoms=self.num_atoms, place=array.place)

    def read(self, column: str) -> Array:
        """All of a column."""
        return self.arrays[column].whole("int64" if column == "atomic_numbers" else "float64")

    def column(self, column: str, first: int, last: int, whole: Mapping[str, Array]) -> Array:
        """A column of the conformations first to last (exclusive)."""
        dtype = "int64" if column == "atomic_numbers" else "float64"
        values = whole[column] if column in whole else self.arrays[column].rows(first, last, dtype)
        return as_column(column, values, num=last - first, num_atoms=self.num_atoms, once=column in whole)

    def chunk_rows(self, max_atoms: int) -> int:
        """Conformations of a chunk of the positions, if not all conformations are read at once."""
        return self.arrays["positions"].chunk_rows() if self.num * self.num_atoms > max_atoms else 1


@dataclass(frozen=True, eq=False)
class Molecules:
    """Molecules of a group that holds several."""

    names: Sequence[str]  # M
    index: Integers  # (C,) of each conformation's molecule
    atomic_numbers: Integers  # (M, n)


def molecules_of(opened: OpenGroup) -> Molecules:
    """The molecules of a group of the modelforge layout with several of them."""
    group, array = opened.group, opened.arrays["atomic_numbers"]
    names = group.array("grouped_names").texts()
    counts = _integers(group, "grouped_n_configs", len(names))
    if array.shape not in [(len(names), opened.num_atoms), (len(names), opened.num_atoms, 1)]:
        raise UserError(
            f"{array.place}: must have the shape ({len(names)}, {opened.num_atoms}, 1), of the molecules in grouped_names and "
            f"the atoms in positions (got {array.shape})"
        )
    if (counts < 0).any() or sum(counts.tolist()) != opened.num:
        raise UserError(
            f"{group.place}: grouped_n_configs: must sum up to the {opened.num} conformations of positions "
            f"(got {counts.tolist()})"
        )
    index = np.repeat(np.arange(len(names)), counts)
    if group.holds("grouped_indices"):
        index = _integers(group, "grouped_indices", opened.num)
        in_range = ((index >= 0) & (index < len(names))).all()
        if not in_range or (np.bincount(index, minlength=len(names)) != counts).any():
            raise UserError(f"{group.place}: grouped_indices: must name each molecule as often as grouped_n_configs says")
    return Molecules(names, index, opened.read("atomic_numbers").reshape(len(names), opened.num_atoms))


def _integers(group: Hdf5Group, name: str, num: int) -> Integers:
    """So many whole numbers."""
    array = group.array(name)
    array.check_is("int64")
    if array.shape not in [(num,), (num, 1)]:
        raise UserError(f"{array.place}: must have the shape ({num},) (got {array.shape})")
    values: Integers = array.whole("int64").reshape(num)
    return values


def _sizes(positions: Hdf5Array) -> tuple[int, int]:
    """Numbers of conformations and atoms."""
    if len(positions.shape) != 3 or positions.shape[2] != 3:
        raise UserError(f"{positions.place}: must have the shape (conformations, atoms, 3) (got {positions.shape})")
    return positions.shape[0], positions.shape[1]


def _has_unit(column: str) -> bool:
    return column == "positions" or column in LABELS


def _some(names: Names, first: int, last: int, num: int) -> Names:
    """Those of some conformations, or the one of all."""
    return names[first:last] if len(names) == num else names
