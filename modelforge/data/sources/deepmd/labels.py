"""Coordinates, boxes and labels of some frames of a DeePMD set.

Legend: F frames that are read together, A atoms of a frame with padding, N atoms of all frames without.
"""

import math

import numpy as np
from numpy.typing import NDArray

from modelforge.data.sources.ase_database.labels import symmetric
from modelforge.data.sources.deepmd.arrays import finite_numbers, mapped, numbers
from modelforge.data.sources.deepmd.system import FrameSet, System
from modelforge.data.sources.file_source import FileSource
from modelforge.data.sources.matrices import SMALLEST_VOLUME, as_matrix, spanned_volume
from modelforge.data.structures import ABSENT, Floats
from modelforge.errors import UserError


def read_coordinates(some: FrameSet, chosen: slice, is_atom: NDArray[np.bool_]) -> Floats:
    """Positions of the atoms, (N, 3)."""
    array = some.array("coord", 3 * is_atom.shape[1])
    positions = finite_numbers(array, chosen, path=some.path("coord")).reshape(*is_atom.shape, 3)  # (F, A, 3)
    return positions[is_atom]


def read_boxes(system: System, some: FrameSet, chosen: slice) -> Floats:
    """Cells, (F, 3, 3), zeros in a system that is not periodic, where DeePMD ignores boxes too."""
    num_frames, path = chosen.stop - chosen.start, some.path("box")
    if not system.periodic:
        return np.zeros((num_frames, 3, 3))
    if "box" not in some.names:
        raise UserError(f"{path}: missing; add the boxes, or an empty file {system.folder / 'nopbc'} if there are none")
    cell = finite_numbers(some.array("box", 9), chosen, path=path).reshape(-1, 3, 3)  # (F, 3, 3)
    for frame in np.flatnonzero(spanned_volume(cell, np.ones((num_frames, 3), dtype=bool)) < SMALLEST_VOLUME).tolist():
        got = " ".join(f"{value:g}" for value in cell[frame].ravel())
        raise UserError(f"{path}: frame {chosen.start + frame}: must be three independent vectors (got {got})")
    return cell


def of_frames(some: FrameSet, chosen: slice, key: str | None, shape: tuple[int, ...] = ()) -> Floats:
    """A label of some frames, NaN where it is missing, (F, *shape)."""
    if key is None or key not in some.names:
        return ABSENT
    return numbers(some.array(key, math.prod(shape)), chosen, path=some.path(key)).reshape(-1, *shape)


def of_atoms(some: FrameSet, chosen: slice, key: str | None, is_atom: NDArray[np.bool_], shape: tuple[int, ...]) -> Floats:
    """A label of the atoms of some frames, NaN where it is missing, (N, *shape)."""
    if key is None or key not in some.names:
        return ABSENT
    found = numbers(some.array(key, is_atom.shape[1] * math.prod(shape)), chosen, path=some.path(key))
    return found.reshape(*is_atom.shape, *shape)[is_atom]


def read_stresses(system: System, some: FrameSet, chosen: slice, key: str | None) -> Floats:
    """Virials or stresses, made symmetric, NaN where they are missing, (F, 3, 3)."""
    if key is None or key not in some.names:
        return ABSENT
    path = some.path(key)
    if not system.periodic:
        raise UserError(f"{path}: must not be there, as {system.folder / 'nopbc'} says that there is no volume; remove one")
    components = numbers(some.array(key, (9, 6)), chosen, path=path)  # (F, 9)
    return symmetric(as_matrix(components), lambda frame: f"{path}: frame {chosen.start + frame}")


def read_weights(some: FrameSet, chosen: slice, key: str | None) -> Floats:
    """Weights of frames in the loss, 1 where there is none, (F,)."""
    weights = of_frames(some, chosen, key)
    for frame in np.flatnonzero(weights < 0).tolist():
        raise UserError(f"{some.path(key or '')}: frame {chosen.start + frame}: must be 0 or more (got {weights[frame]:g})")
    return weights if weights is ABSENT else np.where(np.isnan(weights), 1.0, weights)


def read_names(system: System, some: FrameSet, chosen: slice, key: str | None, *, of_system: str) -> list[str | None]:
    """The name that each frame has in an array; "system" without such an array stands for the system's."""
    num_frames = chosen.stop - chosen.start
    if key == "system" and key not in system.names:
        return [of_system] * num_frames
    if key is None or key not in some.names:
        return [None] * num_frames
    return [text(value) for value in np.ascontiguousarray(some.array(key, 1)[chosen]).ravel().tolist()]


def text(value: object) -> str:
    """A name, or a number as text."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value).encode(errors="replace").decode()


def single_precision(system: System, section: FileSource) -> str:
    """What has to be said of energies that were rounded before they were written, without the unit; "" where they were not."""
    key = section.energy_key
    if key is None:
        return ""
    paths = [some.path(key) for some in system.sets if key in some.names]
    arrays = [array for array in map(mapped, paths) if array.dtype.kind == "f" and array.dtype.itemsize < 8]
    largest = max((float(np.nan_to_num(np.abs(array), posinf=0.0).max()) for array in arrays), default=0.0)
    if not arrays:
        return ""
    step = float(np.spacing(np.array(largest, dtype=arrays[0].dtype.newbyteorder("="))))
    return f"{arrays[0].dtype.newbyteorder('=')} in the file: steps of {step:.1g}"
