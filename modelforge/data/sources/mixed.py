"""Several data sources as one: each with its own format, keys and units, and a name by which errors are reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_serializer, model_validator

from modelforge.data.sources.ase_database import AseDatabase
from modelforge.data.sources.deepmd import DeePMD
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.file_source import SetName
from modelforge.data.sources.hdf5 import HDF5
from modelforge.data.sources.npz import Npz
from modelforge.data.sources.registered import Registered
from modelforge.data.sources.source import DataSource, SourceFiles
from modelforge.data.sources.stored import Stored
from modelforge.section import SectionError

OneSource = Annotated[
    ExtendedXYZ | HDF5 | Npz | AseDatabase | DeePMD | Stored | Registered,
    Field(discriminator="name"),
]
"""The sources that can be mixed: all that name files."""


class Mixed(DataSource):
    """Several data sources mixed; their structures are split together. The labels must come from one method."""

    name: Literal["mixed"]
    sources: Annotated[dict[SetName, OneSource], Field(min_length=1)]
    """The sources by name: a structure's subset is `<name>`, or `<name>/<subset>` where its source has subsets itself."""

    @model_validator(mode="after")
    def whole_is_set_outside(self) -> "Mixed":
        """What concerns the data as a whole cannot be said by a part."""
        problems = [
            (f"sources.{name}.{key}", f"has no effect in one of several sources; set dataset.{key}")
            for name, source in self.sources.items()
            for key in DataSource.model_fields
            if key in source.model_fields_set
        ]
        if self.split.strategy == "files":
            problems.append(("split.strategy", 'must not be "files" where sources are mixed; use "random" or "group"'))
        if problems:
            raise SectionError(*problems)
        return self

    @field_serializer("sources")
    def only_what_may_be_said(self, sources: dict[str, OneSource]) -> dict[str, dict[str, object]]:
        """What is written reads again: without the keys that belong to the whole."""
        return {name: source.model_dump(mode="json", exclude={*DataSource.model_fields}) for name, source in sources.items()}

    def training_files(self, key: str = "dataset") -> tuple[SourceFiles, ...]:
        """The files of all sources."""
        return tuple(
            SourceFiles(files.reader, files.paths, prefix=name)
            for name, source in self.sources.items()
            for files in source.training_files(f"{key}.sources.{name}")
        )

    def test_files(self, key: str = "dataset") -> dict[str, tuple[SourceFiles, ...]]:
        """The test sets of all sources; those with the same name are one."""
        found: dict[str, tuple[SourceFiles, ...]] = {}
        for name, source in self.sources.items():
            for test, files in source.test_files(f"{key}.sources.{name}").items():
                named = (SourceFiles(some.reader, some.paths, prefix=name) for some in files)
                found[test] = (*found.get(test, ()), *named)
        return found

    def files(self, paths: Sequence[Path]) -> SourceFiles:
        """Other files, to be read as those of the first source."""
        return next(iter(self.sources.values())).files(paths)
