"""A DeePMD system: a folder with the types of the atoms, their names, and sets of frames as arrays.

Legend: F frames of a set, A atoms of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers as number_of_symbol
from numpy.typing import NDArray

from modelforge.data.sources.deepmd.arrays import in_frames, mapped
from modelforge.data.structures import Array, Integers
from modelforge.errors import UserError

GEOMETRY = ("coord", "box", "real_atom_types")
PER_ATOM = ("force", "atom_pref", "atom_ener", "aparam", "drdq")


@dataclass(frozen=True, eq=False)
class FrameSet:
    """A folder `set.*` with one array for each property."""

    folder: Path
    num_frames: int
    first_index: int  # number of its first frame in the system, from 0
    names: tuple[str, ...]  # of the arrays, without .npy

    def path(self, name: str) -> Path:
        """The file of an array."""
        return self.folder / f"{name}.npy"

    def array(self, name: str, size: int | Sequence[int]) -> Array:
        """An array with one of so many values for each frame, (F, ...)."""
        return in_frames(self.path(name), self.num_frames, size)


@dataclass(frozen=True, eq=False)
class System:
    """All sets of a folder, which have the same number of atoms."""

    folder: Path
    types: Integers  # (A,) indices into `elements`
    elements: tuple[str, ...]  # names of the types
    periodic: bool
    sets: tuple[FrameSet, ...]

    @property
    def names(self) -> frozenset[str]:
        """The arrays that any set has."""
        return frozenset(name for some in self.sets for name in some.names)


def read_system(folder: Path, type_map: Sequence[str]) -> System:
    """What a folder holds; `type_map` names the types where the folder does not."""
    if not (folder / "type.raw").is_file():
        raise UserError(f"{folder}: must be the folder of a DeePMD system, with type.raw (got one without)")
    types = read_types(folder / "type.raw")
    return System(
        folder, types, read_elements(folder, type_map), not (folder / "nopbc").is_file(), tuple(read_sets(folder, len(types)))
    )


def read_types(path: Path) -> Integers:
    """The type of each atom, (A,)."""
    words = text_of(path).split()
    types = [int(word) for word in words if word.isdecimal() and word.isascii() and len(word) < 6]
    if len(types) != len(words) or not types:
        wrong = next((word for word in words if not (word.isdecimal() and word.isascii() and len(word) < 6)), "nothing")
        raise UserError(f"{path}: must be one number from 0 for each atom (got {wrong[:60]!r})")
    return np.array(types)


def read_elements(folder: Path, type_map: Sequence[str]) -> tuple[str, ...]:
    """The names of the types."""
    path = folder / "type_map.raw"
    elements = text_of(path).split() if path.is_file() else list(type_map)
    if not elements:
        raise UserError(
            f"{path}: missing or empty, so that the elements are unknown; name them in dataset.type_map, as in "
            'type_map = ["O", "H"] for the types 0 and 1'
        )
    return tuple(elements)


def text_of(path: Path) -> str:
    """The text of a small file."""
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"{path}: must be a file that can be read (got: {error.strerror})") from None


def read_sets(folder: Path, num_atoms: int) -> list[FrameSet]:
    """The sets in the order of their names, as DeePMD reads them."""
    sets: list[FrameSet] = []
    first = 0
    for path in sorted(path for path in folder.glob("set.*") if path.is_dir()):
        coordinates = path / "coord.npy"
        if not coordinates.is_file():
            raise UserError(f"{coordinates}: missing; each set needs the coordinates of its frames")
        array = mapped(coordinates)
        num_frames = 1 if array.ndim == 1 else len(array)
        in_frames(coordinates, num_frames, 3 * num_atoms)
        names = tuple(sorted(file.stem for file in path.glob("*.npy")))
        sets.append(FrameSet(path, num_frames, first, names))
        first += num_frames
    if not sets:
        raise UserError(f"{folder}: must hold a folder set.* with coord.npy (got none){_raw_remedy(folder)}")
    return sets


def _raw_remedy(folder: Path) -> str:
    if not (folder / "coord.raw").is_file():
        return ""
    kind = "LabeledSystem" if (folder / "energy.raw").is_file() else "System"
    name = folder.name
    return f"; convert its raw files: dpdata.{kind}({name!r}, fmt='deepmd/raw').to('deepmd/npy', '{name}_npy')"


def read_atomic_numbers(system: System, some: FrameSet, chosen: slice) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Atomic numbers of some frames, (F, A), and which of them are atoms and no padding, (F, A)."""
    num_frames = chosen.stop - chosen.start
    path = system.folder / "type.raw"
    types = np.broadcast_to(system.types, (num_frames, len(system.types)))  # (F, A)
    if "real_atom_types" in some.names:
        path = some.path("real_atom_types")
        array = some.array("real_atom_types", len(system.types))
        if array.dtype.kind not in "iu" or (array.dtype.kind == "u" and array.dtype.itemsize == 8):
            raise UserError(f"{path}: must be whole numbers (got the type {array.dtype})")
        types = np.ascontiguousarray(array[chosen]).astype(np.int64).reshape(num_frames, -1)  # (F, A)
    table = numbers_of_types(system, np.unique(types), path=path)
    is_atom = types >= 0
    for frame in np.flatnonzero(~is_atom.any(axis=1)).tolist():
        raise UserError(f"{path}: frame {chosen.start + frame}: must have at least one atom (got none)")
    return table[types], is_atom


def numbers_of_types(system: System, used: Integers, *, path: Path) -> NDArray[np.uint8]:
    """Atomic numbers by type, 0 for types that are not used; the last entry is that of padding, type -1."""
    table = np.zeros(len(system.elements) + 1, dtype=np.uint8)
    for number in used.tolist():
        if not -1 <= number < len(system.elements):
            raise UserError(
                f"{path}: must be types from 0 to {len(system.elements) - 1}, as there are {len(system.elements)} names "
                f"(got {number})"
            )
        if number >= 0:
            table[number] = number_of(system, number)
    return table


def number_of(system: System, number: int) -> int:
    """The atomic number of a type."""
    symbol = system.elements[number]
    if symbol == "X" or symbol not in number_of_symbol:
        path = system.folder / "type_map.raw"
        place = str(path) if path.is_file() else "dataset.type_map"
        raise UserError(f"{place}: must name elements, like O and H (got {symbol[:60]!r} for type {number})")
    return int(number_of_symbol[symbol])
