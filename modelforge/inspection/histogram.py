"""`Histogram`: how often which values occur, from all values; in equal steps, or in equal ratios for sizes.

Values far outside of the others are counted below the first and above the last bin, so that the bins show the rest.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np

from modelforge.data.structures import Floats, Integers

MOST_BINS = 15
TAIL = 0.005  # of the values may be far outside on either side
FAR = 1.0  # ranges of all others
SMALLEST, LARGEST = -9, 9  # decades of sizes
PER_DECADE = 10
MOST_SIZE_BINS = 16
SIZE_TAIL = 0.0005


@dataclass(frozen=True)
class Histogram:
    """Counts between ascending edges; a single value has two equal edges."""

    quantity: str
    unit: str
    counted: str  # "structures" or "atoms"
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    num_below: int
    num_above: int
    is_logarithmic: bool


def histogram(values: Floats, *, quantity: str, unit: str, counted: str) -> Histogram:
    """Counts of finite values, at least one, in at most about fifteen steps of a round size."""
    edges = _round_edges(*_range(values))
    counts = np.histogram(values, bins=edges)[0] if edges[-1] > edges[0] else np.array([int((values == edges[0]).sum())])
    below, above = int((values < edges[0]).sum()), int((values > edges[-1]).sum())
    return Histogram(quantity, unit, counted, tuple(edges.tolist()), tuple(counts.tolist()), below, above, False)


def histogram_of_sizes(pieces: Iterable[Floats], *, quantity: str, unit: str, counted: str) -> Histogram:
    """Counts of positive values, which come in pieces, in steps of equal ratio."""
    total = np.zeros((LARGEST - SMALLEST) * PER_DECADE + 2, dtype=np.int64)
    for piece in pieces:
        places = np.floor((np.log10(np.maximum(piece, 1e-300)) - SMALLEST) * PER_DECADE).astype(np.int64) + 1
        total += np.bincount(np.clip(places, 0, len(total) - 1), minlength=len(total))
    first, last = _without_tails(total[1:-1])
    step = next((s for s in (1, 2, 5) if ceil(last / s) - first // s <= MOST_SIZE_BINS), PER_DECADE)
    first, last = step * (first // step), step * ceil(last / step)
    counts = total[1 + first : 1 + last].reshape(-1, step).sum(axis=1)
    edges = 10.0 ** (SMALLEST + np.arange(first, last + 1, step) / PER_DECADE)
    below, above = int(total[: 1 + first].sum()), int(total[1 + last :].sum())
    return Histogram(quantity, unit, counted, tuple(edges.tolist()), tuple(counts.tolist()), below, above, True)


def _without_tails(counts: Integers) -> tuple[int, int]:
    """The first bin and the one after the last, without the few values at either end."""
    cumulated = np.cumsum(counts)
    if not cumulated[-1]:
        return 0, 1
    first = int(np.searchsorted(cumulated, SIZE_TAIL * cumulated[-1], side="right"))
    return first, int(np.searchsorted(cumulated, (1 - SIZE_TAIL) * cumulated[-1])) + 1


def _range(values: Floats) -> tuple[float, float]:
    """From the least to the largest value, or without the tails where they are far outside."""
    least, low, high, most = np.quantile(values, [0.0, TAIL, 1 - TAIL, 1.0]).tolist()
    far = FAR * (high - low)
    return (low if low - least > far else least), (high if most - high > far else most)


def _round_edges(low: float, high: float) -> Floats:
    """Edges at round numbers around a range."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        return np.array([low, low if high == low else high])
    exact = (high - low) / MOST_BINS
    decade = 10.0 ** floor(log10(exact))
    step = next(factor * decade for factor in (1.0, 2.0, 5.0, 10.0) if factor * decade >= 0.999 * exact)
    first = floor(low / step)
    return np.asarray(step * np.arange(first, max(ceil(high / step), first + 1) + 1), dtype=np.float64)
