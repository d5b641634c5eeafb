"""Parts of many files become one set of structures: groups, subsets and files are numbered, labels are counted.

Whatever takes the parts one by one (arrays in memory, the store on disk) sees each part once.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from modelforge.data.sources.file_source import LABEL_OF_OPTION, PER_ATOM_OPTIONS, FileSource
from modelforge.data.sources.part import Part
from modelforge.data.sources.read_report import LabelOrigin, Reading, ReadReport, Removal
from modelforge.data.sources.source import SourceFiles
from modelforge.data.structures import LABELS, Integers, Structures, concatenate


class SourceCounts(NamedTuple):
    """What was counted in the files of one reader."""

    keys: Counter[str]
    columns: Counter[str]
    complete: Counter[str]  # structures that have each label completely
    units: dict[str, str]


class Gatherer:
    """Numbers and counts parts on their way."""

    def __init__(self, files: Sequence[SourceFiles]) -> None:
        self.files = files
        self.names = tuple(str(path) for some in files for path in some.paths)
        self.subset_names: dict[str, int] = {}
        self.removals: list[Removal] = []
        self.num_structures = 0
        self._groups: dict[tuple[int, str], int] = {}
        self._num_groups = 0
        self._counts = [SourceCounts(Counter(), Counter(), Counter(), {}) for _ in files]

    def parts(self) -> Iterator[Structures]:
        """The structures of all files, in order, part by part."""
        number = 0
        for source, some in enumerate(self.files):
            for path in some.paths:
                for part in some.reader.read_file(path):
                    yield self._numbered(part, source, number)
                number += 1

    def _numbered(self, part: Part, source: int, file: int) -> Structures:
        self._count(part, source, file)
        structures, prefix = part.structures, self.files[source].prefix
        names = [f"{prefix}/{name}" if prefix and name else prefix or name for name in structures.subset_names]
        used = np.bincount(structures.subset, minlength=len(names)) > 0
        places = [self.subset_names.setdefault(n, len(self.subset_names)) if u else 0 for n, u in zip(names, used, strict=True)]
        numbered = replace(
            structures,
            group=self._group_numbers(part, source),
            subset=np.array(places, dtype=np.int64)[structures.subset],
            file=np.full(len(structures), file, dtype=np.int64),
            subset_names=tuple(self.subset_names),
            files=self.names,
        )
        self.num_structures += len(structures)
        return numbered

    def _group_numbers(self, part: Part, source: int) -> Integers:
        """Numbers of groups: equal names in one source mean one group, in whichever file."""
        numbers = np.arange(self._num_groups, self._num_groups + len(part.structures))
        for place, name in enumerate(part.groups or ()):
            if name is not None:
                numbers[place] = self._groups.setdefault((source, name), int(numbers[place]))
        self._num_groups += len(numbers)
        return numbers

    def _count(self, part: Part, source: int, file: int) -> None:
        counts = self._counts[source]
        counts.keys.update(part.keys)
        counts.columns.update(part.columns)
        counts.units.update(part.units)
        for label in LABELS:
            counts.complete[label] += int(np.count_nonzero(part.structures.has(label)))
        self.removals += [Removal(reason, self.names[file], len(which)) for reason, which in part.dropped.items()]

    def report(self) -> ReadReport:
        """What was found, once all parts have come through."""
        origins = tuple(
            self._origin(option, key, counts, _table(some))
            for some, counts in zip(self.files, self._counts, strict=True)
            for option, key in some.reader.label_keys().items()
        )
        keys, columns = Counter[str](), Counter[str]()
        for counts in self._counts:
            keys.update(counts.keys)
            columns.update(counts.columns)
        homes = {some.reader.homes for some in self.files}
        home = homes.pop() if len(homes) == 1 else FileSource.homes
        return ReadReport(
            self.names,
            self.num_structures,
            origins,
            dict(keys),
            dict(columns),
            homes=home,
            tables=tuple(_table(some) for some in self.files for _ in some.paths),
            length_units={
                _table(some): counts.units.get("length", "") for some, counts in zip(self.files, self._counts, strict=True)
            },
            removals=tuple(self.removals),
        )

    def _origin(self, option: str, key: str, counts: SourceCounts, table: str) -> LabelOrigin:
        per_atom, label = option in PER_ATOM_OPTIONS, LABEL_OF_OPTION.get(option, "")
        carriers = (counts.columns if per_atom else counts.keys)[key]
        incomplete = carriers - counts.complete[label] if label else 0
        return LabelOrigin(table + option, label, key, per_atom, counts.units.get(label, ""), carriers, incomplete)


def _table(some: SourceFiles) -> str:
    return f"sources.{some.prefix}." if some.prefix else ""


def read(files: Sequence[SourceFiles]) -> Reading:
    """All structures of some files, in memory."""
    gatherer = Gatherer(files)
    structures = concatenate(list(gatherer.parts()))
    return Reading(structures, gatherer.report())
