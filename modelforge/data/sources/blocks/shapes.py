"""Shapes that arrays may have, and how they become columns.

Legend: C conformations of a block, n atoms of each.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from modelforge.data.sources.matrices import VOIGT
from modelforge.data.structures import COLUMNS, Array
from modelforge.errors import UserError

Shape = tuple[int, ...]
C, N = "C", "n"
SCALAR: tuple[tuple[str | int, ...], ...] = ((C,), (C, 1))
PER_CONFORMATION: dict[str, tuple[tuple[str | int, ...], ...]] = {
    "positions": ((C, N, 3),),
    "energy": SCALAR,
    "forces": ((C, N, 3),),
    "stress": ((C, 3, 3), (C, 9), (C, 6)),
    "total_charge": SCALAR,
    "spin_multiplicity": SCALAR,
    "dipole": ((C, 3),),
    "quadrupole": ((C, 3, 3), (C, 9)),
    "partial_charges": ((C, N), (C, N, 1)),
    "weight": SCALAR,
    "cell": ((C, 3, 3), (C, 9)),
    "periodic": ((C, 3),),
    "atomic_numbers": ((C, N), (C, N, 1)),
    "name": SCALAR,
}
ONCE: dict[str, tuple[tuple[str | int, ...], ...]] = {
    "total_charge": ((), (1,)),
    "spin_multiplicity": ((), (1,)),
    "weight": ((), (1,)),
    "cell": ((3, 3), (9,)),
    "periodic": ((3,), ()),
    "atomic_numbers": ((N,), (N, 1)),
    "name": ((), (1,)),
}
"""Of what may stand once for all conformations."""

AMBIGUOUS = ((1,), (3,), (9,), (3, 3))
"""Shapes of a structure's labels that a number or a vector for each of a few atoms has, too."""


def stands_once(column: str, shape: Shape, *, num: int, num_atoms: int, place: str) -> bool:
    """Whether an array of this shape holds a column once for all conformations; another shape is a `UserError`."""
    if shape in accepted(column, num, num_atoms, once=True):
        return True
    if shape not in accepted(column, num, num_atoms, once=False):
        shapes = (*PER_CONFORMATION[column], *ONCE.get(column, ()))
        symbols = " or ".join(f"({', '.join(map(str, some))}{',' * (len(some) == 1)})" for some in shapes)
        legend = f"with C = {num} conformations" + (f" of n = {num_atoms} atoms" if N in symbols else "")
        raise UserError(f"{place}: must have the shape {symbols} {legend} (got {shape})")
    return False


@lru_cache(maxsize=4096)
def accepted(column: str, num: int, num_atoms: int, *, once: bool) -> tuple[Shape, ...]:
    """Shapes that a column of this many conformations may have."""
    sizes = {C: num, N: num_atoms}
    shapes = ONCE.get(column, ()) if once else PER_CONFORMATION[column]
    return tuple(tuple(size if isinstance(size, int) else sizes[size] for size in shape) for shape in shapes)


def as_column(column: str, values: Array, *, num: int, num_atoms: int, once: bool) -> Array:
    """Values of `num` conformations, or one for all of them, as a column, (C, ...) or (C*n, ...)."""
    home = COLUMNS[column]
    if column == "stress" and values.shape[-1] == 6:
        values = values[:, np.array(VOIGT)]
    if column == "periodic":
        values = np.broadcast_to(values, values.shape or (3,)).astype(bool)
    if once:
        values = values.reshape(1, -1).repeat(num, axis=0)
    return values.reshape(num * num_atoms if home.per_atom else num, *home.shape)


class Homes(NamedTuple):
    """Whether an array may hold something for each structure, and for each atom."""

    of_structures: bool
    of_atoms: bool


def homes_of(shape: Shape, *, num: int, num_atoms: int) -> Homes:
    """What an array that nobody asks for may be, by its shape; what a shape leaves open is listed as both."""
    of_atoms = shape[:2] == (num, num_atoms)
    return Homes(not of_atoms or shape[1:] in AMBIGUOUS, of_atoms)


def rows_of_parts(max_atoms: int, num_atoms: int, *, chunk_rows: int = 1) -> int:
    """Conformations to read at once: whole chunks, as each is unpacked anew whenever a part of it is read."""
    rows = max(1, max_atoms // max(1, num_atoms))
    if chunk_rows > rows:
        return chunk_rows if chunk_rows <= LARGEST_EXCESS * rows else rows
    return rows // chunk_rows * chunk_rows


LARGEST_EXCESS = 2
"""How many times larger than asked a part may become for the sake of chunks; beyond that the cache has to do."""


def num_bytes(shape: Shape, item: int) -> int:
    """Bytes of an array, without the overflow that huge shapes in damaged files would cause."""
    return math.prod(shape) * item


def printable(text: str) -> str:
    """A text from a file without the control characters that damaged files hold."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
