"""Geometries and labels of rows as columns.

Legend: R rows that were read together, N atoms of all of them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from modelforge.data.sources.ase_database.rows import Row
from modelforge.data.sources.ase_database.values import numbers_of, shown
from modelforge.data.sources.matrices import SMALLEST_VOLUME, as_matrix, spanned_volume, symmetric_part
from modelforge.data.structures import ABSENT, Floats, Integers
from modelforge.errors import UserError

LARGEST = 1e30
"""Of all numbers in whatever unit: beyond that the bytes are damaged, and squares and units would overflow."""


def read_numbers(rows: Sequence[Row], num_atoms: Integers) -> NDArray[np.uint8]:
    """Atomic numbers, (N,)."""
    numbers = np.concatenate([row.numbers for row in rows])  # (N,)
    for atom in np.flatnonzero(~((numbers >= 1) & (numbers <= 118))).tolist():
        raise UserError(
            f"{place_of(rows, num_atoms, atom)}: numbers: must be atomic numbers from 1 to 118 (got {numbers[atom]:g})"
        )
    return numbers.astype(np.uint8)


def read_positions(rows: Sequence[Row], num_atoms: Integers) -> Floats:
    """Positions, (N, 3)."""
    positions = np.concatenate([row.positions for row in rows]).astype(np.float64).reshape(-1, 3)  # (N, 3)
    for atom in np.flatnonzero(~(np.abs(positions) < LARGEST).all(axis=1)).tolist():
        raise UserError(f"{place_of(rows, num_atoms, atom)}: positions: must be finite numbers (got {shown(positions[atom])})")
    return positions


def place_of(rows: Sequence[Row], num_atoms: Integers, atom: int) -> str:
    """The place of the row that an atom belongs to."""
    return str(rows[int(np.searchsorted(np.cumsum(num_atoms), atom, side="right"))].place)


def read_cells(rows: Sequence[Row]) -> tuple[Floats, NDArray[np.bool_]]:
    """Cells, (R, 3, 3), zeros where there is none, and periodic directions, (R, 3)."""
    cell = np.stack([row.cell for row in rows]).reshape(-1, 3, 3)  # (R, 3, 3)
    periodic = np.array([row.periodic for row in rows])[:, None] & [1, 2, 4] != 0  # (R, 3)
    for index in np.flatnonzero(~(np.abs(cell) < LARGEST).all(axis=(1, 2))).tolist():
        raise UserError(f"{rows[index].place}: cell: must be finite numbers (got {shown(cell[index])})")
    for index in np.flatnonzero(spanned_volume(cell, periodic) < SMALLEST_VOLUME).tolist():
        axes = " ".join(axis for axis, repeats in zip("abc", periodic[index], strict=True) if repeats)
        raise UserError(
            f"{rows[index].place}: cell: must have independent vectors along {axes}, where the structure is periodic "
            f"(got {shown(cell[index])}); write pbc = False if it is not periodic"
        )
    return cell, periodic


def read_components(rows: Sequence[Row], key: str | None, sizes: Integers) -> Floats:
    """A label of so many numbers for each row, one row's after the other, NaN where it is missing, (sum of sizes,)."""
    if key is None:
        return ABSENT
    values = np.full(int(sizes.sum()), np.nan)
    begin = 0
    for row, size in zip(rows, sizes.tolist(), strict=True):
        value = row.values.get(key)
        if value is not None:
            values[begin : begin + size] = components_of(value, (size,), row, key)
        begin += size
    values[np.isnan(values)] = np.nan  # among damaged bytes there are NaNs that arithmetic complains about
    for number in np.flatnonzero(np.abs(values) >= LARGEST).tolist():
        raise UserError(f"{place_of(rows, sizes, number)}: {key}: {expected(())} (got {values[number]:g})")
    return values


def in_rows(values: Floats, shape: tuple[int, ...]) -> Floats:
    """The numbers of a label as rows of one shape."""
    return values if values is ABSENT else values.reshape(-1, *shape)


def components_of(value: object, sizes: tuple[int, ...], row: Row, key: str) -> Floats:
    """The numbers of a label, as many as one of `sizes` says; NaN stands for a missing one."""
    numbers = numbers_of(value)
    if numbers is None or len(numbers) not in sizes:
        got = shown(value) if numbers is None or len(numbers) == 1 else f"{len(numbers)} numbers"
        raise UserError(f"{row.place}: {key}: {expected(sizes)} (got {got})")
    return numbers


def expected(sizes: tuple[int, ...]) -> str:
    """What a label has to be; without sizes, what its numbers have to be."""
    numbers = " or ".join("one number" if size == 1 else f"{size} numbers" for size in sizes)
    return f"must be {numbers or 'finite numbers'}, or nan where it is missing"


def read_stresses(rows: Sequence[Row], key: str | None) -> Floats:
    """Stresses or virials in units of the file, made symmetric, NaN where they are missing, (R, 3, 3)."""
    if key is None:
        return ABSENT
    stress = np.full((len(rows), 3, 3), np.nan)
    for index, row in enumerate(rows):
        value = row.values.get(key)
        if value is not None:
            stress[index] = as_matrix(components_of(value, (6, 9), row, key))
    stress[np.isnan(stress)] = np.nan
    return symmetric(stress, lambda index: f"{rows[index].place}: {key}")


def symmetric(stress: Floats, place: Callable[[int], str]) -> Floats:
    """Stresses without the asymmetry of rounding, (R, 3, 3); more of it, or what is no number, is an error."""
    for index in np.flatnonzero((np.abs(stress) >= LARGEST).any(axis=(1, 2))).tolist():
        raise UserError(f"{place(index)}: {expected(())} (got {shown(stress[index])})")
    mean, asymmetric = symmetric_part(stress)
    for index in asymmetric.tolist():
        raise UserError(f"{place(index)}: must be symmetric (got {shown(stress[index])})")
    return mean


def read_weights(rows: Sequence[Row], key: str | None) -> Floats:
    """Weights of structures in the loss, 1 where there is none, (R,)."""
    weights = read_components(rows, key, np.ones(len(rows), dtype=np.int64))
    for index in np.flatnonzero(weights < 0).tolist():
        raise UserError(f"{rows[index].place}: {key}: must be 0 or more (got {weights[index]:g})")
    return ABSENT if key is None else np.where(np.isnan(weights), 1.0, weights)


def read_names(rows: Sequence[Row], key: str | None) -> list[str | None]:
    """The name that each row has at a key, None where there is none."""
    return [None if key is None else name_of(row, key) for row in rows]


def name_of(row: Row, key: str) -> str | None:
    """A text, or a number as text."""
    value = row.values.get(key)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise UserError(f"{row.place}: {key}: must be a name or a number (got {shown(value)})")
    return str(value).encode(errors="replace").decode()
