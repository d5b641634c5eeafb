"""Whether energies and forces belong together: the slope of dE against -F.dx, which is 1 where units and signs are right.

First choice are pairs of nearly identical structures. Where a data set has none, as sets of conformers do, energy
differences are compared with a prediction fitted to the forces alone. Where neither agrees with itself there is no answer.

Legend: P pairs or structures.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from modelforge.data.audit.near_pairs import near_pairs
from modelforge.data.audit.pair_functions import predict_energies
from modelforge.data.audit.sampling import Ensemble
from modelforge.data.structures import Floats, Integers

NEAR, LESS_NEAR = 0.2, 0.35
"""RMS displacement (angstrom) up to which the trapezoidal rule holds. Slopes found: below 0.2 angstrom 0.88 to 1.06 for
acetylacetone, ethanol and ethanolamine at 300 and 600 K; up to 0.35 often 0.6 to 0.9, but for SPICE 1.02. The wider limit
serves where fewer than `MIN_PAIRS` are nearer, and then the pairs must agree better."""
MIN_PAIRS = 10
LARGEST_SCATTER = {NEAR: 0.45, LESS_NEAR: 0.2}
"""Of what the slope leaves over, against the energy changes (both as median absolute values). Below 0.2 angstrom 0.1 to 0.35
in the sets above, 0.08 for SPICE up to 0.35 angstrom, 0.9 to 1 where structures are unrelated."""
MIN_INDEPENDENT = 20  # energies for the second estimator: with 4 (five conformers) even its sign is a matter of chance
MIN_EXPLAINED_FORCES = 0.5
MIN_CORRELATION = 0.85  # 0.93 for SPICE and 0.88 for acetylacetone (slopes of 1.1 and 1.0), 0.57 for ethanol (slope of 0.65)
PAIRS_TOLERANCE, FUNCTIONS_TOLERANCE = 1.55, 1.6
"""A slope within this factor of 1 is no reason to speak: the least of the known mistakes makes 1.89 of it, 1.6 at worst with
the errors below, and of 5,000 random subsets of 10 to 80 structures one gave 0.46, five others 0.6 to 0.66."""
PAIRS_ERROR, FUNCTIONS_ERROR = 1.2, 1.35  # largest error of a slope (1.13 and 1.13 were seen), once it is far from 1


@dataclass(frozen=True)
class Slope:
    """How much the energy changes, against what the forces say."""

    value: float
    spread: float  # standard error of the value
    num: int  # pairs, or structures
    estimator: Literal["near-identical pairs", "pair functions", "strained cells"]
    times_num_atoms: float  # the slope if the energies were per atom and were multiplied by the number of atoms

    @property
    def tolerance(self) -> float:
        """By which factor the slope may differ from 1 without being a finding."""
        factor = FUNCTIONS_TOLERANCE if self.estimator == "pair functions" else PAIRS_TOLERANCE
        return factor + 2 * self.spread / abs(self.value)

    @property
    def is_off(self) -> bool:
        """Whether it differs from 1 and -1 beyond the tolerance."""
        return not 1 / self.tolerance < abs(self.value) < self.tolerance

    @property
    def error(self) -> float:
        """By which factor the true slope may differ from this one."""
        factor = FUNCTIONS_ERROR if self.estimator == "pair functions" else PAIRS_ERROR
        return factor + 2 * self.spread / abs(self.value)

    @property
    def origin(self) -> str:
        """How it was found, in words."""
        if self.estimator == "pair functions":
            return f"slope of energy differences against a prediction from the forces, over {self.num} structures"
        structures = "near-identical structures" if self.estimator == "near-identical pairs" else "slightly strained cells"
        return f"slope of dE against -F.dx over {self.num} pairs of {structures}"


def energy_force_slope(ensembles: list[Ensemble], *, length_scale: float) -> Slope | None:
    """The slope, or None where the data cannot tell; `length_scale` is by how much lengths seem to be too large."""
    return _slope_of_pairs(ensembles, length_scale) or _slope_of_functions(ensembles, length_scale)


def median_slope(x: Floats, y: Floats) -> float:
    """The slope through the origin with the least sum of absolute deviations: a weighted median of y/x; x, y (P,)."""
    usable = x != 0
    ratios, weights = y[usable] / x[usable], np.abs(x[usable])
    order = np.argsort(ratios)
    cumulated = np.cumsum(weights[order])
    return float(ratios[order][np.searchsorted(cumulated, cumulated[-1] / 2)])


def _slope_of_pairs(ensembles: list[Ensemble], length_scale: float) -> Slope | None:
    parts = [near_pairs(ensemble) for ensemble in ensembles if len(ensemble) > 1 and ensemble.num_atoms > 1]
    if not parts:
        return None
    displacement = np.concatenate([part.displacement for part in parts]) / length_scale
    work = np.concatenate([part.work for part in parts])
    change = np.concatenate([part.energy_change for part in parts])
    num_atoms = np.concatenate([part.num_atoms for part in parts])
    for limit in (NEAR, LESS_NEAR):
        near = (displacement < limit) & (work != 0)
        if near.sum() >= MIN_PAIRS:
            return _agreed(work[near], change[near], num_atoms[near], largest_scatter=LARGEST_SCATTER[limit])
    return None


def _agreed(work: Floats, change: Floats, num_atoms: Integers, *, largest_scatter: float) -> Slope | None:
    """The slope of energy changes against work, (P,) eV each, if the pairs agree about it."""
    value = median_slope(work, change)
    left_over = float(np.median(np.abs(change - value * work)))
    if value == 0 or left_over > largest_scatter * float(np.median(np.abs(change))):
        return None
    spread = 1.2533 * 1.4826 * left_over / float(np.linalg.norm(work))  # of a median, with sigma from the median deviation
    return Slope(value, spread, len(work), "near-identical pairs", median_slope(work, change * num_atoms))


def _slope_of_functions(ensembles: list[Ensemble], length_scale: float) -> Slope | None:
    if sum(len(ensemble) - 1 for ensemble in ensembles) < MIN_INDEPENDENT:
        return None
    found = predict_energies(ensembles, length_scale=length_scale)
    if found is None or found.num_independent < MIN_INDEPENDENT or found.explained_forces < MIN_EXPLAINED_FORCES:
        return None
    correlation = float(np.corrcoef(_ranks(found.predicted), _ranks(found.energy))[0, 1])
    if not abs(correlation) > MIN_CORRELATION:
        return None
    # Both have errors: the slope of one against the other would be too small by the correlation, either way round.
    value = float(np.copysign(_spread(found.energy) / _spread(found.predicted), correlation))
    times_num_atoms = float(np.copysign(_spread(found.energy * found.num_atoms) / _spread(found.predicted), correlation))
    relative = np.sqrt((1 - correlation**2) / found.num_independent)
    return Slope(value, abs(value) * float(relative), len(found.energy), "pair functions", times_num_atoms)


def _ranks(values: Floats) -> Floats:
    return np.argsort(np.argsort(values)).astype(np.float64)


def _spread(values: Floats) -> float:
    """Distance between the 10 % and 90 % quantiles: outliers do not count."""
    low, high = np.quantile(values, [0.1, 0.9])
    return float(high - low)
