"""Labels far from all others: the largest forces, and energies that their composition does not explain.

Legend: S structures, N atoms of all of them, Z elements.
"""

from dataclasses import dataclass

import numpy as np

from modelforge.atoms.self_energies import element_counts, fit_self_energies
from modelforge.data.audit.findings import Finding
from modelforge.data.audit.sampling import portions, sample
from modelforge.data.structures import Floats, Integers, Structures

NUM_REPORTED = 3
QUANTILES = (0.5, 0.9, 0.99, 0.999)
FINEST, COARSEST, BINS_PER_DECADE = 1e-6, 1e6, 500  # eV/angstrom: quantiles come from a histogram, exact to 0.5 %
LARGE_FORCE = 50.0  # eV/angstrom; the largest are 22 in water and 10 in molecules at 300 and 600 K
LARGE_AGAINST_TYPICAL = 50.0  # times the median over structures of the RMS force; thermal ensembles have 3 to 8
FAR_ENERGY = 1.0  # eV per atom from the others
FAR_SCORE = 20.0  # robust standard deviations; the most in eleven sets is 6, where a thousand crystals reach 3 eV per atom
MIN_PER_ELEMENT = 3  # structures for each constant
MAX_FITTED = 20_000  # structures to which the constants of the elements are fitted


@dataclass(frozen=True)
class LargeForce:
    """An atom with a large force."""

    structure: int
    atom: int
    norm: float  # eV/angstrom


@dataclass(frozen=True)
class FarEnergy:
    """A structure whose energy is far from what its composition says."""

    structure: int
    deviation: float  # eV per atom
    score: float  # in robust standard deviations


@dataclass(frozen=True)
class ForceFigures:
    """Sizes of the forces of all atoms."""

    quantiles: tuple[float, ...]  # of the norms at `QUANTILES`, eV/angstrom
    typical: float  # median over structures of the RMS norm, eV/angstrom
    largest: tuple[LargeForce, ...]


def force_figures(structures: Structures, chosen: Integers | None = None) -> ForceFigures | None:
    """Sizes of the forces of the chosen structures (all by default), or None where none has forces."""
    edges = np.logspace(np.log10(FINEST), np.log10(COARSEST), int(BINS_PER_DECADE * np.log10(COARSEST / FINEST)) + 1)
    histogram = np.zeros(len(edges) + 1, dtype=np.int64)
    typical, largest = [np.zeros(0)], []
    for members, piece in portions(structures, chosen):
        squares = np.einsum("ai,ai->a", piece.forces, piece.forces)  # NaN where a force is missing
        known = squares[np.isfinite(squares)]
        if not len(known):
            continue
        places = np.clip((np.log10(np.maximum(known, 1e-300)) / 2 - np.log10(FINEST)) * BINS_PER_DECADE, -1, len(edges) - 1)
        histogram += np.bincount(np.floor(places).astype(np.int64) + 1, minlength=len(histogram))
        typical.append(np.sqrt(np.add.reduceat(squares, piece.offsets[:-1]) / piece.num_atoms))
        largest += _largest(members, piece, squares)
    if not largest:
        return None
    largest.sort(key=lambda force: -force.norm)
    whole = np.concatenate(typical)
    whole = whole[np.isfinite(whole)]  # a structure with a missing force has none
    median = float(np.median(whole)) if len(whole) else 0.0
    quantiles = tuple(min(value, largest[0].norm) for value in _quantiles(histogram, edges))  # bins reach beyond it
    return ForceFigures(quantiles, median, tuple(largest[:NUM_REPORTED]))


def force_findings(structures: Structures, figures: ForceFigures | None) -> tuple[Finding, ...]:
    """A note about forces that are far larger than the others."""
    if figures is None or figures.typical == 0:
        return ()
    limit = max(LARGE_FORCE, LARGE_AGAINST_TYPICAL * figures.typical)
    large = [force for force in figures.largest if force.norm > limit]
    if not large:
        return ()
    places = ", ".join(f"{structures.place(force.structure)} atom {force.atom} ({force.norm:.4g})" for force in large)
    message = f"forces of {places} eV/angstrom, where the median structure has {figures.typical:.3g} (RMS)"
    return (Finding("note", "dataset.filter.max_force", f"{message}; leave them out with dataset.filter.max_force"),)


