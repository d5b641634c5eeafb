"""Self-energies: what is left of the energy when all atoms are infinitely far apart, per element, in float64.

Legend: S structures, Z elements (columns in ascending order of the atomic number), R independent compositions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_ATOMIC_NUMBERS = 119  # tables by atomic number have one row each, row 0 unused
SMALLEST_SINGULAR_VALUE = 1e-9  # of the largest: below it a combination of elements counts as undetermined
PLAUSIBLE_ATOMISATION = (-20.0, 3.0)  # eV/atom; the strongest bound solids have about -10, weakly bound gases 0


@dataclass(frozen=True, eq=False)
class SelfEnergies:
    """Self-energies by element, with what the data could not determine."""

    by_element: dict[int, float]  # eV
    fitted: tuple[int, ...]  # elements that the regression determined, the others were given
    undetermined: Floats  # (Z - R, Z) orthonormal combinations of elements which the data leave open

    def table(self) -> Floats:
        """Self-energies by atomic number, eV, (119,)."""
        return table_of(self.by_element)


def table_of(by_element: Mapping[int, float]) -> Floats:
    """A constant per element as an array by atomic number, (119,); zero for elements that are not named."""
    table = np.zeros(NUM_ATOMIC_NUMBERS)
    table[list(by_element)] = list(by_element.values())
    return table


def element_counts(num_atoms: NDArray[np.int64], atomic_numbers: NDArray[np.integer[Any]], elements: Sequence[int]) -> Floats:
    """How many atoms of each element the structures have, (S, Z)."""
    column = np.zeros(NUM_ATOMIC_NUMBERS, dtype=np.int64)
    column[list(elements)] = np.arange(len(elements))
    structure = np.repeat(np.arange(len(num_atoms)), num_atoms)
    flat = np.bincount(structure * len(elements) + column[atomic_numbers], minlength=len(num_atoms) * len(elements))
    return flat.reshape(len(num_atoms), len(elements)).astype(np.float64)


def fit_self_energies(
    counts: Floats, energies: Floats, elements: Sequence[int], *, given: Mapping[int, float] | None = None
) -> SelfEnergies:
    """Least squares of energies (S,) in eV on element counts (S, Z), of minimum norm where the data leave it open.

    `given` elements are fixed first and the rest is fitted. Structures of one composition are summed up before the solution,
    which changes nothing in it and makes it independent of the number of structures.
    """
    compositions, which, sizes = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    means = np.bincount(which.ravel(), weights=energies) / sizes
    return fit_compositions(compositions, means, sizes, elements, given=given)


def fit_compositions(
    compositions: Floats,
    means: Floats,
    sizes: NDArray[np.int64],
    elements: Sequence[int],
    *,
    given: Mapping[int, float] | None = None,
) -> SelfEnergies:
    """The same fit from compositions (C, Z), the mean energy of each in eV (C,), and how many structures it has (C,)."""
    given = {element: value for element, value in (given or {}).items() if element in elements}
    free = [column for column, element in enumerate(elements) if element not in given]
    by_element = dict(given)
    undetermined = np.zeros((0, len(elements)))
    if free:
        fixed = [column for column, element in enumerate(elements) if element in given]
        rest = means - compositions[:, fixed] @ np.array([given[elements[column]] for column in fixed])
        solution, null_space = _minimum_norm(compositions[:, free], rest, np.sqrt(sizes))
        by_element |= {elements[column]: float(value) for column, value in zip(free, solution, strict=True)}
        undetermined = np.zeros((len(null_space), len(elements)))
        undetermined[:, free] = null_space
    ordered = {element: by_element[element] for element in elements}
    return SelfEnergies(ordered, tuple(elements[column] for column in free), undetermined)


def _minimum_norm(rows: Floats, values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares of minimum norm, and the null space of the rows; one step of iterative refinement."""
    weighted = rows * weights[:, None]  # (C, Z); the null space needs all right vectors, the left ones would be (C, C)
    left, singular, right = np.linalg.svd(weighted, full_matrices=len(rows) < rows.shape[1])
    rank = int((singular > SMALLEST_SINGULAR_VALUE * singular[0]).sum())

    def solve(residual: Floats) -> Floats:
        projected = (left[:, :rank].T @ (residual * weights)) / singular[:rank]
        return np.asarray(right[:rank].T @ projected)

    solution = solve(values)
    return solution + solve(values - rows @ solution), right[rank:]


def undetermined_in_words(self_energies: SelfEnergies) -> str | None:
    """Which elements the data cannot tell apart, or None where all are determined."""
    if not len(self_energies.undetermined):
        return None
    involved = np.abs(self_energies.undetermined).max(axis=0) > 1e-6
    symbols = [chemical_symbols[z] for z, is_open in zip(self_energies.by_element, involved, strict=True) if is_open]
    num_open = len(self_energies.undetermined)
    return (
        f"the self-energies of {_listed(symbols)} cannot be told apart: the training structures leave {num_open} "
        f"combination{'s' if num_open > 1 else ''} of them open (too few different compositions). The solution of minimum "
        "norm is used: totals of such compositions are right, single values mean nothing. To give them a meaning, set "
        "dataset.self_energies.values or use isolated atoms"
    )


def is_determined(self_energies: SelfEnergies, counts: Floats) -> NDArray[np.bool_]:
    """Which compositions (S, Z) have a total that the data determine, (S,)."""
    if not len(self_energies.undetermined):
        return np.ones(len(counts), dtype=bool)
    open_part = np.abs(counts @ self_energies.undetermined.T).max(axis=1)
    return np.asarray(open_part < 1e-6 * np.maximum(1.0, counts.sum(axis=1)))


def implausible(interaction: Floats, num_atoms: NDArray[np.int64]) -> int | None:
    """A typical structure (S,), the one nearest the median energy per atom without self-energies, if that is implausible.

    The median decides, so that a few odd structures stop nothing, while self-energies of another method do.
    """
    per_atom = interaction / num_atoms
    labelled = np.flatnonzero(np.isfinite(per_atom))
    if not len(labelled):
        return None
    lowest, highest = PLAUSIBLE_ATOMISATION
    median = float(np.median(per_atom[labelled]))
    if lowest <= median <= highest:
        return None
    return int(labelled[np.abs(per_atom[labelled] - median).argmin()])


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
