"""Which structures train, validate and test: drawn from an own random stream, the same on every process, saved with the hash
of the data it indexes.

S structures.
"""

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from pydantic import Field, model_validator

from modelforge.atoms.self_energies import NUM_ATOMIC_NUMBERS
from modelforge.data.sources.paths import expand_paths
from modelforge.data.structures import Integers, Structures
from modelforge.errors import UserError
from modelforge.files import replacing
from modelforge.section import CountOrZero, PathText, Problem, Section, SectionError

SETS = ("train", "validation", "test")
SUM_TOLERANCE = 1e-6  # 0.7 + 0.2 + 0.1 is not 1 in floating point

Share = Annotated[float, Field(ge=0, le=1)]


class SplitSection(Section):
    """How the structures of `dataset.path` are shared out; test files named in `dataset.test_paths` are not part of it."""

    strategy: Literal["random", "group", "blocks", "files"] = "random"
    """Draw structures, draw whole groups, cut the file's order into blocks (for trajectories), or take sets from files."""
    fractions: tuple[Share, Share, Share] | None = None
    """Fractions of training, validation and test, which sum to 1; [0.9, 0.1, 0.0] where neither these nor counts are given."""
    counts: tuple[CountOrZero, CountOrZero, CountOrZero] | None = None
    """Numbers of structures for training, validation and test, instead of fractions; what is left over is not used."""
    seed: CountOrZero = 0
    """Seed of the draw; it has nothing to do with `runtime.seed`."""
    validation_files: tuple[PathText, ...] = ()
    """For strategy "files": files or globs for validation."""
    test_files: tuple[PathText, ...] = ()
    """For strategy "files": files or globs for the set "test"."""

    @model_validator(mode="after")
    def _keys_fit_together(self) -> "SplitSection":
        if problems := [*self._problems_with_sizes(), *self._problems_with_files()]:
            raise SectionError(*problems)
        return self

    def _problems_with_sizes(self) -> Iterator[Problem]:
        fractions, counts = self.fractions, self.counts
        if fractions is not None and counts is not None:
            yield "counts", "must not be given together with fractions; remove one of them"
            return
        if fractions is not None and abs(sum(fractions) - 1.0) > SUM_TOLERANCE:
            yield "fractions", f"must sum to 1 (they sum to {sum(fractions):g})"
        for key, sizes in (("fractions", fractions), ("counts", counts)):
            if sizes is not None and not (sizes[0] and sizes[1]):
                reason = "validation decides on the learning rate and the best weights"
                yield key, f"must be above 0 for training and validation (got {list(sizes)}); {reason}"

    def _problems_with_files(self) -> Iterator[Problem]:
        if self.strategy == "files":
            for key in ("fractions", "counts"):
                if getattr(self, key) is not None:
                    yield key, 'has no effect with strategy = "files", which takes validation_files and test_files; remove it'
            if not self.validation_files:
                yield "validation_files", 'missing; strategy "files" needs it'
        else:
            for key in ("validation_files", "test_files"):
                if getattr(self, key):
                    yield key, f'has no effect with strategy = "{self.strategy}"; remove it, or set strategy = "files"'


@dataclass(frozen=True, eq=False)
class Split:
    """Ascending indices of the structures of each set."""

    train: Integers
    validation: Integers
    test: Integers

    def sets(self) -> dict[str, Integers]:
        """The sets by name."""
        return {name: getattr(self, name) for name in SETS}


def split(section: SplitSection, structures: Structures, usable: Integers) -> Split:
    """Share out the usable structures (their indices); errors name the key to change."""
    if section.strategy == "files":
        chosen = _by_files(section, structures, usable)
    elif section.strategy == "group":
        chosen = _by_groups(section, structures.group[usable], usable)
    else:
        order = usable if section.strategy == "blocks" else _stream(section.seed).permutation(usable)
        chosen = _cut(order, _sizes(section, len(usable)))
    if section.strategy == "random":
        chosen = _with_all_elements_in_training(structures, chosen)
    found = Split(*(np.sort(part) for part in chosen))
    remedy = "name other files" if section.strategy == "files" else "give it a larger share"
    for name in ("train", "validation"):
        if not len(found.sets()[name]):
            raise UserError(
                f"dataset.split.{_key_of_sizes(section)}: must leave structures for the set {name!r} (got none of the "
                f"{len(usable)} structures); {remedy}"
            )
    return found


def _key_of_sizes(section: SplitSection) -> str:
    if section.strategy == "files":
        return "validation_files"
    return "fractions" if section.counts is None else "counts"


def _stream(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 0x51])  # apart from the streams of weights and of the order of batches


def _sizes(section: SplitSection, total: int) -> tuple[int, ...]:
    if section.counts is not None:
        if sum(section.counts) > total:
            raise UserError(
                f"dataset.split.counts: must sum to at most {total}, the number of structures (got {list(section.counts)}, "
                f"which sum to {sum(section.counts)})"
            )
        return section.counts
    exact = np.array(section.fractions or (0.9, 0.1, 0.0)) * total
    sizes = np.floor(exact + SUM_TOLERANCE).astype(int)
    for place in np.argsort(-(exact - sizes), kind="stable")[: total - sizes.sum()]:
        sizes[place] += 1
    return tuple(sizes.tolist())


