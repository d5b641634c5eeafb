"""Structures of a store, which `modelforge data convert` writes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from modelforge.data.sources.file_source import SetName, one_or_several, refuse_taken_names
from modelforge.data.sources.part import Part
from modelforge.data.sources.source import DataSource, SourceFiles
from modelforge.data.store.columns import INDEX
from modelforge.data.store.store import is_store, open_store
from modelforge.data.structures import COLUMNS, LABELS
from modelforge.errors import UserError
from modelforge.section import PathText

Folders = Annotated[tuple[PathText, ...], BeforeValidator(one_or_several), Field(min_length=1)]
UNITS = {
    "energy": "eV",
    "forces": "eV/angstrom",
    "stress": "eV/angstrom^3",
    "total_charge": "e",
    "spin_multiplicity": "1",
    "dipole": "e*angstrom",
    "quadrupole": "e*angstrom^2",
    "partial_charges": "e",
}
"""What the labels of a store are measured in."""


class Stored(DataSource):
    """Structures of a store: a folder that `modelforge data convert` wrote. It opens at once, in eV and angstrom."""

    homes: ClassVar[tuple[str, str]] = ("columns per structure", "columns per atom")

    name: Literal["store"]
    path: Folders
    """One or several folders, relative to the experiment file."""
    test_paths: dict[SetName, Folders] = {}
    """Named test sets: each name with one or several folders."""

    @field_validator("test_paths")
    @classmethod
    def names_are_free(cls, paths: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """The sets that the split makes have these names in all that a run leaves."""
        return refuse_taken_names(paths)

    def training_files(self, key: str = "dataset") -> tuple[SourceFiles, ...]:
        """The stores of `path`."""
        return (self.files([_store(path, f"{key}.path") for path in self.path]),)

    def test_files(self, key: str = "dataset") -> dict[str, tuple[SourceFiles, ...]]:
        """The stores of `test_paths`."""
        return {
            name: (self.files([_store(path, f"{key}.test_paths.{name}") for path in paths]),)
            for name, paths in self.test_paths.items()
        }

    def files(self, paths: Sequence[Path]) -> SourceFiles:
        """Other stores."""
        return SourceFiles(self, tuple(paths))

    def read_file(self, path: Path) -> Iterator[Part]:
        """The structures of a store, piece by piece, without copying."""
        num = 0
        for piece in open_store(path).reading.structures.pieces():
            present = {label: int(piece.has(label).sum()) for label in LABELS}
            of_atoms = {label: count for label, count in present.items() if COLUMNS[label].per_atom and count}
            of_structures = {label: count for label, count in present.items() if not COLUMNS[label].per_atom and count}
            groups = [f"{path}:{group}" for group in piece.group.tolist()]  # numbers mean something within a store only
            numbered = replace(piece, index_in_file=np.arange(num, num + len(piece)))
            yield Part(numbered, keys=of_structures, columns=of_atoms, units=UNITS, groups=groups)
            num += len(piece)

    def bytes_of(self, path: Path) -> Sequence[Path]:
        """The index and the columns."""
        return sorted(file for file in path.iterdir() if file.is_file())

    def options(self) -> dict[str, object]:
        """A store is read in one way only."""
        return {"name": self.name}

    def label_keys(self) -> Mapping[str, str]:
        """Every label has its own column."""
        return {f"{label}_key": label for label in LABELS}


def _store(path: str, key: str) -> Path:
    folder = Path(path)
    if not is_store(folder):
        raise UserError(f"{key}: {path!r} must be a store (a folder with {INDEX}, as `modelforge data convert` writes)")
    return folder
