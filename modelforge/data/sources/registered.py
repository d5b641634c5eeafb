"""Registered data sets, which `modelforge data fetch` downloads."""

import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from modelforge.data.fetching.fetch import path_of
from modelforge.data.fetching.registry import find
from modelforge.data.sources.file_source import FileSource, Key, SetName, refuse_taken_names
from modelforge.data.sources.hdf5 import HDF5
from modelforge.data.sources.npz import Npz
from modelforge.data.sources.source import DataSource, SourceFiles
from modelforge.errors import UserError
from modelforge.section import PathText, SectionError

RegisteredName = Literal["qm9", "ani1x", "ani2x", "spice1", "spice2", "phalkethoh", "tmqm", "fe_ii", "rmd17", "md22"]

PASSED_ON = (
    *("energy_key", "forces_key", "total_charge_key", "spin_multiplicity_key"),
    *("energy_unit", "length_unit", "forces_unit"),
)
"""What the registry says of reading a data set."""


class Registered(DataSource):
    """A data set that modelforge knows: its files, keys, units and, mostly, self-energies. Fetched beforehand."""

    name: RegisteredName
    version: Key | None = None
    """Version of the data set; by default the newest, "latest_test" is a small one."""
    molecule: Key | None = None
    """For rmd17 and md22: which molecule."""
    folder: PathText | None = None
    """Where `modelforge data fetch` put the files, if it was told so with --folder."""
    energy_key: Key | None = None
    """Another energy than the usual one of this data set."""
    test_molecules: dict[SetName, Key] = {}
    """For rmd17 and md22: molecules to test on, as named sets."""

    @field_validator("test_molecules")
    @classmethod
    def names_are_free(cls, molecules: dict[str, str]) -> dict[str, str]:
        """The sets that the split makes have these names in all that a run leaves."""
        return refuse_taken_names(molecules)

    @model_validator(mode="after")
    def version_and_molecule_exist(self) -> "Registered":
        """A data set with a file a molecule needs to be told which."""
        data_set = find(self.name)
        if data_set.molecules and not self.molecule:
            raise SectionError(("molecule", f"missing; {self.name} has one file for each of {', '.join(data_set.molecules)}"))
        if self.test_molecules and not data_set.molecules:
            raise SectionError(("test_molecules", f"has no effect with {self.name}, which is one file; remove it"))
        for key, molecule in (
            ("molecule", self.molecule),
            *((f"test_molecules.{n}", m) for n, m in self.test_molecules.items()),
        ):
            try:
                data_set.files(version=self.version, molecule=molecule)
            except UserError as error:
                wrong_version = self.version is not None and "version" in str(error)
                raise SectionError(("version" if wrong_version else key, str(error))) from error
        return self

    def self_energy_table(self) -> dict[str, float]:
        """The self-energies that are published with the data set, in eV."""
        return dict(find(self.name).self_energies)

    def training_files(self, key: str = "dataset") -> tuple[SourceFiles, ...]:
        """The file that was fetched."""
        return (self.files([self._path(self.molecule, key)]),)

    def test_files(self, key: str = "dataset") -> dict[str, tuple[SourceFiles, ...]]:
        """The files of `test_molecules`."""
        return {name: (self.files([self._path(molecule, key)]),) for name, molecule in self.test_molecules.items()}

    def files(self, paths: Sequence[Path]) -> SourceFiles:
        """Other files, with the keys and units of this data set."""
        return SourceFiles(self.reader, tuple(paths))

    @cached_property
    def reader(self) -> FileSource:
        """What reads the files."""
        data_set = find(self.name)
        options = {option: value for option in PASSED_ON if (value := getattr(data_set, option)) is not None}
        if self.energy_key:
            options["energy_key"] = self.energy_key
        if data_set.source_format == "hdf5":
            return HDF5(name="hdf5", path=(self.name,), layout="modelforge", **options)
        keys = {"atomic_numbers_key": data_set.atomic_numbers_key, "positions_key": data_set.positions_key}
        return Npz(name="npz", path=(self.name,), **keys, **options)

    def _path(self, molecule: str | None, key: str) -> Path:
        folder = Path(self.folder) if self.folder else None
        path = path_of(self.name, version=self.version, molecule=molecule, folder=folder)
        if path is None:
            options = {"--version": self.version, "--molecule": molecule, "--folder": self.folder}
            words = [word for option, value in options.items() if value for word in (option, value)]
            raise UserError(
                f"{key}.name: the data set {self.name!r} is not on this machine yet; get it with: "
                f"{shlex.join(['modelforge', 'data', 'fetch', self.name, *words])}"
            )
        return path
