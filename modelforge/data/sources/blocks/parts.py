"""Blocks: conformations that a group of an HDF5 file, or an npz file, holds in arrays; many blocks become one part.

Legend: C conformations of a block, n atoms of each, B atoms of all of them; S structures and N atoms of all blocks.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelforge.data.sources.blocks.checks import check_atomic_numbers, check_cells, check_labels, check_positions
from modelforge.data.sources.blocks.units import usual_units
from modelforge.data.sources.conversion import with_units
from modelforge.data.sources.file_source import LABEL_OF_OPTION, FileSource
from modelforge.data.sources.part import Part
from modelforge.data.structures import ABSENT, COLUMNS, Array, Integers, Structures

PART_ATOMS = 250_000
"""Atoms of a part: 25 MB with positions and forces, before and after the conversion of units."""
GEOMETRY = ("atomic_numbers", "positions", "cell", "periodic")


Names = Sequence[str | None]


@dataclass(frozen=True)
class Contents:
    """Names of what a block holds besides the geometry, for each structure and for each atom."""

    keys: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive conformations in units of the file."""

    place: str  # the file, and the group in it
    first: int  # conformation with which the block begins, counted in its group
    num_atoms: Integers  # (C,)
    columns: Mapping[str, Array]  # by column of Structures, (C, ...) or (B, ...); absent ones are missing
    units: Mapping[str, str]  # what the file states for "length" and labels, "" for those it holds without a unit
    contents: Contents
    subsets: Names = ("",)  # of each conformation, or one for all of them
    groups: Names = (None,)  # likewise

    def __len__(self) -> int:
        return len(self.num_atoms)


@dataclass(frozen=True)
class Plan:
    """What is read from a file."""

    path: Path
    section: FileSource  # with its keys as they hold for this file
    names: Mapping[str, str]  # of the arrays in the file, by column of Structures
    usual: Mapping[str, str]  # units of energy and length that the layout means where the file states none

    def label_of(self, column: str) -> str:
        """What the numbers of a column are, for their unit: the stress may be a virial, positions and cells are lengths."""
        if column in ("positions", "cell"):
            return "length"
        return "virial" if column == "stress" and self.section.virial_key else column


def wanted_names(section: FileSource) -> dict[str, str]:
    """Names of the arrays that labels and weights come from, by column."""
    columns = {**LABEL_OF_OPTION, "weight_key": "weight"}
    return {columns[option]: key for option, key in section.label_keys().items() if option in columns}


def parts_of(blocks: Iterable[Block], plan: Plan, *, max_atoms: int) -> Iterator[Part]:
    """Blocks in parts of at most so many atoms, or of one block; structures in one part have the same units."""
    batch: list[Block] = []
    units: dict[str, str] = {}
    num_atoms, index = 0, 0
    for block in blocks:
        atoms = int(block.num_atoms.sum())
        differ = any(units.get(label, unit) != unit for label, unit in block.units.items())
        if batch and (differ or num_atoms + atoms > max_atoms):
            yield part_of(batch, plan, units, first_index=index)
            index += sum(map(len, batch))
            batch, units, num_atoms = [], {}, 0
        batch.append(block)
        units.update(block.units)
        num_atoms += atoms
    if batch:
        yield part_of(batch, plan, units, first_index=index)


def part_of(blocks: Sequence[Block], plan: Plan, units: Mapping[str, str], *, first_index: int) -> Part:
    """The structures of some blocks, in eV and angstrom."""
    stated = {label: unit for label, unit in units.items() if unit}
    present = {plan.label_of(column) for block in blocks for column in block.columns}
    usual = usual_units(plan.section, present=present, stated=stated, layout=plan.usual, place=str(plan.path))
    structures = structures_of(blocks, plan, first_index=first_index)
    converted, names = with_units(structures, plan.section, stated=stated, usual=usual, place=str(plan.path))
    keys: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    for contents, num in _numbers_of_contents(blocks).items():
        keys.update(dict.fromkeys(contents.keys, num))
        columns.update(dict.fromkeys(contents.columns, num))
    return Part(
        converted, keys=dict(keys), columns=dict(columns), units=_of_present(names, present), groups=_of_each(blocks, "groups")
    )


def _of_present(units: Mapping[str, str], present: Collection[str]) -> dict[str, str]:
    """The units of labels that are there; that of a virial stands for the stress, too."""
    return {label: unit for label, unit in units.items() if label in present or (label == "stress" and "virial" in present)}


def structures_of(blocks: Sequence[Block], plan: Plan, *, first_index: int) -> Structures:
    """The structures of some blocks in units of the file; what cannot be is a `UserError` that names the structure."""
    columns = {name: _column(blocks, name) for name in (*GEOMETRY, *(name for name in plan.names if name not in GEOMETRY))}
    locate = Locator(blocks, plan, first_index)
    num_atoms = np.concatenate([block.num_atoms for block in blocks])
    check_atomic_numbers(columns["atomic_numbers"], num_atoms, locate)
    check_positions(columns["positions"], num_atoms, locate)
    labels = check_labels(columns, num_atoms, locate)
    cell, periodic = check_cells(columns["cell"], columns["periodic"], len(num_atoms), locate)
    subsets = _of_each(blocks, "subsets")
    index = {name: number for number, name in enumerate(dict.fromkeys(subsets))}
    return Structures(
        num_atoms=num_atoms,
        atomic_numbers=columns["atomic_numbers"].astype(np.uint8),
        positions=columns["positions"],
        cell=cell,
        periodic=periodic,
        subset=np.array([index[name] for name in subsets]),
        index_in_file=first_index + np.arange(len(num_atoms)),
        subset_names=tuple(map(str, index)),
        files=(str(plan.path),),
        **labels,
    )


@dataclass(frozen=True)
class Locator:
    """Names structures and what they hold in messages."""

    blocks: Sequence[Block]
    plan: Plan
    first_index: int

    def __call__(self, structure: int, column: str) -> str:
        """`x.hdf5: group 'C2H6': coordinates: structure 17 (conformation 3)` of the structure with this number in a part."""
        ends = np.cumsum([len(block) for block in self.blocks])
        number = int(np.searchsorted(ends, structure, side="right"))
        block = self.blocks[number]
        conformation = block.first + structure - int(ends[number]) + len(block)
        index = self.first_index + structure
        own = f" (conformation {conformation})" if block.place != str(self.plan.path) else ""
        return f"{block.place}: {self.plan.names[column]}: structure {index}{own}"


def _column(blocks: Sequence[Block], name: str) -> Array:
    """A column of all blocks, ABSENT where none has it."""
    column = COLUMNS[name]
    if not any(name in block.columns for block in blocks):
        return ABSENT
    values: list[Array] = []
    for block in blocks:
        num = int(block.num_atoms.sum()) if column.per_atom and name not in block.columns else len(block)
        values.append(block.columns[name] if name in block.columns else column.absent(num))
    return values[0] if len(values) == 1 else np.concatenate(values)


def _of_each(blocks: Sequence[Block], attribute: str) -> list[str | None]:
    """Subsets or groups of all structures."""
    names: list[str | None] = []
    for block in blocks:
        some: Names = getattr(block, attribute)
        names.extend(some if len(some) == len(block) else [some[0]] * len(block))
    return names


def _numbers_of_contents(blocks: Sequence[Block]) -> Counter[Contents]:
    """How many structures have which contents."""
    numbers: Counter[Contents] = Counter()
    for block in blocks:
        numbers[block.contents] += len(block)
    return numbers
