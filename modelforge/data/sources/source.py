"""What every data source is: a section that names files, each with the reader that turns it into parts.

To add a format, write a file with a `FileSource` (see `file_source.py`) and add it to the union in `data/section.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from modelforge.data.filter import FilterSection
from modelforge.data.reference import SelfEnergiesSection
from modelforge.data.sources.part import Part
from modelforge.data.split import SplitSection
from modelforge.section import NonNegative, PathText, Section


class Reader(Protocol):
    """Turns files into parts."""

    homes: ClassVar[tuple[str, str]]

    @property
    def name(self) -> str:
        """What `[dataset] name` calls the format."""

    def read_file(self, path: Path) -> Iterator[Part]:
        """The structures of a file in parts of bounded memory; a file that cannot be read to its end is a `UserError`."""

    def bytes_of(self, path: Path) -> Sequence[Path]:
        """The files whose bytes make up what is read, for a folder those in it."""

    def options(self) -> dict[str, object]:
        """All that decides on what is read from given bytes."""

    def label_keys(self) -> Mapping[str, str]:
        """The key that each option such as "forces_key" names; options that are not used are left out."""


@dataclass(frozen=True)
class SourceFiles:
    """Files, and the reader for them; with a prefix, subsets are called `prefix` or `prefix/subset`."""

    reader: Reader
    paths: tuple[Path, ...]
    prefix: str = ""


class DataSource(Section, ABC):
    """What all data sources have in common."""

    split: SplitSection = SplitSection()
    self_energies: SelfEnergiesSection = SelfEnergiesSection()
    filter: FilterSection = FilterSection()
    subset_weights: dict[str, NonNegative] = {}
    """Factor on the loss of all structures of a subset (what `subset_key` holds), or of a mixed source; 1 where not named."""
    audit: Literal["stop", "report"] = "stop"
    """Whether labels that contradict each other, or units that cannot be right, stop the run or are only reported."""
    cache_folder: PathText | None = None
    """Where large data are kept in the form that batches are read from; by default `$XDG_CACHE_HOME/modelforge`."""

    def self_energy_table(self) -> dict[str, float]:
        """Self-energies in eV by element symbol that come with the data, for source "dataset"; empty where none do."""
        return {}

    @abstractmethod
    def training_files(self, key: str = "dataset") -> tuple[SourceFiles, ...]:
        """The files whose structures are split into training, validation and test; `key` is the table's, for messages."""

    @abstractmethod
    def test_files(self, key: str = "dataset") -> dict[str, tuple[SourceFiles, ...]]:
        """The files of each named test set."""

    @abstractmethod
    def files(self, paths: Sequence[Path]) -> SourceFiles:
        """Other files, to be read with the keys and units of this source."""
