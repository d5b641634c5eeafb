"""The store: structures as memory-mapped columns in a folder, with what the reader said about their labels.

A store opens at once whatever its size, takes no memory of its own, and is shared by all processes that use it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from modelforge.data.sources.gather import Gatherer
from modelforge.data.sources.read_report import Reading, ReadReport, report_from_json
from modelforge.data.sources.source import SourceFiles
from modelforge.data.store.columns import INDEX, Columns, ColumnWriter, DamagedColumns
from modelforge.data.store.content_hash import ContentHash
from modelforge.data.structures import COLUMNS, Array, Structures, is_constant
from modelforge.errors import UserError

VERSION = 1  # of the columns and of what readers make of files: to be raised with each change that changes numbers
COMPACT = {"num_atoms": "int32", "group": "int32", "subset": "int32", "file": "int32", "index_in_file": "int32"}


def is_store(path: Path) -> bool:
    """Whether a folder is a store."""
    return (path / INDEX).is_file()


def write_files(folder: Path, files: Sequence[SourceFiles]) -> None:
    """Read files part by part into a new store; memory stays bounded."""
    gatherer = Gatherer(files)
    _write(folder, gatherer.parts(), gatherer)


def write_structures(folder: Path, structures: Structures, report: ReadReport) -> None:
    """Write structures that are there already, piece by piece, into a new store."""
    _write(folder, structures.pieces(), report)


def _write(folder: Path, parts: Iterable[Structures], told: Gatherer | ReadReport) -> None:
    writer, found = ColumnWriter(folder), ContentHash()
    names: tuple[str, ...] = ("",)
    try:
        for part in parts:
            found.add(part)
            names = part.subset_names
            for name in COLUMNS:
                writer.add(name, _typed(getattr(part, name), COMPACT.get(name, COLUMNS[name].dtype)))
        report = told if isinstance(told, ReadReport) else told.report()
        writer.finish(
            {
                "version": VERSION,
                "content_hash": found.hexdigest(),
                "subset_names": names,
                "files": report.files,
                "report": report.to_json(),
            }
        )
    finally:
        writer.close()


def _typed(values: Array, dtype: str) -> Array:
    """A column in a type; one that is a single number stays without memory."""
    if is_constant(values) and values.size:
        return np.broadcast_to(values.flat[0].astype(dtype), values.shape)
    return values.astype(dtype, copy=False)


class Store:
    """An open store."""

    def __init__(self, folder: Path, *, files: tuple[str, ...] | None = None) -> None:
        """Open a store; `files` are the present names of its files, if they are known."""
        self.columns = Columns(folder)
        about = self.columns.about
        if about.get("version") != VERSION:
            raise UserError(
                f"{folder}: must be a store of version {VERSION} (got {about.get('version')}); convert the data again"
            )
        try:
            self.content_hash: str = about["content_hash"]
            self.reading = _reading(self.columns, files)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedColumns(f"{folder}: {error}") from error


def _reading(columns: Columns, files: tuple[str, ...] | None) -> Reading:
    """Structures and report; `files` are the present names."""
    about = columns.about
    names = files or tuple(about["files"])
    arrays = {name: _typed(values, COLUMNS[name].dtype) for name, values in columns.arrays.items()}
    structures = Structures(**arrays, subset_names=tuple(about["subset_names"]), files=names)
    report, present = report_from_json(about["report"], names), dict(zip(about["files"], names, strict=True))
    removals = tuple(replace(removal, file=present.get(removal.file, removal.file)) for removal in report.removals)
    return Reading(structures, replace(report, removals=removals))


def open_store(folder: Path) -> Store:
    """Open a store that a user named; a damaged one is an error."""
    try:
        return Store(folder)
    except DamagedColumns as error:
        raise UserError(f"{error}: must be a complete store; convert the data again") from error
