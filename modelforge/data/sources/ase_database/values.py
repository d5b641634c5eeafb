"""What ASE's databases keep as JSON: key-value pairs and data, with arrays in the text or in a block of bytes before it.

Everything is decoded here from plain numbers and texts; objects that ASE would build from JSON are left alone. What does
not fit the layout is a `ValueError`, to which the caller adds the place.
"""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from modelforge.data.structures import Array, Floats

NAMES = ("float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
ARRAY_TYPES = {name: np.dtype(name).newbyteorder("<") for name in NAMES}
"""Types of arrays that may be labels; truth values, complex numbers and texts are none."""


class Data(NamedTuple):
    """Values by key; an array stands there as its shape, type and place in `block`, or its numbers where there is none."""

    values: Mapping[str, object]
    block: bytes | None = None


def parse_object(text: str | bytes) -> dict[str, object]:
    """The values of a JSON object by key; none for `null`."""
    try:
        found = json.loads(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError):
        raise ValueError(f"must be a JSON object (got {shown(text)})") from None
    if not isinstance(found, dict | None):
        raise ValueError(f"must be a JSON object (got {shown(found)})")
    return found or {}


def parse_data(stored: object) -> Data:
    """The data of a row: JSON text up to version 8 of ASE's layout, bytes that end with the JSON since then."""
    if stored is None:
        return Data({})
    if isinstance(stored, str):
        return Data(parse_object(stored))
    if not isinstance(stored, bytes):
        raise ValueError(f"must be JSON or bytes (got {shown(stored)})")
    begin = int.from_bytes(stored[:8], "little")
    if not 8 <= begin <= len(stored):
        raise ValueError(f"must say in its first 8 bytes where its JSON begins (got {begin} in {len(stored)} bytes)")
    return Data(parse_object(stored[begin:]), stored)


def is_array(item: object) -> bool:
    """Whether a value is the description of an array."""
    return isinstance(item, dict) and "__ndarray__" in item


def decoded(item: object, block: bytes | None) -> object:
    """A value, and the array where it describes one."""
    return array_of(item["__ndarray__"], block) if isinstance(item, dict) and "__ndarray__" in item else item


def array_of(description: object, block: bytes | None) -> Array:
    """The array of `[shape, type, place in the block]`, or of `[shape, type, numbers]`."""
    if not isinstance(description, list) or len(description) != 3:
        raise ValueError(f"must be described by shape, type and values (got {shown(description)})")
    shape, name, where = description
    if not isinstance(name, str) or name not in ARRAY_TYPES:
        raise ValueError(f"must be numbers (got an array of type {shown(name)})")
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"must have a shape of whole numbers (got {shown(shape)})")
    if block is None:
        return _array_in_text(where, name, shape)
    kind = ARRAY_TYPES[name]
    size = math.prod(shape)
    if type(where) is not int or where < 0 or where + size * kind.itemsize > len(block) or len(shape) > 32:
        raise ValueError(f"must lie within the {len(block)} bytes of the data (got shape {shown(shape)} at {shown(where)})")
    return np.frombuffer(block, kind, size, where).reshape(shape)


def _array_in_text(values: object, name: str, shape: list[int]) -> Array:
    if not isinstance(values, list) or len(values) != math.prod(shape):
        raise ValueError(f"must have as many numbers as its shape {shown(shape)} says (got {shown(values)})")
    try:
        return np.array(values, dtype=name).reshape(shape)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"must be numbers of type {name} (got {shown(values)})") from None


def numbers_of(value: object) -> Floats | None:
    """The numbers of a blob, array, list or single number, flat; None where it is something else."""
    if isinstance(value, bytes):
        return np.frombuffer(value, "<f8") if len(value) % 8 == 0 else None
    if isinstance(value, np.ndarray | list | float | int):
        try:
            found = np.asarray(value)
        except (ValueError, OverflowError):  # lists in lists of different lengths
            return None
        return in_double_precision(found).ravel() if found.dtype.kind in "fiu" else None
    return None


def in_double_precision(values: Array) -> Floats:
    """Numbers as float64; among damaged bytes there are NaNs that the conversion complains about."""
    if values.dtype == np.float64:
        return values
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def shown(value: object) -> str:
    """A value as messages show it: one line, not too long."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = " ".join((str(value) if isinstance(value, np.ndarray) else repr(value)).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
