"""Groups and arrays of HDF5 files, through the low-level functions of h5py: files of 100,000 small groups are usual.

Whatever the library raises becomes a `UserError` that names the file, the group and the dataset. Nothing is unpickled.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from modelforge.data.sources.blocks.shapes import Shape, num_bytes, printable
from modelforge.data.sources.paths import require_file
from modelforge.data.structures import Array
from modelforge.errors import UserError

FAULTS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, OverflowError, AttributeError)
"""What h5py raises on damaged files."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"
NUMBERS = {
    "float64": (h5py.h5t.NATIVE_DOUBLE, (h5py.h5t.FLOAT, h5py.h5t.INTEGER)),
    "int64": (h5py.h5t.NATIVE_INT64, (h5py.h5t.INTEGER,)),
}
CACHE = 16 << 20
"""Bytes of unpacked chunks kept for each dataset, so that a chunk that reaches into two parts is unpacked once."""
METADATA_CACHE = 4 << 20
"""Bytes of descriptions of groups kept by the library, which takes ten times as much for them: no group is read twice."""


@dataclass(frozen=True, eq=False)
class Hdf5Array:
    """A dataset."""

    identifier: h5py.h5d.DatasetID
    place: str
    shape: Shape

    def rows(self, first: int, last: int, dtype: str = "float64") -> Array:
        """Rows first to last (exclusive), converted to a type of numbers; an array of no numbers is a `UserError`."""
        with faults_at(self.place):
            values = np.empty((last - first, *self.shape[1:]), dtype)
            if first == 0 and last == self.shape[0]:
                self.identifier.read(h5py.h5s.ALL, h5py.h5s.ALL, values, NUMBERS[dtype][0])
            elif last > first:
                space = self.identifier.get_space()
                space.select_hyperslab((first, *(0 for _ in self.shape[1:])), values.shape)
                memory = h5py.h5s.create_simple(values.shape)
                self.identifier.read(memory, space, values, NUMBERS[dtype][0])
        return values

    def whole(self, dtype: str = "float64") -> Array:
        """All numbers; also of an array without axes."""
        with faults_at(self.place):
            values = np.empty(self.shape, dtype)
            self.identifier.read(h5py.h5s.ALL, h5py.h5s.ALL, values, NUMBERS[dtype][0])
        return values

    def texts(self) -> list[str]:
        """All texts, or whole numbers as texts; anything else is a `UserError`."""
        with faults_at(self.place):
            kind = self.identifier.get_type()
            if kind.get_class() not in (h5py.h5t.STRING, h5py.h5t.INTEGER):
                raise UserError(f"{self.place}: must be texts or whole numbers (got {_dtype_name(self.identifier)})")
            values = np.empty(self.shape, kind.dtype)
            self.identifier.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return [shown(value) if isinstance(value, bytes) else str(value) for value in values.ravel().tolist()]

    def text_attribute(self, name: str) -> str:
        """An attribute that is a text, "" where there is none."""
        with faults_at(self.place):
            if not h5py.h5a.exists(self.identifier, name.encode()):
                return ""
            attribute = h5py.h5a.open(self.identifier, name.encode())
            kind, shape = attribute.get_type(), attribute.shape
            if kind.get_class() != h5py.h5t.STRING or num_bytes(shape, 1) != 1:
                raise UserError(f"{self.place}: its attribute {name!r} must be one text")
            value = np.empty(shape, kind.dtype)
            attribute.read(value)
        text = value.item()
        return (shown(text) if isinstance(text, bytes) else str(text)).strip()

    def check_is(self, dtype: str) -> None:
        """The array is of numbers of this kind, and was written to its end."""
        with faults_at(self.place):
            stored = self.identifier.get_type()
            if stored.get_class() not in NUMBERS[dtype][1]:
                kind = "numbers" if dtype == "float64" else "whole numbers"
                raise UserError(f"{self.place}: must hold {kind} (got {_dtype_name(self.identifier)})")
            written = self.identifier.get_storage_size() == num_bytes(self.shape, stored.get_size())
            if not written and not _has_all_chunks(self.identifier, self.shape):
                raise UserError(f"{self.place}: has values that were never written; the file is not complete")

    def chunk_rows(self) -> int:
        """Rows of a chunk, 1 where the array is in one piece."""
        with faults_at(self.place):
            chunk = _chunk(self.identifier)
        return chunk[0] if chunk else 1


