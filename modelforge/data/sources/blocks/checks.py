"""Checks of what arrays hold: a fault is one `UserError` that names the file, the array and the structure.

Legend: S structures, N atoms of all of them.
"""

from collections.abc import Callable, Mapping

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from modelforge.data.sources.matrices import SMALLEST_VOLUME, spanned_volume, symmetric_part
from modelforge.data.structures import ABSENT, COLUMNS, LABELS, Array, Floats, Integers
from modelforge.errors import UserError

LARGEST_ATOMIC_NUMBER = len(chemical_symbols) - 1
LARGEST = 1e30
"""Of all numbers in whatever unit: beyond that the bytes are damaged, and squares and units would overflow."""

Locate = Callable[[int, str], str]
"""The place in a file of a structure and one of its columns."""


def check_atomic_numbers(numbers: Integers, num_atoms: Integers, locate: Locate) -> None:
    """Atomic numbers (N,) are those of elements, and every structure has atoms."""
    for structure in np.flatnonzero(num_atoms == 0).tolist():
        raise UserError(f"{locate(structure, 'atomic_numbers')}: must have at least one atom (got none)")
    if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= LARGEST_ATOMIC_NUMBER:
        atom = int(np.argmax((numbers < 1) | (numbers > LARGEST_ATOMIC_NUMBER)))
        raise UserError(
            f"{locate(_structure_of(atom, num_atoms), 'atomic_numbers')}: must be atomic numbers from 1 to "
            f"{LARGEST_ATOMIC_NUMBER} (got {numbers[atom]})"
        )


def check_positions(positions: Floats, num_atoms: Integers, locate: Locate) -> None:
    """Positions (N, 3) are numbers."""
    wrong = ~(np.abs(positions) < LARGEST)  # (N, 3), also where they are NaN
    if wrong.any():
        atom, axis = np.argwhere(wrong)[0].tolist()
        place = locate(_structure_of(atom, num_atoms), "positions")
        raise UserError(f"{place}: must be finite numbers for all atoms (got {positions[atom, axis]:g})")


def check_labels(columns: Mapping[str, Array], num_atoms: Integers, locate: Locate) -> dict[str, Array]:
    """The columns of labels and weights; their numbers are finite, or NaN where they are missing."""
    labels = {name: columns[name] for name in (*LABELS, "weight") if name in columns}
    for name, values in labels.items():
        wrong = np.abs(values) >= LARGEST
        if wrong.any():
            place = np.argwhere(wrong)[0]
            row, got = int(place[0]), values[tuple(place)]
            structure = _structure_of(row, num_atoms) if COLUMNS[name].per_atom else row
            raise UserError(f"{locate(structure, name)}: must be finite, or NaN where it is missing (got {got:g})")
    if labels.get("stress", ABSENT) is not ABSENT:
        labels["stress"] = _symmetric(labels["stress"], locate)
    if labels.get("weight", ABSENT) is not ABSENT:
        labels["weight"] = _weights(labels["weight"], locate)
    return labels


def check_cells(cell: Floats, periodic: NDArray[np.bool_], num: int, locate: Locate) -> tuple[Floats, NDArray[np.bool_]]:
    """Cells (S, 3, 3) and periodic directions (S, 3): a cell alone means periodic, neither of them means a molecule."""
    cells = np.zeros((num, 3, 3)) if cell is ABSENT else cell
    finite, has_cell = np.asarray((np.abs(cells) < LARGEST).all(axis=(1, 2))), np.asarray(cells.any(axis=(1, 2)))  # (S,)
    for structure in np.flatnonzero(~finite).tolist():
        raise UserError(f"{locate(structure, 'cell')}: must be 9 finite numbers")
    directions = np.repeat(has_cell[:, None], 3, axis=1) if periodic is ABSENT else periodic  # (S, 3)
    if not directions.any():
        return cells, directions
    for structure in np.flatnonzero(spanned_volume(cells, directions) < SMALLEST_VOLUME).tolist():
        place = locate(structure, "periodic" if cell is ABSENT else "cell")
        raise UserError(f"{place}: a periodic structure must have a cell with independent vectors (dataset.cell_key)")
    return cells, directions


def _symmetric(stress: Floats, locate: Locate) -> Floats:
    """Stresses without the asymmetry of rounding; more of it is an error."""
    mean, asymmetric = symmetric_part(stress)
    for structure in asymmetric.tolist():
        raise UserError(f"{locate(structure, 'stress')}: must be symmetric (got {stress[structure].ravel().tolist()})")
    return mean


def _weights(weights: Floats, locate: Locate) -> Floats:
    for structure in np.flatnonzero(weights < 0).tolist():
        raise UserError(f"{locate(structure, 'weight')}: must be 0 or more (got {weights[structure]:g})")
    return np.where(np.isnan(weights), 1.0, weights)


def _structure_of(atom: int, num_atoms: Integers) -> int:
    """The structure that owns an atom."""
    return int(np.searchsorted(np.cumsum(num_atoms), atom, side="right"))
