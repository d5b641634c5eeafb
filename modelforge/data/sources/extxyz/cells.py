"""Cells and periodic directions from the headers of extended XYZ.

Legend: F frames.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from modelforge.data.sources.extxyz.frames import Frames
from modelforge.data.sources.extxyz.header import numbers, truths
from modelforge.data.sources.matrices import SMALLEST_VOLUME, spanned_volume
from modelforge.data.structures import Floats
from modelforge.errors import UserError

NO_CELL = (0.0,) * 9


def read_cells(frames: Frames) -> tuple[Floats, NDArray[np.bool_]]:
    """Cells, (F, 3, 3), zeros where there is none, and periodic directions, (F, 3).

    As in ASE, a `Lattice` without `pbc` means periodic, and neither of them means a molecule.
    """
    cells, directions = [], []
    for frame, header in enumerate(frames.headers):
        lattice, pbc = header.get("Lattice"), header.get("pbc")
        try:
            cells.append(NO_CELL if lattice is None else parse_lattice(lattice))
            directions.append((lattice is not None,) * 3 if pbc is None else parse_periodic(pbc))
        except ValueError as error:
            raise UserError(f"{frames.place(frame)}: {error}") from None
    cell, periodic = np.array(cells).reshape(-1, 3, 3), np.array(directions)  # (F, 3, 3), (F, 3)
    for frame in np.flatnonzero(spanned_volume(cell, periodic) < SMALLEST_VOLUME).tolist():
        raise dependent_vectors(frames, frame, periodic[frame].tolist())
    return cell, periodic


@lru_cache(maxsize=1024)  # mostly the same in all frames
def parse_lattice(value: str) -> tuple[float, ...]:
    """The nine numbers of a `Lattice`: vector a, vector b, vector c."""
    try:
        lattice = numbers(value)
    except ValueError:
        lattice = []
    if len(lattice) != 9 or not all(map(math.isfinite, lattice)):
        raise ValueError(f"Lattice: must be 9 finite numbers (got {value or 'no value'})")
    return tuple(lattice)


@lru_cache(maxsize=1024)
def parse_periodic(value: str) -> tuple[bool, ...]:
    """The three truth values of a `pbc`, of which one may stand for all."""
    try:
        directions = truths(value)
    except KeyError:
        directions = []
    if len(directions) not in (1, 3):
        raise ValueError(f'pbc: must be three of T and F, like "T T F" (got {value})')
    return tuple(directions) * (3 // len(directions))


def dependent_vectors(frames: Frames, frame: int, periodic: list[bool]) -> UserError:
    """The error for periodic directions that do not span a cell."""
    axes = " ".join(axis for axis, repeats in zip("abc", periodic, strict=True) if repeats)
    got = frames.headers[frame].get("Lattice", "no Lattice")
    return UserError(
        f"{frames.place(frame)}: a structure that is periodic along {axes} must have a Lattice with independent "
        f'vectors there (got {got}); write pbc="F F F" if it is not periodic'
    )