@dataclass(frozen=True, eq=False)
class Hdf5Group:
    """A group: one molecule, or all structures with the same number of atoms."""

    identifier: h5py.h5g.GroupID
    name: str
    place: str
    names: tuple[bytes, ...]  # of what it holds

    def holds(self, name: str) -> bool:
        """Whether there is something of this name."""
        return name.encode() in self.names

    def array(self, name: str | bytes) -> Hdf5Array:
        """The dataset of this name; anything else of that name is a `UserError`."""
        key = name.encode() if isinstance(name, str) else name
        place = f"{self.place}: {shown(key)}"
        with faults_at(place):
            found = h5py.h5o.open(self.identifier, key)
            if not isinstance(found, h5py.h5d.DatasetID):
                raise UserError(f"{place}: must be a dataset (got another kind of object)")
            shape = found.get_space().get_simple_extent_dims()
            if shape is None:
                raise UserError(f"{place}: must hold values (got an empty dataset)")
            return Hdf5Array(found, place, shape)


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """A file for reading, without a lock: not every file system has them."""
    _check_is_hdf5(path)
    with faults_at(str(path)):
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=CACHE)
        settings = file.id.get_mdc_config()
        settings.set_initial_size, settings.initial_size, settings.min_size = True, METADATA_CACHE // 2, METADATA_CACHE // 4
        settings.max_size = METADATA_CACHE
        file.id.set_mdc_config(settings)
    with file:
        yield file


def group_names(file: h5py.File, path: Path) -> list[bytes]:
    """Names of what a file holds at the top, ascending, so that the order does not depend on who wrote the file."""
    names: list[bytes] = []
    with faults_at(str(path)):
        file.id.links.iterate(names.append)
    if not names:
        raise UserError(f"{path}: must hold at least one group of structures (got an empty file)")
    return names


def open_group(file: h5py.File, name: bytes, path: Path) -> Hdf5Group | None:
    """A group at the top of a file; None for a dataset there."""
    place = f"{path}: group {shown(name)!r}"
    names: list[bytes] = []
    with faults_at(place):
        found = h5py.h5o.open(file.id, name)
        if not isinstance(found, h5py.h5g.GroupID):
            return None
        found.links.iterate(names.append)
    return Hdf5Group(found, shown(name), place, tuple(names))


def shown(name: bytes) -> str:
    """A name as messages show it, in one line."""
    return printable(name.decode("utf-8", "backslashreplace"))


class faults_at:
    """Turn what the library raises into a `UserError` that begins with a place.

    It reads as a function; it is a class because a generator would cost more, and files have millions of datasets.
    """

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FAULTS) and not isinstance(error, UserError):
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{self.place}: cannot be read ({reason}); the file is damaged or not complete, fetch or write it again"
            ) from None


def _check_is_hdf5(path: Path) -> None:
    require_file(path, "an HDF5 file")
    with faults_at(str(path)):
        is_hdf5 = h5py.is_hdf5(path)
    if not is_hdf5:
        with path.open("rb") as file:
            start = file.read(8)
        got = "an empty file" if not start else "a damaged one" if start == SIGNATURE else f"one that begins with {start!r}"
        raise UserError(f"{path}: must be an HDF5 file (got {got}; a .gz file must be unpacked first)")


def _chunk(identifier: h5py.h5d.DatasetID) -> Shape | None:
    properties = identifier.get_create_plist()
    return properties.get_chunk() if properties.get_layout() == h5py.h5d.CHUNKED else None


def _has_all_chunks(identifier: h5py.h5d.DatasetID, shape: Shape) -> bool:
    """Whether a packed array has all its chunks; others are complete when as many bytes are there as their shape needs."""
    chunk = _chunk(identifier)
    if chunk is None:
        return bool(identifier.get_create_plist().get_layout() == h5py.h5d.VIRTUAL)
    return bool(identifier.get_num_chunks() >= np.prod([-(-size // step) for size, step in zip(shape, chunk, strict=True)]))


def _dtype_name(identifier: h5py.h5d.DatasetID) -> str:
    try:
        return str(identifier.dtype)
    except FAULTS:  # a type that numpy does not have
        return "another type"
