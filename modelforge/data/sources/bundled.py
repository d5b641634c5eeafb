"""The bundled data set: ethanolamine and glycine at 300 K and 600 K, GFN2-xTB (`quickstart/README.md` says how it was made)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.source import DataSource, SourceFiles

FOLDER = Path(__file__).parent / "quickstart"
TESTS = ("test_300K", "test_600K")
ISOLATED_ATOMS = {  # GFN2-xTB, tblite 0.8.0, multiplicities 2, 3, 4 and 3, eV
    "H": -10.707211383283003,
    "C": -48.79807984748428,
    "N": -70.90808716403144,
    "O": -102.5218071447532,
}
FORMAT = ExtendedXYZ(path=(str(FOLDER / "train.xyz"),))


class Quickstart(DataSource):
    """The data set that comes with modelforge: 480 structures to train on, 100 each to test at 300 K and 600 K."""

    name: Literal["quickstart"]

    def self_energy_table(self) -> dict[str, float]:
        """Energies of isolated atoms in their ground states, from the same programme."""
        return dict(ISOLATED_ATOMS)

    def training_files(self, key: str = "dataset") -> tuple[SourceFiles, ...]:
        """The 480 structures."""
        return (FORMAT.files([FOLDER / "train.xyz"]),)

    def test_files(self, key: str = "dataset") -> dict[str, tuple[SourceFiles, ...]]:
        """The tests at 300 K and at 600 K."""
        return {name: (FORMAT.files([FOLDER / f"{name}.xyz"]),) for name in TESTS}

    def files(self, paths: Sequence[Path]) -> SourceFiles:
        """Other extended XYZ files, with the usual keys, in eV and angstrom."""
        return FORMAT.files(paths)
