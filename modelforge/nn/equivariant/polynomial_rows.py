"""The rows r_oa of `product_basis.py` for all atoms and channels, and their derivatives, in two forms with the same numbers.

`RowsAsProducts`: products of matrices, one for each element and channel; atoms are sorted by element and stand last. For
torch as it runs operation by operation.
`RowsAsSums`: a sum over the monomials of each row; channels stand last. Written out it would take many times the memory, but
a compiler makes one loop of it that keeps nothing, and needs no order of the atoms.

N atoms, C channels, Z elements, n components of A, O of B, R independent functions; K classes, M monomials of a block of rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from modelforge.nn.elements.grouped_matrices import outer, product
from modelforge.nn.equivariant.polynomial_slopes import is_native, slopes


class Rows(Protocol):
    """r_oa as polynomials of x with coefficients for each element and channel; x is (C, 1 + n, N) or (N, 1 + n, C)."""

    @property
    def coefficients(self) -> list[Tensor]:
        """What depends on the weights."""

    @property
    def degree(self) -> int:
        """That of the rows as polynomials of x."""

    def values(self, x: Tensor) -> Tensor:
        """(.., O (1 + n), ..)."""

    def slopes(self, x: Tensor, direction: Tensor) -> Tensor:
        """Their derivatives along a direction, which has the shape of x."""

    def slopes_of_coefficients(self, gradient: Tensor, x: Tensor) -> list[Tensor]:
        """Those of a function of the rows of which the gradient is given; any number where a coefficient is always 0."""


@dataclass(frozen=True, eq=False)
class RowsAsProducts:
    """Of each block of rows a product of matrices for each element, channel and class."""

    coefficients: list[Tensor]  # (Z, C K, rows, M) each
    factors: list[Tensor]  # (degree, K M) each
    slot_of_row: Tensor  # (O (1 + n),) where the rows are in the blocks
    row_of_slot: Tensor
    ends: Tensor  # (Z,)

    @property
    def degree(self) -> int:
        """That of the rows as polynomials of x."""
        return self.factors[0].shape[0]

    def values(self, x: Tensor) -> Tensor:
        """(C, 1 + n, N) -> (C, O (1 + n), N)."""
        return self._of_monomials([_monomials(x, factors) for factors in self.factors])

    def slopes(self, x: Tensor, direction: Tensor) -> Tensor:
        """Their derivatives along a direction, (C, O (1 + n), N)."""
        return self._of_monomials([_slopes_of_monomials(x, direction, factors) for factors in self.factors])

    def slopes_of_coefficients(self, gradient: Tensor, x: Tensor) -> list[Tensor]:
        """From a gradient (C, O (1 + n), N)."""
        num_channels, _, num_atoms = x.shape
        heights = [matrices.shape[1] * matrices.shape[2] // num_channels for matrices in self.coefficients]
        parts = torch.split(gradient.index_select(1, self.row_of_slot), heights, dim=1)
        results = []
        for matrices, factors, part in zip(self.coefficients, self.factors, parts, strict=True):
            batch, height, width = matrices.shape[1:]
            columns = _monomials(x, factors).view(batch, width, num_atoms)
            results.append(outer(part.reshape(batch, height, num_atoms), columns, self.ends))
        return results

    def _of_monomials(self, monomials: list[Tensor]) -> Tensor:
        """(C, K M, N) each."""
        num_channels, _, num_atoms = monomials[0].shape
        slots = []
        for matrices, columns in zip(self.coefficients, monomials, strict=True):
            batch, height, width = matrices.shape[1:]
            rows = product(matrices, columns.view(batch, width, num_atoms), self.ends)
            slots.append(rows.view(num_channels, batch * height // num_channels, num_atoms))
        return torch.cat(slots, dim=1).index_select(1, self.slot_of_row)


@dataclass(frozen=True, eq=False)
class RowsAsSums:
    """Of each block of rows a sum over the monomials of each row."""

    coefficients: list[Tensor]  # (Z, rows, M, C) each
    factors: list[Tensor]  # (degree, rows, M) each
    slot_of_row: Tensor  # (O (1 + n),) where the rows are in the blocks
    row_of_slot: Tensor
    columns: Tensor  # (N,) the element of each atom

    @property
    def degree(self) -> int:
        """That of the rows as polynomials of x."""
        return self.factors[0].shape[0]

    def values(self, x: Tensor) -> Tensor:
        """(N, 1 + n, C) -> (N, O (1 + n), C)."""
        return self._sums(lambda factors: [[x[:, factor] for factor in factors]])

    def slopes(self, x: Tensor, direction: Tensor) -> Tensor:
        """Their derivatives along a direction, (N, O (1 + n), C)."""
        return self._sums(
            lambda factors: [
                [(direction if k == place else x)[:, factor] for k, factor in enumerate(factors)]
                for place in range(len(factors))
            ]
        )

    def slopes_of_coefficients(self, gradient: Tensor, x: Tensor) -> list[Tensor]:
        """From a gradient (N, O (1 + n), C)."""
        num_elements, heights = self.coefficients[0].shape[0], [factors.shape[1] for factors in self.factors]
        if is_native(x):
            blocks = zip(torch.split(self.row_of_slot, heights), self.factors, strict=True)
            return [slopes(gradient, rows, x, factors, self.columns, num_elements) for rows, factors in blocks]
        elements = torch.arange(num_elements, device=x.device)
        is_element = (elements[:, None] == self.columns).to(x.dtype)[..., None, None, None]  # (Z, N, 1, 1, 1)
        parts = torch.split(gradient.index_select(1, self.row_of_slot), heights, dim=1)
        results = []
        for part, factors, coefficients in zip(parts, self.factors, self.coefficients, strict=True):
            of_atoms = math.prod([x[:, factor] for factor in factors], start=part[:, :, None])  # (N, rows, M, C)
            results.append((is_element * of_atoms).sum(dim=1).expand_as(coefficients))
        return results

    def _sums(self, products: Callable[[Tensor], list[list[Tensor]]]) -> Tensor:
        """The sum of a few products of factors for each monomial, each summed up on its own.

        What reads from more than a few places at once a compiler would write to memory first.
        """
        sums = []
        for coefficients, table in zip(self.coefficients, self.factors, strict=True):
            of_atoms = coefficients[self.columns]  # (N, rows, M, C)
            terms = [math.prod(factors, start=of_atoms).sum(dim=2) for factors in products(table)]
            sums.append(sum(terms[1:], start=terms[0]) if terms else torch.zeros_like(of_atoms.sum(dim=2)))
        return torch.cat(sums, dim=1).index_select(1, self.slot_of_row)


def _monomials(x: Tensor, factors: Tensor) -> Tensor:
    """(C, 1 + n, N) and (k, M) -> (C, M, N); the product of no factors is 1."""
    if not len(factors):
        return x.new_ones(x.shape[0], factors.shape[1], x.shape[2])
    return math.prod([x.index_select(1, factor) for factor in factors[1:]], start=x.index_select(1, factors[0]))


def _slopes_of_monomials(x: Tensor, direction: Tensor, factors: Tensor) -> Tensor:
    """Their derivatives along a direction: the product rule."""
    total = x.new_zeros(x.shape[0], factors.shape[1], x.shape[2])
    for place in range(len(factors)):
        others = torch.cat([factors[:place], factors[place + 1 :]])
        total = torch.addcmul(total, direction.index_select(1, factors[place]), _monomials(x, others))
    return total
