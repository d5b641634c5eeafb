"""What every data source is: files, keys and units in, structures and a report on their labels out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from modelforge.data.reference import SelfEnergiesSection
from modelforge.data.sources.read_report import Reading
from modelforge.data.split import SplitSection
from modelforge.section import Section


class DataSource(Section, ABC):
    """What all data sources have in common."""

    split: SplitSection = SplitSection()
    self_energies: SelfEnergiesSection = SelfEnergiesSection()

    def self_energy_table(self) -> dict[str, float]:
        """Self-energies in eV by element symbol that come with the data, for source "dataset"; empty where none do."""
        return {}

    @abstractmethod
    def read(self) -> Reading:
        """The structures that are split into training, validation and test."""

    @abstractmethod
    def read_tests(self) -> dict[str, Reading]:
        """The named test sets."""

    @abstractmethod
    def read_files(self, paths: Sequence[Path]) -> Reading:
        """Structures of other files, read with the keys and units of this source."""