def _cut(order: Integers, sizes: tuple[int, ...]) -> list[Integers]:
    return np.split(order, np.cumsum(sizes))[:3]


def _with_all_elements_in_training(structures: Structures, chosen: list[Integers]) -> list[Integers]:
    """Exchange structures so that training has every element: a set cannot be predicted with elements never trained on.

    The first structure with a missing element changes places with a training structure that is not needed for its own.
    """
    train, *others = (part.copy() for part in chosen)
    known = np.bincount(_elements_of(structures, train), minlength=NUM_ATOMIC_NUMBERS) > 0
    for other in others:
        owner = np.repeat(np.arange(len(other)), structures.num_atoms[other])
        for place in np.unique(owner[~known[_elements_of(structures, other)]]).tolist():
            elements = _elements_of(structures, other[place : place + 1])
            spare = None if known[elements].all() else _first_spare(structures, train)
            if spare is not None:
                train[spare], other[place] = other[place], train[spare]
                known[elements] = True
    return [train, *others]


def _elements_of(structures: Structures, chosen: Integers) -> NDArray[np.uint8]:
    return structures.atomic_numbers[structures.atoms_of(chosen)]


def _first_spare(structures: Structures, train: Integers) -> int | None:
    """The place of the first training structure whose elements all occur in others too."""
    owner = np.repeat(np.arange(len(train)), structures.num_atoms[train])
    pairs = np.unique(np.stack([owner, _elements_of(structures, train)]), axis=1)
    how_often = np.bincount(pairs[1], minlength=NUM_ATOMIC_NUMBERS)
    rarest = np.full(len(train), np.iinfo(np.int64).max)
    np.minimum.at(rarest, pairs[0], how_often[pairs[1]])
    spares = np.flatnonzero(rarest > 1)
    return int(spares[0]) if len(spares) else None


def _by_groups(section: SplitSection, groups: Integers, usable: Integers) -> list[Integers]:
    """Whole groups in random order until each set has its size; the last set takes what is left."""
    names, which, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = _stream(section.seed).permutation(len(names))
    ends = np.cumsum(_sizes(section, len(usable)))
    middle = np.cumsum(counts[order]) - 0.5 * counts[order]
    set_of_group = np.empty(len(names), dtype=int)
    set_of_group[order] = np.searchsorted(ends, middle)
    return [usable[set_of_group[which] == place] for place in range(3)]


def _by_files(section: SplitSection, structures: Structures, usable: Integers) -> list[Integers]:
    chosen = []
    for patterns in (section.validation_files, section.test_files):
        files = {str(path) for path in expand_paths(patterns, Path())} if patterns else set()
        numbers = [number for number, file in enumerate(structures.files) if file in files]
        chosen.append(np.isin(structures.file[usable], numbers))
    validation, test = chosen
    return [usable[~validation & ~test], usable[validation], usable[test & ~validation]]


def origin_of_split(section: SplitSection, structures: Structures, usable: Integers) -> str:
    """A digest of what a split is drawn from besides labels and geometry: options, usable structures, groups and subsets."""
    digest = hashlib.blake2b(section.model_dump_json().encode(), digest_size=16)
    names = np.array(structures.subset_names)
    for column in (usable, structures.group):
        digest.update(np.ascontiguousarray(column, dtype=np.int64).tobytes())
    # names, not numbers: files in another order number subsets otherwise
    hashes = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in names.tolist()]
    digest.update(np.array(hashes, dtype=np.uint64)[structures.subset].tobytes())
    return digest.hexdigest()


def save_split(path: Path, found: Split, *, data_hash: str, origin: str) -> None:
    """Write the split with the hash of its data and of what it was drawn from, at once or not at all."""
    sets = found.sets()
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, data_hash=np.array(data_hash), origin=np.array(origin), **sets)  # type: ignore[arg-type]  # of numpy


def load_split(path: Path, *, data_hash: str, origin: str) -> Split:
    """The split of an earlier start; an error if the data, or what is drawn from them, have changed since."""
    remedy = "so the run cannot go on with them. Restore {}, or start a new run with another runtime.run_folder"
    with _verified(path) as saved:
        if str(saved["data_hash"]) != data_hash:
            raise UserError(f"{path}: the data files have changed since this run drew its split, {remedy.format('the files')}")
        if str(saved["origin"]) != origin:
            what = "groups, subsets, or the structures that dataset.filter and dataset.split choose"
            raise UserError(f"{path}: {what} have changed since this run drew its split, {remedy.format('them')}")
        return Split(**{name: saved[name] for name in SETS})


@contextmanager
def _verified(path: Path) -> Iterator[NpzFile]:
    """The content of a file of a split, which has checksums; a damaged one is an error."""
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
        saved = np.load(path, allow_pickle=False)
        is_complete = not damaged and {"data_hash", "origin", *SETS} <= set(saved.files)
    except (BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError, zlib.error) as error:
        raise _damaged(path) from error
    if not is_complete:
        raise _damaged(path)
    with saved:
        yield saved


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path}: cannot be read as the split of this run; restore a good copy, or delete it: the same data and settings give "
        "the same split again"
    )
