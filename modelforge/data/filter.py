"""Which structures of the data are used: every removal has a reason, and is counted by file."""

from collections.abc import Iterator, Mapping

import numpy as np
from ase.data import atomic_numbers as number_of_symbol
from numpy.typing import NDArray
from pydantic import field_validator, model_validator

from modelforge.data.sources.read_report import Removal, did_you_mean
from modelforge.data.structures import Integers, Structures
from modelforge.errors import UserError
from modelforge.section import Count, Positive, Section, SectionError

Mask = NDArray[np.bool_]


class FilterSection(Section):
    """Structures of `dataset.path` to leave out of training, validation and test; test files are never filtered."""

    elements: tuple[str, ...] = ()
    """Keep structures made of these elements only."""
    without_elements: tuple[str, ...] = ()
    """Leave out structures with any of these elements."""
    with_elements: tuple[str, ...] = ()
    """Keep structures that have all of these elements."""
    min_atoms: Count | None = None
    """Leave out smaller structures."""
    max_atoms: Count | None = None
    """Leave out larger structures."""
    max_force: Positive | None = None
    """Leave out structures with a larger force on an atom, eV/angstrom."""
    min_energy_per_atom: float | None = None
    """Leave out structures with a lower energy label over the number of atoms, eV."""
    max_energy_per_atom: float | None = None
    """Leave out structures with a higher energy label over the number of atoms, eV."""
    subsets: tuple[str, ...] = ()
    """Keep these subsets only (what `subset_key` holds)."""
    without_subsets: tuple[str, ...] = ()
    """Leave out these subsets."""

    @field_validator("elements", "without_elements", "with_elements")
    @classmethod
    def are_elements(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        """Symbols, as in the periodic table."""
        for symbol in symbols:
            if number_of_symbol.get(symbol, 0) < 1:
                raise ValueError(f"must be symbols of elements, like 'C' (got {symbol!r})")
        return symbols

    @model_validator(mode="after")
    def bounds_in_order(self) -> "FilterSection":
        """A lower bound above the upper one keeps nothing."""
        for quantity in ("atoms", "energy_per_atom"):
            low, high = getattr(self, f"min_{quantity}"), getattr(self, f"max_{quantity}")
            if low is not None and high is not None and low > high:
                raise SectionError((f"min_{quantity}", f"must not exceed max_{quantity} = {high:g} (got {low:g})"))
        return self


def filtered(section: FilterSection, structures: Structures) -> tuple[Integers, tuple[Removal, ...]]:
    """Indices of the structures that stay, and a table of those that do not; each is counted under its first reason."""
    _refuse_unknown_subsets(section, structures.subset_names)
    kept = np.ones(len(structures), dtype=bool)
    removals: list[Removal] = []
    for reason, keep in _reasons(section, structures):
        gone = np.bincount(structures.file[kept & ~keep], minlength=len(structures.files))
        removals += [Removal(reason, structures.files[k], int(gone[k])) for k in np.flatnonzero(gone).tolist()]
        kept &= keep
    if not kept.any():
        counts = ", ".join(f"{reason} {count}" for reason, count in counts_by_reason(removals).items())
        raise UserError(f"dataset.filter: leaves none of the {len(structures)} structures ({counts}); loosen it")
    return np.flatnonzero(kept), tuple(removals)


def counts_by_reason(removals: list[Removal] | tuple[Removal, ...]) -> dict[str, int]:
    """How many structures were left out for each reason, over all files."""
    return {
        reason: sum(removal.count for removal in removals if removal.reason == reason)
        for reason in dict.fromkeys(removal.reason for removal in removals)
    }


def _reasons(section: FilterSection, structures: Structures) -> Iterator[tuple[str, Mask]]:
    """Each filter that is set, and which structures pass it; what has no label passes filters of labels."""
    names = np.array(structures.subset_names)
    if section.subsets:
        yield "not in filter.subsets", np.isin(names, section.subsets)[structures.subset]
    if section.without_subsets:
        yield "in filter.without_subsets", ~np.isin(names, section.without_subsets)[structures.subset]
    if section.min_atoms is not None:
        yield f"fewer than {section.min_atoms} atoms", structures.num_atoms >= section.min_atoms
    if section.max_atoms is not None:
        yield f"more than {section.max_atoms} atoms", structures.num_atoms <= section.max_atoms
    yield from _reasons_of_elements(section, structures)
    per_atom = structures.energy / structures.num_atoms
    if (low := section.min_energy_per_atom) is not None:
        yield f"energy below {low:g} eV per atom", ~(per_atom < low)
    if (high := section.max_energy_per_atom) is not None:
        yield f"energy above {high:g} eV per atom", ~(per_atom > high)
    if section.max_force is not None:
        yield f"force above {section.max_force:g} eV/angstrom", ~(largest_forces(structures) > section.max_force)


def _reasons_of_elements(section: FilterSection, structures: Structures) -> Iterator[tuple[str, Mask]]:
    sets = {name: _numbers(getattr(section, name)) for name in ("elements", "without_elements", "with_elements")}
    if not any(map(len, sets.values())):
        return
    present = element_table(structures)
    if len(sets["elements"]):
        others = np.setdiff1d(np.arange(present.shape[1]), sets["elements"])
        yield "elements besides filter.elements", np.asarray(~present[:, others].any(axis=1))
    if len(sets["without_elements"]):
        yield "elements in filter.without_elements", np.asarray(~present[:, sets["without_elements"]].any(axis=1))
    if len(sets["with_elements"]):
        yield "lacks one of filter.with_elements", np.asarray(present[:, sets["with_elements"]].all(axis=1))


def element_table(structures: Structures) -> Mask:
    """Which elements each structure has, by atomic number, (S, 119)."""
    present = np.zeros((len(structures), 119), dtype=bool)
    first = 0
    for piece in structures.pieces():
        present[first + np.repeat(np.arange(len(piece)), piece.num_atoms), piece.atomic_numbers] = True
        first += len(piece)
    return present


def largest_forces(structures: Structures) -> NDArray[np.float64]:
    """Norm of the largest force of each structure, eV/angstrom, NaN where it has none, (S,)."""
    pieces = (
        np.fmax.reduceat(np.sqrt(np.einsum("ij,ij->i", piece.forces, piece.forces)), piece.offsets[:-1])
        for piece in structures.pieces()
    )
    return np.concatenate(list(pieces))


def _numbers(symbols: tuple[str, ...]) -> NDArray[np.int64]:
    return np.array([number_of_symbol[symbol] for symbol in symbols], dtype=np.int64)


def _refuse_unknown_subsets(section: FilterSection, names: tuple[str, ...]) -> None:
    for option in ("subsets", "without_subsets"):
        refuse_unknown_subsets(getattr(section, option), names, key=f"dataset.filter.{option}")


def refuse_unknown_subsets(named: tuple[str, ...] | Mapping[str, float], names: tuple[str, ...], *, key: str) -> None:
    """A subset that is nowhere is a misspelt one."""
    for name in named:
        if name not in names:
            there = ", ".join(repr(other) for other in names if other)
            there = f"there are {there}" if there else "no structure names one (dataset.subset_key)"
            raise UserError(f"{key}: {name!r} is no subset of the data{did_you_mean(name, names)}; {there}")
