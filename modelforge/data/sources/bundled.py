"""The bundled data set: ethanolamine and glycine at 300 K and 600 K, GFN2-xTB (`quickstart/README.md` says how it was made)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from modelforge.data.sources.extxyz import ExtendedXYZ, read_extxyz
from modelforge.data.sources.read_report import Reading
from modelforge.data.sources.source import DataSource

FOLDER = Path(__file__).parent / "quickstart"
TESTS = ("test_300K", "test_600K")
FORMAT = ExtendedXYZ(path=(str(FOLDER / "train.xyz"),))


class Quickstart(DataSource):
    """The data set that comes with modelforge: 480 structures to train on, 100 each to test at 300 K and 600 K."""

    name: Literal["quickstart"]

    def read(self) -> Reading:
        """The 480 structures."""
        return read_extxyz([FOLDER / "train.xyz"], FORMAT)

    def read_tests(self) -> dict[str, Reading]:
        """The tests at 300 K and at 600 K."""
        return {name: read_extxyz([FOLDER / f"{name}.xyz"], FORMAT) for name in TESTS}

    def read_files(self, paths: Sequence[Path]) -> Reading:
        """Structures of other extended XYZ files, with the usual keys, in eV and angstrom."""
        return read_extxyz(paths, FORMAT)
