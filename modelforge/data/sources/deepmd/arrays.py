"""Arrays of DeePMD systems: npy files that are mapped into memory, and checked against the number of frames and atoms.

The header of a npy file is matched instead of evaluated, and its size has to be what the header says: whatever else it is,
it is told. Nothing is ever unpickled.

Legend: F frames of a set.
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from modelforge.data.structures import Array, Floats
from modelforge.errors import UserError

MAGIC = b"\x93NUMPY"
HEADER = re.compile(
    r"\{'descr': '(?P<type>[<>|=]?(?:[fiu][1248]|[US]\d{1,4}))', 'fortran_order': (?P<order>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,18}, ?)*(?:\d{1,18})?)\),? *\} *\n?\Z"
)
LARGEST_HEADER = 65_536  # bytes
LARGEST = 1e30
"""Of all numbers in whatever unit: beyond that the bytes are damaged, and squares and units would overflow."""


def mapped(path: Path) -> Array:
    """The array of a npy file, mapped into memory."""
    try:
        with path.open("rb") as file:
            begin, kind, shape, order = header_of(file, path)
            size = os.fstat(file.fileno()).st_size
            needed = begin + math.prod(shape) * kind.itemsize
            if size != needed:
                raise UserError(f"{path}: must have {needed} bytes, as its header says (got {size}); is it truncated?")
            if not shape or not math.prod(shape):
                raise UserError(f"{path}: must hold at least one frame (got an array of shape {shape})")
            return np.memmap(file, kind, "r", begin, shape, order)
    except OSError as error:
        raise UserError(f"{path}: must be a file that can be read (got: {error.strerror})") from None


def header_of(file: BinaryIO, path: Path) -> tuple[int, "np.dtype[Any]", tuple[int, ...], Literal["C", "F"]]:
    """Where the numbers of a npy file begin, their type, and the shape and order of the array."""
    start = file.read(12)
    width = 2 if start[6:7] == b"\x01" else 4
    begin = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    file.seek(8 + width)
    found = HEADER.match(file.read(min(begin - 8 - width, LARGEST_HEADER)).decode("latin1"))
    if not start.startswith(MAGIC) or start[6:7] not in (b"\x01", b"\x02", b"\x03") or found is None:
        raise UserError(f"{path}: must be a npy file with an array of numbers (got something else)")
    shape = tuple(int(length) for length in re.findall(r"\d+", found["shape"]))
    return begin, _kind(found["type"], path), shape, "F" if found["order"] == "True" else "C"


def _kind(name: str, path: Path) -> "np.dtype[Any]":
    try:
        kind = np.dtype(name)
    except TypeError:
        raise UserError(f"{path}: must have a type of numbers (got {name!r})") from None
    if not kind.itemsize:
        raise UserError(f"{path}: must have a type of numbers (got {name!r})")
    return kind


def in_frames(path: Path, num_frames: int, size: int | Sequence[int]) -> Array:
    """The array of a npy file with one of so many values for each frame, (F, ...)."""
    array, sizes = mapped(path), (size,) if isinstance(size, int) else tuple(size)
    rows = array.reshape(1, -1) if array.ndim == 1 and num_frames == 1 else array
    per_frame = math.prod(rows.shape[1:])
    if len(rows) != num_frames or per_frame not in sizes:
        expected = "one number" if sizes == (1,) else f"{' or '.join(map(str, sizes))} numbers"
        raise UserError(
            f"{path}: must have {num_frames} frames, as coord.npy has, with {expected} each (got shape {array.shape})"
        )
    return rows


def numbers(array: Array, chosen: slice, *, path: Path) -> Floats:
    """The numbers of some frames, NaN where they are missing, (F, size)."""
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: must be numbers (got texts)")
    with np.errstate(invalid="ignore"):  # among damaged bytes there are NaNs that the conversion complains about
        found = np.ascontiguousarray(array[chosen]).astype(np.float64).reshape(chosen.stop - chosen.start, -1)  # (F, size)
    found[np.isnan(found)] = np.nan
    for frame in np.flatnonzero((np.abs(found) >= LARGEST).any(axis=1)).tolist():
        got = np.nanmax(np.abs(found[frame]))
        raise UserError(f"{path}: frame {chosen.start + frame}: must be finite, or nan where it is missing (got {got:g})")
    return found


def finite_numbers(array: Array, chosen: slice, *, path: Path) -> Floats:
    """The numbers of some frames, none of which may be missing, (F, size)."""
    found = numbers(array, chosen, path=path)
    for frame in np.flatnonzero(np.isnan(found).any(axis=1)).tolist():
        raise UserError(f"{path}: frame {chosen.start + frame}: must be finite (got nan)")
    return found
