"""Structures of a store, which `modelforge data convert` writes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from modelforge.data.store.columns import INDEX
from modelforge.data.sources.file_source import SetName, one_or_several
from modelforge.data.sources.part import Part
from modelforge.data.sources.source import DataSource, SourceFiles
from modelforge.data.store.store import is_store, open_store
from modelforge.data.structures import COLUMNS, LABELS
from modelforge.errors import UserError
from modelforge.section import PathText

Folders = Annotated[tuple[PathText, ...], BeforeValidator(one_or_several), Field(min_length=1)]


class Stored(DataSource):
    """Structures of a store: a folder that `modelforge data convert` wrote. It opens at once, in eV and angstrom."""

    homes: ClassVar[tuple[str, str]] = ("columns per structure", "columns per atom")

    name: Literal["store"]
    path: Folders
    """One or several folders, relative to the experiment file."""
    test_paths: dict[SetName, Folders] = {}
    """Named test sets: each name with one or several folders."""

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
        for piece in open_store(path).reading.structures.pieces():
            present = {label: int(piece.has(label).sum()) for label in LABELS}
            of_atoms = {label: count for label, count in present.items() if COLUMNS[label].per_atom and count}
            of_structures = {label: count for label, count in present.items() if not COLUMNS[label].per_atom and count}
            groups = [str(group) for group in piece.group.tolist()]
            yield Part(piece, keys=of_structures, columns=of_atoms, units=dict.fromkeys(present, "store's"), groups=groups)

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
