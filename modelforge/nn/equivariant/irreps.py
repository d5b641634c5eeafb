"""Irreducible representations of the rotations and reflections of space: how components turn, and how products of them do.

An irrep has 2l+1 components, m = -l .. l in the order of `spherical_harmonics.py`; inversion multiplies them by its parity.
Harmonics of degree l have the natural parity (-1)^l; the others are pseudo-scalars, pseudo-vectors and so on.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple


class Irrep(NamedTuple):
    """Degree l and parity (1 or -1); sorted by degree, the odd one first: 0o < 0e < 1o < 1e < 2o < 2e."""

    degree: int
    parity: int

    @property
    def dimension(self) -> int:
        """Its number of components, 2l + 1."""
        return 2 * self.degree + 1

    def __str__(self) -> str:
        return f"{self.degree}{'e' if self.parity == 1 else 'o'}"


def natural_irrep(degree: int) -> Irrep:
    """That of the harmonics of this degree."""
    return Irrep(degree, (-1) ** degree)


def natural_irreps(l_max: int) -> list[Irrep]:
    """Those of the harmonics of degrees 0 to l_max: 0e 1o 2e .."""
    return [natural_irrep(degree) for degree in range(l_max + 1)]


def irreps_of_product(left: Irrep, right: Irrep) -> list[Irrep]:
    """What the product of two irreps consists of, by degree: |l1 - l2| .. l1 + l2, each once."""
    parity = left.parity * right.parity
    return [Irrep(degree, parity) for degree in range(abs(left.degree - right.degree), left.degree + right.degree + 1)]


def num_components(irreps: Iterable[Irrep]) -> int:
    """Of all of them together."""
    return sum(irrep.dimension for irrep in irreps)


def blocks(irreps: Sequence[Irrep]) -> list[slice]:
    """Where the components of each stand if all stand one after the other."""
    ends = accumulate((irrep.dimension for irrep in irreps), initial=0)
    return [slice(begin, end) for begin, end in pairwise(ends)]
