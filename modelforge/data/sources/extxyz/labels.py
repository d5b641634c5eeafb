"""Labels and names from the headers of extended XYZ.

Legend: F frames.
"""

import math
from collections.abc import Collection

import numpy as np

from modelforge.data.sources.extxyz.frames import Frames
from modelforge.data.sources.extxyz.header import number, numbers, unquoted
from modelforge.data.sources.matrices import VOIGT, symmetric_part
from modelforge.data.structures import ABSENT, Floats, Integers
from modelforge.errors import UserError

UNIT_LABELS = ("energy", "length", "forces", "stress", "virial")


def read_energies(frames: Frames, key: str | None) -> Floats:
    """Energies in units of the file, NaN where there is none, (F,)."""
    if key is None:
        return ABSENT
    energies = np.full(len(frames), np.nan)
    for frame, header in enumerate(frames.headers):
        if key in header:
            try:
                energies[frame] = number(header[key])
            except ValueError:
                energies[frame] = np.inf
    for frame in np.flatnonzero(np.isinf(energies)).tolist():
        got = frames.headers[frame][key] or "no value"
        raise UserError(f"{frames.place(frame)}: {key}: must be one number, or nan where it is missing (got {got})")
    return energies


def read_stresses(frames: Frames, key: str | None) -> Floats:
    """Stresses in units of the file, made symmetric, NaN where there is none, (F, 3, 3)."""
    if key is None:
        return ABSENT
    components = np.full((len(frames), 9), np.nan)
    for frame, header in enumerate(frames.headers):
        if key in header:
            found = nine_components(header[key])
            if found is None:
                expected = "must be 9 numbers, or 6 in the order xx yy zz yz xz xy"
                raise UserError(f"{frames.place(frame)}: {key}: {expected} (got {header[key] or 'no value'})")
            components[frame] = found
    symmetric, asymmetric = symmetric_part(components.reshape(-1, 3, 3))
    for frame in asymmetric.tolist():
        raise UserError(f"{frames.place(frame)}: {key}: must be symmetric (got {frames.headers[frame][key]})")
    return symmetric


def nine_components(value: str) -> list[float] | None:
    """The components of one stress row by row, from 9 numbers or from 6 in Voigt's order; None where they are not."""
    try:
        components = numbers(value)
    except ValueError:
        return None
    if len(components) not in (6, 9) or math.inf in components or -math.inf in components:
        return None
    return [components[place] for place in VOIGT] if len(components) == 6 else components


def read_components(frames: Frames, key: str | None, shape: tuple[int, ...]) -> Floats:
    """A label of some components in units of the file, NaN where there is none, (F, *shape)."""
    if key is None:
        return ABSENT
    size = math.prod(shape)
    values = np.full((len(frames), size), np.nan)
    for frame, header in enumerate(frames.headers):
        if key in header:
            values[frame] = parse_components(header[key], size, place=f"{frames.place(frame)}: {key}")
    return values.reshape(len(frames), *shape)


def parse_components(value: str, size: int, *, place: str) -> Floats:
    """So many numbers, or NaN where they are missing."""
    try:
        components = np.array(numbers(value))
    except ValueError:
        components = np.empty(0)
    if components.shape != (size,) or np.isinf(components).any():
        expected = "one number" if size == 1 else f"{size} numbers"
        raise UserError(f"{place}: must be {expected}, or nan where it is missing (got {value or 'no value'})")
    return components


def read_weights(frames: Frames, key: str | None) -> Floats:
    """Weights of structures in the loss, 1 where there is none, (F,)."""
    if key is None:
        return ABSENT
    weights = read_components(frames, key, ())
    for frame in np.flatnonzero(weights < 0).tolist():
        raise UserError(f"{frames.place(frame)}: {key}: must be 0 or more (got {weights[frame]:g})")
    return np.where(np.isnan(weights), 1.0, weights)


def read_partial_charges(
    frames: Frames, key: str | None, of_columns: Floats, *, with_column: Collection[int]
) -> tuple[Floats, int]:
    """Partial charges from the columns, (N,), or from headers where a frame has no such column, and in how many it is so.

    Beside a column, a header of the same name is something else: ASE calls total and partial charges alike.
    """
    if key is None:
        return ABSENT, 0
    offsets = np.concatenate([[0], np.cumsum(frames.num_atoms)])
    found = 0
    for frame, header in enumerate(frames.headers):
        if key in header and frame not in with_column:
            count, place = frames.num_atoms[frame], f"{frames.place(frame)}: {key}"
            of_columns[offsets[frame] : offsets[frame + 1]] = parse_components(header[key], count, place=place)
            found += 1
    return of_columns, found


def read_groups(frames: Frames, key: str | None) -> list[str | None] | None:
    """The name of each frame's group, None where it has none."""
    if key is None:
        return None
    return [unquoted(header[key]) if key in header else None for header in frames.headers]


def read_subsets(frames: Frames, key: str | None) -> tuple[Integers, tuple[str, ...]]:
    """Indices into the names of subsets, (F,), and these names; "" where a header has none."""
    names = [unquoted(header[key]) if key in header else "" for header in frames.headers]
    index = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names]), tuple(index)


def stated_units(frames: Frames) -> dict[str, str]:
    """The unit that headers state for each label, "" where none does; an error where they do not agree."""
    units = {}
    for label in UNIT_LABELS:
        key = f"{label}_unit"
        stated = {unquoted(value) if value else "" for value in {header.get(key, "") for header in frames.headers}}
        if len(stated) > 1:
            raise units_differ(frames, key, stated)
        units[label] = stated.pop()
    return units


def units_differ(frames: Frames, key: str, stated: set[str]) -> UserError:
    """The error for headers that state different units, or of which only some state one."""
    words = ", ".join(repr(unit) if unit else "none" for unit in sorted(stated, reverse=True))
    return UserError(f"{frames.path}: {key}: must be stated alike in all structures, or in none (got {words})")
