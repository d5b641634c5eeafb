"""Numbers about structures: sizes, elements, cells, energies, forces and stresses, in bounded memory.

Legend: S structures, N atoms of all of them.
"""

import numpy as np
from ase.data import chemical_symbols

from modelforge.atoms.self_energies import NUM_ATOMIC_NUMBERS, undetermined_in_words
from modelforge.atoms.units import GIGAPASCAL
from modelforge.data.audit.figures import Figures
from modelforge.data.filter import largest_forces
from modelforge.data.reference import compositions_of, isolated_atoms
from modelforge.data.structures import Floats, Structures, is_constant, sum_of_constants
from modelforge.inspection.histogram import histogram, histogram_of_sizes
from modelforge.inspection.inspection import ElementCount, Energies, Forces, Periodicity, Range, Stresses

MOST_EXAMPLES = 5


def range_of(values: Floats) -> Range:
    """Least, median and largest of some numbers, at least one."""
    return Range(float(values.min()), float(np.median(values)), float(values.max()))


def element_counts(structures: Structures) -> tuple[ElementCount, ...]:
    """How many structures and atoms each element occurs in."""
    counts = np.zeros((2, NUM_ATOMIC_NUMBERS), dtype=np.int64)
    for piece in structures.pieces():
        owner = np.repeat(np.arange(len(piece)), piece.num_atoms)
        present = np.zeros((len(piece), NUM_ATOMIC_NUMBERS), dtype=bool)
        present[owner, piece.atomic_numbers] = True
        counts += [present.sum(axis=0), np.bincount(piece.atomic_numbers, minlength=NUM_ATOMIC_NUMBERS)]
    return tuple(ElementCount(chemical_symbols[z], *counts[:, z].tolist()) for z in np.flatnonzero(counts[1]).tolist())


def periodicity(structures: Structures) -> Periodicity:
    """How many structures are periodic, and the volume of an atom in crystals."""
    directions = np.asarray(structures.periodic).sum(axis=1)
    volumes = [np.zeros(0)]
    for piece in structures.pieces():
        crystals = np.flatnonzero(piece.periodic.all(axis=1))
        volumes.append(np.abs(np.linalg.det(piece.cell[crystals])) / piece.num_atoms[crystals])
    volume = np.concatenate(volumes)
    partly = int(((directions > 0) & (directions < 3)).sum())
    return Periodicity(len(volume), partly, range_of(volume) if len(volume) else None)


def energies(structures: Structures) -> Energies | None:
    """What the fit of an energy for each element leaves of the energies; None without any."""
    labelled = np.flatnonzero(structures.has_energy)
    if not len(labelled):
        return None
    compositions = compositions_of(structures, labelled, structures.elements)
    fitted = compositions.fit(np.asarray(structures.energy)[labelled], {})
    left = (structures.energy - sum_of_constants(structures, fitted.table()))[labelled] / structures.num_atoms[labelled]
    per_atom = histogram(left, quantity="energy per atom without self-energies", unit="eV/atom", counted="structures")
    return Energies(
        len(labelled),
        len(compositions.counts),
        {chemical_symbols[z]: value for z, value in fitted.by_element.items()},
        undetermined_in_words(fitted),
        float(np.sqrt(np.mean(left**2))),
        len(isolated_atoms(structures)),
        per_atom,
    )


def forces(structures: Structures, figures: Figures) -> Forces | None:
    """Sizes of the forces; None without any."""
    if figures.force_median is None:
        return None
    norms = (np.sqrt(np.einsum("ij,ij->i", known, known)) for p in structures.pieces() for known in [p.forces[p.has_force]])
    largest = largest_in_structures(structures)
    quantiles = {
        "median": figures.force_median,
        "90 %": figures.force_quantile_90,
        "99 %": figures.force_quantile_99,
        "99.9 %": figures.force_quantile_999,
    }
    return Forces(
        {name: value for name, value in quantiles.items() if value is not None},
        tuple(force_in_words(structures, place) for place in largest_places(largest)),
        histogram_of_sizes(norms, quantity="norm of the force", unit="eV/angstrom", counted="atoms"),
    )


def stresses(structures: Structures) -> Stresses | None:
    """A third of the trace of the stresses; None without any."""
    if is_constant(structures.stress):
        return None
    trace = np.concatenate([np.trace(piece.stress, axis1=1, axis2=2) / 3 / GIGAPASCAL for piece in structures.pieces()])
    known = trace[np.isfinite(trace)]
    if not len(known):
        return None
    name = "stress, a third of the trace (positive under tension)"
    return Stresses(len(known), histogram(known, quantity=name, unit="GPa", counted="structures"))


def largest_in_structures(structures: Structures) -> Floats:
    """Norm of the largest force of each structure, NaN without forces, (S,)."""
    return np.full(len(structures), np.nan) if is_constant(structures.forces) else np.asarray(largest_forces(structures))


def largest_places(values: Floats, count: int = MOST_EXAMPLES) -> list[int]:
    """Places of the largest values, in descending order, without NaN."""
    known = np.flatnonzero(np.isfinite(values))
    few = known[np.argpartition(-values[known], count)[:count]] if len(known) > count else known
    return [int(place) for place in few[np.argsort(-values[few], kind="stable")]]


def force_in_words(structures: Structures, structure: int) -> str:
    """The largest force of a structure, with the atom."""
    one = structures.slice(structure, structure + 1)
    norms = np.linalg.norm(one.forces, axis=1)
    atom = int(np.nanargmax(norms))
    symbol = chemical_symbols[one.atomic_numbers[atom]]
    return f"{structures.place(structure)} atom {atom} ({symbol}): {norms[atom]:.4g} eV/angstrom"
