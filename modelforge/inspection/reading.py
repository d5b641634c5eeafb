"""Read files with the keys and units that they need, as far as their keys say: what is guessed is kept apart.

Large files are looked into before they are read as a whole: the first part of some of them tells which keys there are.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from modelforge.configuration.writing import toml_value
from modelforge.data.audit.sampling import evenly_spaced
from modelforge.data.detection import load_data
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.file_source import PER_ATOM_OPTIONS
from modelforge.data.sources.gather import read
from modelforge.data.sources.part import Part
from modelforge.data.sources.source import DataSource, Reader, SourceFiles
from modelforge.data.sources.stored import Stored
from modelforge.data.store.opening import STORE_FROM, OpenedData, cache_folder, open_files
from modelforge.data.store.prepared_once import Say
from modelforge.errors import UserError
from modelforge.inspection.label_names import FileKey, candidates, missing_labels

PROVISIONAL = {
    "energy_unit": "eV",
    "length_unit": "angstrom",
    "forces_unit": "eV/angstrom",
    "stress_unit": "eV/angstrom^3",
    "dipole_unit": "e*angstrom",
    "quadrupole_unit": "e*angstrom^2",
}
"""What a unit is taken for that a file should state and does not."""
MISSING_UNIT = re.compile(r"dataset\.(\w+_unit): missing")
UNIT_KEYS = ("energy_unit_key", "length_unit_key")
STATING_UNITS = {f"{label}_unit" for label in ("energy", "length", "forces", "stress", "virial")}  # headers of extended XYZ
MOST_FILES = 20  # that are looked into


@dataclass(frozen=True)
class Request:
    """What the user asked for, and how it is read so far."""

    paths: tuple[str, ...]
    settings: tuple[str, ...]
    say: Say

    @property
    def given(self) -> frozenset[str]:
        """The keys of [dataset] that the user set."""
        return frozenset(setting.partition("=")[0].strip().removeprefix("dataset.") for setting in self.settings)


@dataclass(frozen=True, eq=False)
class Look:
    """Files as they were read with some settings."""

    source: DataSource
    opened: OpenedData
    is_whole: bool  # not only the first parts
    guessed: Mapping[str, str]  # keys of [dataset] that nobody gave
    provisional: Mapping[str, str]  # units that files should state
    notes: tuple[str, ...] = ()
    fitted: frozenset[str] = frozenset()  # of the guessed keys, those that the numbers suggest

    @property
    def key_options(self) -> tuple[str, ...]:
        """The keys of [dataset] that name keys of the files; a store has none."""
        return tuple(option for option in type(self.source).model_fields if option.endswith("_key"))

    @property
    def used_keys(self) -> frozenset[FileKey]:
        """The keys of the files that something is read from."""
        asked = (pair for some in self.source.training_files() for pair in some.reader.label_keys().items())
        named = {FileKey(key, option in PER_ATOM_OPTIONS) for option, key in asked}
        named |= {FileKey(origin.key, origin.per_atom) for origin in self.opened.report.origins if origin.num_carriers}
        stating = {getattr(self.source, option) for option in UNIT_KEYS if hasattr(self.source, option)}
        stating |= STATING_UNITS if isinstance(self.source, ExtendedXYZ) else set()
        return frozenset(named | {FileKey(key, per_atom=False) for key in stating})


def look(request: Request, guessed: Mapping[str, str] | None = None, *, whole: bool = False) -> Look:
    """Read the files, or the first parts of large ones, with guessed settings and with provisional units where some miss."""
    provisional: dict[str, str] = {}
    while True:
        added = {**(guessed or {}), **provisional}
        words = [*request.settings, *(f"{key}={toml_value(value)}" for key, value in added.items())]
        source = load_data(request.paths, words).section.dataset
        try:
            opened, is_whole = _open(source, whole, request.say)
        except UserError as error:
            match = MISSING_UNIT.match(str(error))
            if match is None or match[1] in added or match[1] not in PROVISIONAL:
                raise
            provisional[match[1]] = PROVISIONAL[match[1]]
        else:
            return Look(source, opened, is_whole, dict(guessed or {}), provisional)


def with_guessed_keys(request: Request, first: Look) -> Look:
    """Read again with the keys of labels that were not found where exactly one key looks like them."""
    keys = _only_candidates(first, request.given)
    if not keys:
        return first
    together = _tried(request, keys)
    if isinstance(together, Look):
        return replace(together, notes=_sentences(keys))
    kept, found, notes = dict[str, str](), first, list[str]()
    for option, key in keys.items():
        trial = _tried(request, {**kept, option: key})
        if isinstance(trial, Look):
            kept, found = {**kept, option: key}, trial
        else:
            notes.append(f"{key!r} looks like {option} by its name, but cannot be read so: {trial}")
    return replace(found, notes=(*_sentences(kept), *notes))


def _open(source: DataSource, whole: bool, say: Say) -> tuple[OpenedData, bool]:
    files = source.training_files()
    size = sum(path.stat().st_size for some in files for each in some.paths for path in some.reader.bytes_of(each))
    if whole or size < STORE_FROM or isinstance(source, Stored):
        return open_files(files, cache=cache_folder(source.cache_folder), say=say), True
    return OpenedData(read([_first_parts(some) for some in files]), ""), False


def _first_parts(some: SourceFiles) -> SourceFiles:
    chosen = evenly_spaced(len(some.paths), at_most=MOST_FILES).tolist()
    return SourceFiles(FirstPart(some.reader), tuple(some.paths[place] for place in chosen), some.prefix)


class FirstPart:
    """Reads the first part of each file."""

    homes: ClassVar[tuple[str, str]] = ("keys", "per-atom keys")

    def __init__(self, reader: Reader) -> None:
        self.reader, self.name = reader, reader.name

    def read_file(self, path: Path) -> Iterator[Part]:
        """The first part."""
        return islice(self.reader.read_file(path), 1)

    def bytes_of(self, path: Path) -> Sequence[Path]:
        """The files that the reader reads."""
        return self.reader.bytes_of(path)

    def options(self) -> dict[str, object]:
        """Those of the reader."""
        return self.reader.options()

    def label_keys(self) -> Mapping[str, str]:
        """Those of the reader."""
        return self.reader.label_keys()


def _only_candidates(first: Look, given: frozenset[str]) -> dict[str, str]:
    """For each option that nobody gave and whose label is nowhere, the only key that looks like it."""
    report, structures = first.opened.report, first.opened.structures
    options = first.key_options
    wanted = missing_labels(report, options)
    if structures.subset_names == ("",):
        wanted.append("subset")
    if len(np.unique(structures.group)) == len(structures):
        wanted.append("group")
    found = {}
    for label in wanted:
        if len(fitting := candidates(report, label, first.used_keys)) == 1:
            key, option = next(iter(fitting.items()))
            asked = {"forces": ("forces_key", "gradient_key"), "stress": ("stress_key", "virial_key")}.get(label, (option,))
            if option in options and not given.intersection(asked):
                found[option] = key
    return found


def _tried(request: Request, keys: Mapping[str, str]) -> Look | str:
    """The files read with these keys, or why that is impossible."""
    try:
        trial = look(request, keys)
    except UserError as error:
        return str(error)
    for option in keys:
        origin = trial.opened.report.origin(option)
        if origin is not None and not origin.num_carriers:
            return f"no structure has it as {option} needs it"
    return trial


def _sentences(keys: Mapping[str, str]) -> tuple[str, ...]:
    what = {"subset_key": "subsets are named by", "group_key": "groups are named by"}
    beginnings = {option: what.get(option) or f"{option.removesuffix('_key')} is read from" for option in keys}
    return tuple(f"{beginnings[option]} {key!r}, the only key that looks like it" for option, key in keys.items())
