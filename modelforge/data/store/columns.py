"""Columns on disk: a folder with a raw file for each array and a `columns.json` that says what they are.

Written row after row, read as memory maps. Numbers are little-endian.
"""

import errno
import json
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from modelforge.data.structures import Array, is_constant

INDEX = "columns.json"
LITTLE: Literal["<"] = "<"


class ColumnWriter:
    """Appends rows to the columns of a new folder; `finish` makes it readable.

    A column that is one number throughout, as columns are in which everything is missing, is written as that number.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._constants: dict[str, np.generic] = {}
        self._described: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._rows: dict[str, int] = {}

    def add(self, name: str, values: Array) -> None:
        """Append rows (R, ...) to a column."""
        values = values.astype(values.dtype.newbyteorder(LITTLE), copy=False)
        described = (values.dtype.str, values.shape[1:])
        assert self._described.setdefault(name, described) == described, f"{name}: all parts have one type"
        before = self._rows.get(name, 0)
        self._rows[name] = before + len(values)
        if name not in self._files:
            if self._still_constant(name, values):
                return
            self._files[name] = (self.folder / f"{name}.bin").open("wb")
            if before:
                self._repeat(name, before)
        self._write(name, values)

    def close(self) -> None:
        """Close the files, whether or not all was written."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write what the columns are, with whatever else is to be known `about` them; all of it is on the disk then."""
        columns = {
            name: {
                "dtype": dtype,
                "shape": [self._rows[name], *shape],
                "constant": self._constants[name].item() if name in self._constants and name not in self._files else None,
            }
            for name, (dtype, shape) in self._described.items()
        }
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        with (self.folder / INDEX).open("w", encoding="utf-8") as index:
            json.dump({"columns": columns, "about": about}, index)
            index.flush()
            os.fsync(index.fileno())

    def _still_constant(self, name: str, values: Array) -> bool:
        """Whether all numbers so far have the same bits."""
        if not len(values):
            return True
        known = self._constants.setdefault(name, values.flat[0])
        some = np.ascontiguousarray(values[:1] if is_constant(values) else values)
        bits = f"u{some.itemsize}"
        return bool((some.view(bits) == known.view(bits)).all())

    def _repeat(self, name: str, rows: int) -> None:
        """Write out the value of rows that were constant so far, in pieces."""
        value, (_, shape) = self._constants[name], self._described[name]
        while rows:
            some = min(rows, 100_000)
            self._write(name, np.broadcast_to(value, (some, *shape)))
            rows -= some

    def _write(self, name: str, values: Array) -> None:
        contiguous = np.ascontiguousarray(values)
        self._files[name].write(contiguous.data.cast("B") if contiguous.size else b"")


class DamagedColumns(Exception):
    """A folder of columns that is not complete."""


class Columns:
    """The columns of a folder as memory maps: opening reads nothing but the index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self.about: Mapping[str, Any] = index["about"]
            self._maps: list[mmap.mmap] = []
            self.arrays = {name: self._open(name, **column) for name, column in index["columns"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENOMEM):
                raise
            raise DamagedColumns(f"{folder}: {error}") from error

    def path_of(self, name: str, column: Array) -> Path | None:
        """The file of a column, if these are its rows; None for others and for constants, which have none."""
        own = self.arrays.get(name)
        is_own = own is not None and own.shape == column.shape and np.shares_memory(own, column)
        return self.folder / f"{name}.bin" if is_own and not is_constant(column) else None

    def release(self) -> None:
        """Take the pages that were read out of this process's memory; they stay in the system's cache."""
        for some in self._maps:
            some.madvise(mmap.MADV_DONTNEED)

    def _open(self, name: str, dtype: str, shape: list[int], constant: Any) -> Array:
        if constant is not None or not np.prod(shape):
            return np.broadcast_to(np.array(0 if constant is None else constant, dtype=dtype), shape)
        path = self.folder / f"{name}.bin"
        expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if path.stat().st_size != expected:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {expected}")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(mapped)
        return np.frombuffer(mapped, dtype=dtype).reshape(shape)
