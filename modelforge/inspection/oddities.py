"""Structures that should be looked at: close atoms, structures that occur twice, energies and forces far from all others.

Legend: S structures.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ase.data import chemical_symbols

from modelforge.data.audit.distances import CLOSE, SAME_PLACE, ClosePair, shortest_distances
from modelforge.data.audit.duplicates import Selection, duplicates_within
from modelforge.data.audit.figures import Figures
from modelforge.data.audit.fingerprints import exact_fingerprints
from modelforge.data.audit.outliers import FAR_ENERGY, FAR_SCORE, LARGE_AGAINST_TYPICAL, LARGE_FORCE
from modelforge.data.audit.sampling import evenly_spaced
from modelforge.data.reference import compositions_of
from modelforge.data.structures import Floats, Structures, sum_of_constants
from modelforge.inspection.inspection import Oddity
from modelforge.inspection.measuring import MOST_EXAMPLES, force_in_words, largest_in_structures, largest_places

MAX_PAIRS_OF_ATOMS = 1_500_000  # in crystals: bounds the search of near duplicates to a few seconds
COST_IN_MOLECULES = 0.1  # of a pair, against one in a crystal
MAX_SEARCHED = 100_000
SAME_ENERGY = 1e-4  # eV


def oddities(structures: Structures, figures: Figures) -> tuple[Oddity, ...]:
    """All kinds of them, those without a structure included."""
    return (*_distances(structures), *_duplicates(structures), _far_energies(structures), _large_forces(structures, figures))


def force_limit(figures: Figures) -> float:
    """The force in eV/angstrom above which the audit calls one far larger than the others."""
    return max(LARGE_FORCE, LARGE_AGAINST_TYPICAL * (figures.force_typical or 0.0))


def _distances(structures: Structures) -> Iterator[Oddity]:
    shortest = shortest_distances(structures)
    identical = int((shortest.distance < SAME_PLACE).sum())
    close = int((shortest.relative < CLOSE).sum())
    pairs = [_pair_in_words(structures, pair) for pair in shortest.closest[:MOST_EXAMPLES]]
    same = tuple(words for words, pair in zip(pairs, shortest.closest, strict=False) if pair.distance < SAME_PLACE)
    remark = f"{close} structures have atoms nearer than {CLOSE} of the sum of their covalent radii" if close else ""
    yield Oddity("closest pairs of atoms", len(pairs), tuple(pairs), remark)
    yield Oddity("atoms in the same place", identical, same, "")


def _pair_in_words(structures: Structures, pair: ClosePair) -> str:
    start = structures.offsets[pair.structure]
    first, second = (chemical_symbols[structures.atomic_numbers[start + atom]] for atom in (pair.first, pair.second))
    return (
        f"{structures.place(pair.structure)} atoms {pair.first} ({first}) and {pair.second} ({second}): "
        f"{pair.distance:.3f} angstrom, {pair.relative:.2f} of the covalent radii"
    )


def _duplicates(structures: Structures) -> Iterator[Oddity]:
    prints = np.concatenate([exact_fingerprints(piece) for piece in structures.pieces()])
    _, first, which = np.unique(prints, return_index=True, return_inverse=True)
    partner = first[which]
    again = np.flatnonzero(partner != np.arange(len(prints)))
    yield _listed("exact duplicates", again, lambda s: _equal_in_words(structures, int(partner[s]), s))
    searched = _affordable(structures)
    found = duplicates_within(Selection(structures, searched))
    partners = dict(zip(found.near.tolist(), found.partner.tolist(), strict=True))
    near = np.setdiff1d(found.near, again)
    remark = "up to rotation, shift, mirror image and numbering"
    lone = int(((structures.num_atoms == 1) & ~np.asarray(structures.periodic).any(axis=1)).sum())  # they have no shape
    if found.num_searched < len(structures) - lone:
        remark += f"; found with a sample of {found.num_searched:,} structures"
    yield _listed("near duplicates", near, lambda s: f"{structures.place(s)} is nearly {structures.place(partners[s])}", remark)


def _equal_in_words(structures: Structures, first: int, second: int) -> str:
    apart = float(structures.energy[second] - structures.energy[first])
    other = f", with an energy {apart:+.4g} eV from it" if abs(apart) > SAME_ENERGY else ""
    return f"{structures.place(second)} is {structures.place(first)}{other}"


def _affordable(structures: Structures) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Evenly spaced structures whose near duplicates are found in seconds."""
    cost = np.where(np.asarray(structures.periodic).any(axis=1), 1.0, COST_IN_MOLECULES)
    pairs = float(np.mean(cost * np.square(structures.num_atoms, dtype=np.float64)))
    return evenly_spaced(len(structures), at_most=max(2, min(MAX_SEARCHED, int(MAX_PAIRS_OF_ATOMS / pairs))))


def _far_energies(structures: Structures) -> Oddity:
    far, deviation = _deviations(structures)
    ranked = largest_places(np.where(far, np.abs(deviation), np.nan))
    examples = tuple(f"{structures.place(place)}: {deviation[place]:+.3g} eV per atom" for place in ranked)
    return Oddity("energies far from what the composition says", int(far.sum()), examples, "")


def _deviations(structures: Structures) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], Floats]:
    """Which energies are far from the others, (S,), and by how many eV per atom, (S,)."""
    bound = np.flatnonzero(structures.has_energy & (structures.num_atoms > 1))
    deviation = np.full(len(structures), np.nan)
    if len(bound) < 2:
        return np.zeros(len(structures), dtype=bool), deviation
    chosen, elements = bound, structures.elements
    for _ in range(2):  # the second fit is without what the first leaves far off
        fitted = compositions_of(structures, chosen, elements).fit(np.asarray(structures.energy)[chosen], {})
        left = (structures.energy - sum_of_constants(structures, fitted.table()))[bound] / structures.num_atoms[bound]
        size = np.abs(left - np.median(left))
        chosen = bound[size <= max(10 * float(np.median(size)), FAR_ENERGY)]
    deviation[bound] = left - np.median(left)
    spread = 1.4826 * float(np.median(size))
    return (np.abs(deviation) > FAR_ENERGY) & (np.abs(deviation) > FAR_SCORE * spread), deviation


def _large_forces(structures: Structures, figures: Figures) -> Oddity:
    largest = largest_in_structures(structures)
    limit = force_limit(figures)
    large = np.where(largest > limit, largest, np.nan)
    examples = tuple(force_in_words(structures, place) for place in largest_places(large))
    return Oddity("forces far larger than the others", int((largest > limit).sum()), examples, "")


def _listed(name: str, found: Sequence[int] | np.ndarray, words: Callable[[int], str], remark: str = "") -> Oddity:
    return Oddity(name, len(found), tuple(words(int(place)) for place in found[:MOST_EXAMPLES]), remark)