def far_energies(structures: Structures, chosen: Integers | None = None) -> tuple[FarEnergy, ...]:
    """The structures whose energy per atom, without a constant per element, is farthest from the others."""
    fitted = _labelled(sample(structures, chosen, at_most=MAX_FITTED, max_atoms=1_000_000))
    elements = fitted.elements
    if len(fitted) < MIN_PER_ELEMENT * max(1, len(elements)):
        return ()  # the constants would fit most of them exactly
    constants = _robust_constants(fitted, elements)
    residuals = _residuals(fitted, constants)
    middle = float(np.median(residuals))
    spread = 1.4826 * float(np.median(np.abs(residuals - middle)))
    worst: list[FarEnergy] = []
    for members, piece in portions(structures, chosen):
        deviations = np.where(piece.num_atoms > 1, _residuals(piece, constants) - middle, np.nan)
        for place in _top(np.abs(deviations), NUM_REPORTED):
            score = abs(deviations[place]) / spread if spread else np.inf
            worst.append(FarEnergy(int(members[place]), float(deviations[place]), float(score)))
    worst.sort(key=lambda energy: -abs(energy.deviation))
    return tuple(worst[:NUM_REPORTED])


def energy_findings(structures: Structures, worst: tuple[FarEnergy, ...]) -> tuple[Finding, ...]:
    """A note about energies that are far from the others."""
    far = [energy for energy in worst if abs(energy.deviation) > FAR_ENERGY and energy.score > FAR_SCORE]
    if not far:
        return ()
    places = ", ".join(f"{structures.place(energy.structure)} ({energy.deviation:+.3g})" for energy in far)
    message = f"energies of {places} eV per atom away from those of the other structures, after a constant for each element"
    return (Finding("note", "dataset.path", f"{message}; check whether they converged, and remove them if not"),)


def _largest(members: Integers, piece: Structures, squares: Floats) -> list[LargeForce]:
    found = []
    for atom in _top(squares, NUM_REPORTED):
        structure = int(np.searchsorted(piece.offsets, atom, side="right")) - 1
        norm = float(np.sqrt(squares[atom]))
        found.append(LargeForce(int(members[structure]), atom - int(piece.offsets[structure]), norm))
    return found


def _top(values: Floats, count: int) -> list[int]:
    """Places of the largest values, without NaN, in descending order."""
    ranked = np.where(np.isnan(values), -np.inf, values)
    few = np.argpartition(-ranked, min(count, len(ranked)) - 1)[:count]
    return [place for place in few[np.argsort(-ranked[few])].tolist() if np.isfinite(ranked[place])]


def _quantiles(histogram: Integers, edges: Floats) -> tuple[float, ...]:
    """Values at `QUANTILES`: the upper edge of the bin that reaches them."""
    cumulated = np.cumsum(histogram)
    places = np.searchsorted(cumulated, np.array(QUANTILES) * cumulated[-1])
    return tuple(float(edges[min(place, len(edges) - 1)]) if place else 0.0 for place in places.tolist())


def _labelled(structures: Structures) -> Structures:
    return structures.take(np.flatnonzero(np.isfinite(structures.energy) & (structures.num_atoms > 1)))


def _robust_constants(structures: Structures, elements: tuple[int, ...]) -> Floats:
    """Energy per element by atomic number, eV, (256,), fitted a second time without what the first fit leaves far off."""
    constants = _constants(structures, elements)
    residuals = np.abs(_residuals(structures, constants))
    near = np.flatnonzero(residuals <= max(10 * float(np.median(residuals)), FAR_ENERGY))
    return _constants(structures.take(near), elements)


def _constants(structures: Structures, elements: tuple[int, ...]) -> Floats:
    counts = element_counts(structures.num_atoms, structures.atomic_numbers.astype(np.int64), elements)
    table = np.full(256, np.nan)  # an element that the fit has not seen says nothing
    fitted = fit_self_energies(counts, structures.energy, elements).by_element
    table[list(fitted)] = list(fitted.values())
    return table


def _residuals(structures: Structures, constants: Floats) -> Floats:
    """Energies per atom without the constants of the elements, eV, (S,)."""
    of_atoms = np.add.reduceat(constants[structures.atomic_numbers], structures.offsets[:-1])
    return np.asarray(structures.energy - of_atoms) / structures.num_atoms
