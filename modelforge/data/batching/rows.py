"""Columns with several rows a structure, from which the rows of some structures are gathered: in memory, or in a file.

A mapped file would do for both, but random access maps whole groups of pages for each structure: on the way through a
million structures that was 5 GB of a process's memory, or half of the time spent on giving it back. Reading the bytes of
each structure costs one system call, and no more memory than the batch.

Legend: S_b chosen structures, R rows of all of them.
"""

import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from modelforge.data.store.columns import Columns, DamagedColumns
from modelforge.data.structures import Array


@dataclass(frozen=True, eq=False)
class Spans:
    """The rows of the chosen structures: of each a first one and how many."""

    first: Tensor  # (S_b,)
    count: Tensor  # (S_b,)

    @cached_property
    def owner(self) -> Tensor:
        """The structure of each row, from 0 to S_b - 1, (R,)."""
        return torch.repeat_interleave(self.count)

    @cached_property
    def index(self) -> Tensor:
        """Each row's place in the column, (R,)."""
        shift = self.first - self.count.cumsum(0) + self.count
        return torch.arange(self.owner.shape[0], device=self.count.device) + shift[self.owner]

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """First row and count of each structure."""
        return list(zip(self.first.tolist(), self.count.tolist(), strict=True))


class Rows(Protocol):
    """A column."""

    def gather(self, spans: Spans) -> Tensor:
        """The rows of the chosen structures, one after the other, (R, ...)."""


@dataclass(frozen=True, eq=False)
class RowsInMemory:
    """A column as a tensor, on any device; or as a mapped file, if that is small."""

    tensor: Tensor

    def gather(self, spans: Spans) -> Tensor:
        """The rows of the chosen structures, one after the other, (R, ...)."""
        return self.tensor.index_select(0, spans.index)


class RowsOnDisk:
    """A column that stays in its file."""

    def __init__(self, path: Path, column: Array) -> None:
        """`column` is the same file, mapped: it says type and shape."""
        self.path, self._dtype, self._shape = path, column.dtype, column.shape[1:]
        self._row_size = column.dtype.itemsize * int(np.prod(self._shape))
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def gather(self, spans: Spans) -> Tensor:
        """The rows of the chosen structures, one after the other, (R, ...)."""
        rows = np.empty((sum(count for _, count in spans.pairs), *self._shape), dtype=self._dtype)
        if not rows.size:
            return torch.from_numpy(rows)
        view, end, size = rows.data.cast("B"), 0, self._row_size
        for first, count in spans.pairs:
            begin, end = end, end + count * size
            if os.preadv(self._file, [view[begin:end]], first * size) != end - begin:
                self._read_on(view[begin:end], first * size)
        return torch.from_numpy(rows)

    def _read_on(self, view: memoryview, place: int) -> None:
        """Read what one call did not give, in as many calls as it takes."""
        done = 0
        while done < len(view):
            some = os.preadv(self._file, [view[done:]], place + done)
            if not some:
                raise DamagedColumns(f"{self.path}: ends before its last row; delete its folder, it will be prepared again")
            done += some


def rows_of(name: str, column: Array, tensor: Tensor, mapped: Columns | None) -> Rows:
    """A column: in its file, if it is mapped from one, else in memory."""
    path = mapped.path_of(name, column) if mapped is not None else None
    return RowsInMemory(tensor) if path is None else RowsOnDisk(path, column)
