"""Arrays of an npz file, row by row: numpy itself would read each of them whole. Nothing is unpickled or evaluated."""

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from modelforge.data.sources.blocks.shapes import Shape, num_bytes, printable
from modelforge.data.sources.paths import require_file
from modelforge.data.structures import Array
from modelforge.errors import UserError

FAULTS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
    OverflowError,
    MemoryError,
    IndexError,
    struct.error,
)
"""What zipfile raises on damaged files."""
MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000  # bytes, as in numpy
HEADER = re.compile(
    r"\{\s*'descr':\s*('(?P<descr>[^']*)'|\[.*\]),\s*'fortran_order':\s*(?P<fortran>True|False),"
    r"\s*'shape':\s*\((?P<shape>[\dL,\s]*)\),?\s*\}\s*",
    re.DOTALL,
)
PLAIN_TYPE = re.compile(r"[<>|=]?[fiubSU]\d{1,6}")
KINDS = {"float64": "fiu", "int64": "iu", "bool": "b", "text": "SUiu"}
KIND_NAMES = {"float64": "numbers", "int64": "whole numbers", "bool": "truth values", "text": "texts or whole numbers"}


@dataclass(frozen=True)
class NpzArray:
    """What the header of an array says."""

    name: str
    place: str
    shape: Shape
    type_name: str
    in_columns: bool  # Fortran order
    size: int  # of its values as the archive says it, in bytes

    def dtype(self, kind: str) -> np.dtype[np.generic]:
        """The type of the values; one that is not of this kind is a `UserError`."""
        try:
            dtype = np.dtype(self.type_name) if PLAIN_TYPE.fullmatch(self.type_name) else None
        except (TypeError, ValueError):
            dtype = None
        if dtype is None or dtype.kind not in KINDS[kind]:
            is_object = self.type_name.endswith("O")
            remedy = "; it holds pickled Python objects, which are not read: save it again as an array of numbers" * is_object
            raise UserError(f"{self.place}: must hold {KIND_NAMES[kind]} (got the type {self.type_name!r}{remedy})")
        if num_bytes(self.shape, dtype.itemsize) != self.size:
            raise UserError(
                f"{self.place}: must have {num_bytes(self.shape, dtype.itemsize)} bytes for its shape {self.shape} "
                f"(got {self.size}); the file is damaged, fetch or write it again"
            )
        return dtype


@dataclass(eq=False)
class RowReader:
    """Reads an array from its first row to its last, a few rows at a time."""

    array: NpzArray
    stream: IO[bytes]
    kind: str
    _whole: list[Array] = field(default_factory=list)  # of an array in columns, which has no rows in one piece
    _next: int = 0

    def rows(self, num: int) -> Array:
        """The next rows, converted."""
        if self.array.in_columns and len(self.array.shape) > 1:
            if not self._whole:
                self._whole.append(self._values(self.array.shape[::-1]).T)
            self._next += num
            return np.ascontiguousarray(self._whole[0][self._next - num : self._next])
        return self._values((num, *self.array.shape[1:]))

    def whole(self) -> Array:
        """All values; also of an array without axes."""
        values = self.rows(self.array.shape[0]) if self.array.shape else self._values(())
        self.finish()
        return values

    def finish(self) -> None:
        """Come to the end, where the archive's checksum is compared."""
        with faults_at(self.array.place):
            if self.stream.read(1):
                raise UserError(f"{self.array.place}: must end after its last row (got more bytes); the file is damaged")
            self.stream.close()

    def _values(self, shape: Shape) -> Array:
        dtype = self.array.dtype(self.kind)
        size = num_bytes(shape, dtype.itemsize)
        with faults_at(self.array.place):
            data = self.stream.read(size)
        if len(data) < size:
            raise UserError(f"{self.array.place}: must have {size} more bytes (got {len(data)}); the file is not complete")
        values = np.frombuffer(data, dtype).reshape(shape)
        if self.kind == "text":
            return values
        with np.errstate(all="ignore"):  # damaged bytes; what comes of them is checked
            return values.astype(self.kind)


@dataclass(frozen=True, eq=False)
class NpzFile:
    """An open npz file and the headers of its arrays."""

    path: Path
    archive: zipfile.ZipFile
    arrays: Mapping[str, NpzArray]

    def reader(self, name: str, kind: str) -> RowReader:
        """A reader of an array; one that does not hold values of this kind is a `UserError`."""
        array = self.arrays[name]
        array.dtype(kind)
        with faults_at(array.place):
            stream = self.archive.open(f"{name}.npy")
            read_header(stream, name, array.place, 0)
        return RowReader(array, stream, kind)

    def texts(self, name: str) -> list[str]:
        """All texts of an array, or whole numbers as texts."""
        values = self.reader(name, "text").whole()
        return [shown(value) for value in values.ravel().tolist()]


@contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """A file with the headers of all its arrays."""
    _check_is_npz(path)
    with faults_at(str(path)):
        archive = zipfile.ZipFile(path)
    with archive:
        yield NpzFile(path, archive, _headers(archive, path))


def read_header(stream: IO[bytes], name: str, place: str, file_size: int) -> NpzArray:
    """The header of an array of `file_size` bytes with it; the stream stands at its first value then."""
    start = stream.read(8)
    width = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(stream.read(width), "little")
    if start[:6] != MAGIC or start[6:7] not in (b"\x01", b"\x02", b"\x03") or length > LONGEST_HEADER:
        raise UserError(f"{place}: must be an array as numpy saves it (got other bytes)")
    text = stream.read(length).decode("latin1")
    match = HEADER.fullmatch(text)
    if match is None or len(text) < length:
        raise UserError(f"{place}: must have a header as numpy writes it (got {text[:100]!r})")
    sizes = re.findall(r"\d+", match["shape"])
    if any(len(size) > 18 for size in sizes):
        raise UserError(f"{place}: must have a possible shape (got {match['shape'][:100]})")
    shape = tuple(map(int, sizes))
    size = file_size - len(start) - width - length
    return NpzArray(name, place, shape, match["descr"] or "several fields", match["fortran"] == "True", size)


def shown(value: object) -> str:
    """A text as messages show it, in one line."""
    return printable(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value))


@contextmanager
def faults_at(place: str) -> Iterator[None]:
    """Turn what the library raises into a `UserError` that begins with a place."""
    try:
        yield
    except UserError:
        raise
    except FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"{place}: cannot be read ({reason}); the file is damaged or not complete, fetch or write it again"
        raise UserError(message) from None


def _headers(archive: zipfile.ZipFile, path: Path) -> dict[str, NpzArray]:
    """Headers by name; members that are no arrays hold nothing that could be asked for."""
    arrays = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        place = f"{path}: {printable(name)}"
        if name in arrays:
            raise UserError(f"{place}: must be in the file once (got two arrays of this name)")
        if member.filename.endswith(".npy"):
            with faults_at(place), archive.open(member) as stream:
                arrays[name] = read_header(stream, name, place, member.file_size)
    if not arrays:
        raise UserError(f"{path}: must hold arrays (got an archive without any)")
    return arrays


def _check_is_npz(path: Path) -> None:
    require_file(path, "an npz file")
    with path.open("rb") as file:
        start = file.read(6)
    if not start.startswith(b"PK"):
        array = "; a single array as .npy cannot hold a data set" if start == MAGIC else ""
        raise UserError(f"{path}: must be an npz file, which is a zip archive (got one that begins with {start!r}{array})")
