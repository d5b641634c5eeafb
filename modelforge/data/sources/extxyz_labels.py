"""Labels and names from the headers of extended XYZ.

Legend: F frames.
"""

import numpy as np

from modelforge.data.sources.extxyz_frames import Frames
from modelforge.data.sources.extxyz_header import number, numbers, unquoted
from modelforge.data.structures import Floats, Integers
from modelforge.errors import UserError

VOIGT = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]  # where xx xy xz, ... stand in xx yy zz yz xz xy
LARGEST_ASYMMETRY = 1e-2  # of a stress, relative to its largest component: more is no rounding
NOISE = 1e-6  # in any unit: below that, a stress may be as asymmetric as it likes


def read_energies(frames: Frames, key: str) -> Floats:
    """Energies in units of the file, NaN where there is none, (F,)."""
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
    """Stresses in units of the file, NaN where there is none, (F, 3, 3)."""
    stress = np.full((len(frames), 3, 3), np.nan)
    for frame, header in enumerate(frames.headers if key else ()):
        if key in header:
            stress[frame] = parse_stress(header[key], place=f"{frames.place(frame)}: {key}")
    return stress


def parse_stress(value: str, *, place: str) -> Floats:
    """The stress of one frame in units of the file, made symmetric, (3, 3)."""
    try:
        components = np.array(numbers(value))
    except ValueError:
        components = np.empty(0)
    if components.shape not in [(6,), (9,)] or np.isinf(components).any():
        raise UserError(f"{place}: must be 9 numbers, or 6 in the order xx yy zz yz xz xy (got {value or 'no value'})")
    stress: Floats = components[VOIGT] if len(components) == 6 else components.reshape(3, 3)
    if np.abs(stress - stress.T).max() > LARGEST_ASYMMETRY * np.abs(stress).max() + NOISE:
        raise UserError(f"{place}: must be symmetric (got {value})")
    return (stress + stress.T) / 2


def read_groups(frames: Frames, key: str, groups: dict[str | int, int]) -> Integers:
    """Group numbers, (F,); `groups` numbers the groups of all frames and grows.

    A frame without a group name gets a number of its own, whose name is the number.
    """
    return np.array(
        [groups.setdefault(unquoted(header[key]) if key in header else len(groups), len(groups)) for header in frames.headers]
    )


def read_subsets(frames: Frames, key: str) -> tuple[Integers, tuple[str, ...]]:
    """Indices into the names of subsets, (F,), and these names; "" where a header has none."""
    names = [unquoted(header[key]) if key in header else "" for header in frames.headers]
    index = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names]), tuple(index)
