"""The atom lines of extended XYZ as arrays: atomic numbers, positions, forces.

The lines of all frames with the same columns go through numpy's text parser at once: it is compiled, exact to the last
bit, and refuses lines with a word too many or too few. Where it fails, the lines are gone through one by one to find
the first culprit.

Legend: F frames, N atoms of all of them.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from ase.data import atomic_numbers as ase_atomic_numbers
from ase.data import chemical_symbols
from numpy.typing import NDArray

from modelforge.data.sources.extxyz.frames import Frames, shown
from modelforge.data.sources.extxyz.header import unquoted
from modelforge.data.structures import Floats, ragged_arange
from modelforge.errors import UserError

ATOMIC_NUMBERS = {symbol: number for symbol, number in ase_atomic_numbers.items() if number > 0}
LARGEST_ATOMIC_NUMBER = len(chemical_symbols) - 1
DEFAULT_PROPERTIES = "species:S:1:pos:R:3"
COLUMN_TYPES = ("S", "R", "I", "L")
LINE_MARKS = (b"\r", b"\v", b"\f", b"\x1c", b"\x1d", b"\x1e")
SPECIES_WORD = np.dtype("S8")  # longer words lose their end, and are no element before and after
UNUSED_WORD = np.dtype("S1")


@dataclass(frozen=True)
class Columns:
    """Some neighbouring columns with one name."""

    first: int
    width: int


@dataclass(frozen=True)
class Layout:
    """What the words of an atom line mean."""

    num_columns: int
    columns: dict[str, Columns]

    def find(self, *names: str, width: int) -> int | None:
        """First column of the first of the names that occurs; its width is checked."""
        for name in names:
            if name in self.columns:
                found = self.columns[name]
                if found.width != width:
                    raise ValueError(f"must have {width} columns for {name!r} (got {found.width})")
                return found.first
        return None


@dataclass(frozen=True)
class Wanted:
    """The first columns of what is to be read; the species are symbols or atomic numbers."""

    num_columns: int
    species: int
    species_are_symbols: bool
    positions: int
    forces: int | None
    charges: int | None

    @property
    def dtype(self) -> np.dtype[np.void]:
        """An atom line as a record, in which the columns that nobody wants have names like `f7`."""
        records: dict[int, tuple[str, object, int]] = {
            self.species: ("species", SPECIES_WORD, 1),
            self.positions: ("positions", np.float64, 3),
        }
        if self.forces is not None:
            records[self.forces] = ("forces", np.float64, 3)
        if self.charges is not None:
            records[self.charges] = ("partial_charges", np.float64, 1)
        fields, column = [], 0
        while column < self.num_columns:
            name, kind, width = records.get(column, (f"f{column}", UNUSED_WORD, 1))
            fields.append((name, kind) if width == 1 else (name, kind, (width,)))
            column += width
        return np.dtype(fields)


@dataclass(frozen=True, eq=False)
class AtomTable:
    """The atoms of frames, in units of the file; NaN where a frame has no column of a label."""

    atomic_numbers: NDArray[np.uint8]  # (N,)
    positions: Floats  # (N, 3)
    forces: Floats  # (N, 3)
    partial_charges: Floats  # (N,)


@cache
def parse_layout(properties: str) -> Layout:
    """Parse `name:type:width:name:type:width...`."""
    words = properties.split(":")
    columns: dict[str, Columns] = {}
    first = 0
    for name, kind, width in zip(words[::3], words[1::3], words[2::3], strict=False):
        if name in columns or kind not in COLUMN_TYPES or not width.isdecimal() or int(width) < 1:
            break
        columns[name] = Columns(first, int(width))
        first += int(width)
    if 3 * len(columns) != len(words):
        raise ValueError(f"must be name:type:width, with types S, R, I, L and each name once (got {properties!r})")
    return Layout(first, columns)


@cache
def wanted_columns(properties: str, forces_key: str | None, charges_key: str | None) -> Wanted:
    """Find the columns to read, under the names that ASE knows; numbers go before symbols, as in ASE."""
    layout = parse_layout(properties)
    numbers = layout.find("Z", "numbers", width=1)
    symbols = layout.find("species", "symbols", width=1)
    positions = layout.find("pos", "positions", width=3)
    species = symbols if numbers is None else numbers
    if species is None or positions is None:
        raise ValueError(f"must name the columns species (or Z) and pos (got {properties!r})")
    forces = layout.find(forces_key, width=3) if forces_key else None
    if forces == positions:
        raise ValueError(f"the forces must be other columns than the positions (got {forces_key!r} for both)")
    charges = layout.find(charges_key, width=1) if charges_key else None
    if charges == species:
        raise ValueError(f"the partial charges must be another column than the elements (got {charges_key!r} for both)")
    return Wanted(layout.num_columns, species, numbers is None, positions, forces, charges)


def frames_by_properties(frames: Frames) -> dict[str, list[int]]:
    """The frames that have the same columns, for each set of columns."""
    spelled: dict[str, list[int]] = {}
    for frame, header in enumerate(frames.headers):
        spelled.setdefault(header.get("Properties", DEFAULT_PROPERTIES), []).append(frame)
    chosen: dict[str, list[int]] = {}
    for properties, members in spelled.items():
        chosen[unquoted(properties)] = sorted(chosen.get(unquoted(properties), []) + members)
    return chosen


def frames_with_column(chosen: dict[str, list[int]], name: str | None) -> set[int]:
    """The frames that have a column of this name."""
    return {frame for properties, members in chosen.items() if name in parse_layout(properties).columns for frame in members}


def read_atoms(
    frames: Frames, chosen: dict[str, list[int]], *, forces_key: str | None, charges_key: str | None = None
) -> AtomTable:
    """The atoms of all frames; `chosen` divides the frames by their columns."""
    if len(chosen) == 1:  # as nearly always
        (properties, members), *_ = chosen.items()
        return read_atoms_of(frames, members, properties=properties, forces_key=forces_key, charges_key=charges_key)
    num_atoms = np.array(frames.num_atoms)
    first_atom = np.cumsum(num_atoms) - num_atoms
    total = int(num_atoms.sum())
    table = AtomTable(np.zeros(total, np.uint8), *(np.full(shape, np.nan) for shape in ((total, 3), (total, 3), (total,))))
    for properties, members in chosen.items():
        atoms = ragged_arange(first_atom[members], num_atoms[members])
        part = read_atoms_of(frames, members, properties=properties, forces_key=forces_key, charges_key=charges_key)
        table.atomic_numbers[atoms] = part.atomic_numbers
        table.positions[atoms] = part.positions
        table.forces[atoms] = part.forces
        table.partial_charges[atoms] = part.partial_charges
    return table


def read_atoms_of(
    frames: Frames, members: list[int], *, properties: str, forces_key: str | None, charges_key: str | None
) -> AtomTable:
    """The atoms of some frames with the same columns."""
    try:
        wanted = wanted_columns(properties, forces_key, charges_key)
    except ValueError as error:
        raise UserError(f"{frames.place(members[0])}: Properties: {error}") from None
    try:
        return parse_atoms([line for frame in members for line in frames.atom_lines(frame)], wanted)
    except (ValueError, KeyError):
        raise first_fault(frames, members, wanted) from None


def parse_atoms(lines: list[bytes], wanted: Wanted) -> AtomTable:
    """Parse atom lines; any fault in one of them is a `ValueError` or a `KeyError`."""
    if lines[0].isspace():  # numpy warns where all lines are blank
        raise ValueError
    records = np.loadtxt(lines, dtype=wanted.dtype, comments=None, encoding="utf-8", ndmin=1)
    positions = np.ascontiguousarray(records["positions"])
    forces = np.full_like(positions, np.nan) if wanted.forces is None else np.ascontiguousarray(records["forces"])
    charges = np.full(len(records), np.nan) if wanted.charges is None else records["partial_charges"].copy()
    if len(records) != len(lines) or not np.isfinite(positions).all() or np.isinf(forces).any() or np.isinf(charges).any():
        raise ValueError
    species = records["species"].copy()
    return AtomTable(atomic_numbers(species, are_symbols=wanted.species_are_symbols), positions, forces, charges)


def atomic_numbers(species: NDArray[np.bytes_], *, are_symbols: bool) -> NDArray[np.uint8]:
    """Atomic numbers of words that are symbols, in any case, or numbers; (N,) to (N,)."""
    words, index = np.unique(species.view(np.uint64), return_inverse=True)  # faster to compare than bytes
    texts = [word.decode() for word in words.view(SPECIES_WORD).tolist()]
    numbers = [ATOMIC_NUMBERS[text.capitalize()] if are_symbols else int(text) for text in texts]
    if not 1 <= min(numbers) <= max(numbers) <= LARGEST_ATOMIC_NUMBER:
        raise ValueError
    return np.array(numbers, dtype=np.uint8)[index]


def first_fault(frames: Frames, members: list[int], wanted: Wanted) -> UserError:
    """The error of the first line that is at fault."""
    for frame in members:
        for atom, line in enumerate(frames.atom_lines(frame)):
            if fault := fault_in_line(line, wanted):
                return UserError(f"{frames.place(frame, atom)}: {fault} (got {shown(line)})")
    raise AssertionError("all lines are in order one by one, but not together")


def fault_in_line(line: bytes, wanted: Wanted) -> str | None:
    """What is wrong with an atom line, None if nothing is."""
    if any(mark in line.rstrip() for mark in LINE_MARKS):
        return "must be one line of text, has a control character that begins a new one"
    words = line.decode(errors="replace").split()
    if len(words) != wanted.num_columns:
        return f"must have the {wanted.num_columns} columns that Properties announces, has {len(words)}"
    if not is_species(words[wanted.species], wanted):
        kind = "an element symbol" if wanted.species_are_symbols else f"an atomic number, 1 to {LARGEST_ATOMIC_NUMBER},"
        return f"must have {kind} in column {wanted.species + 1}, has {words[wanted.species]!r}"
    for column in range(wanted.positions, wanted.positions + 3):
        if not math.isfinite(as_number(words[column])):
            return f"must have a finite coordinate in column {column + 1}, has {words[column]!r}"
    columns = () if wanted.forces is None else tuple(range(wanted.forces, wanted.forces + 3))
    for column in columns if wanted.charges is None else (*columns, wanted.charges):
        if math.isinf(as_number(words[column])):
            return f"must have a number, or nan where it is missing, in column {column + 1}, has {words[column]!r}"
    return None if is_utf8(line) else "must be text in UTF-8"


def is_species(word: str, wanted: Wanted) -> bool:
    """Whether a word is an element."""
    try:
        atomic_numbers(np.array([word.encode()], SPECIES_WORD), are_symbols=wanted.species_are_symbols)
    except (ValueError, KeyError):
        return False
    return True


def as_number(word: str) -> float:
    """The number of a word, infinity if it is none."""
    try:
        return math.inf if "_" in word else float(word)
    except ValueError:
        return math.inf


def is_utf8(line: bytes) -> bool:
    """Whether a line can be decoded."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
