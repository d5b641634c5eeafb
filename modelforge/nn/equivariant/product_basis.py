"""Equivariant products of the components of an atom with themselves: the basis of MACE (Batatia et al., arXiv:2206.07697).

A basis function of order k and degree L is a product of k factors A, coupled one after the other in all ways that end in L:
the columns of `coupling_matrices`. Those that differ in the order of equal factors only are linearly dependent: about a
quarter is left of three factors. `polynomials` gives what is left as polynomials, sorted for their evaluation.

P basis functions, n = (l_in + 1)^2 components of A, O those of all outputs, R independent basis functions.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, product

import numpy as np
import torch
from torch import Tensor

from modelforge.nn.equivariant.couplings import coupling
from modelforge.nn.equivariant.irreps import Irrep, blocks, irreps_of_product, natural_irrep, natural_irreps

ROUNDING = 1e-12  # of coefficients, relative to the largest
INDEPENDENT = 1e-8  # singular values of independent functions, relative to the largest: those of others are about 1e-16


@cache
def coupling_matrices(l_in: int, degree: int, order: int) -> Tensor:
    """All couplings of `order` factors, harmonics of degrees 0 to l_in, to natural parity: (2 degree + 1, n, .., n, P).

    Of their products with intermediate irreps of any parity; order and norm are those of MACE, signs those of `coupling`.
    """
    wanted = natural_irrep(degree)
    if order == 1:
        found = [tensor for irrep, tensor in _factors(l_in) if irrep == wanted]
    else:
        found = [
            _coupled_pair(*pair, wanted) for pair in _pairs(l_in, order) if wanted in irreps_of_product(pair[0][0], pair[1][0])
        ]
    if not found:
        return torch.zeros(wanted.dimension, *[(l_in + 1) ** 2] * order, 0, dtype=torch.float64)
    return torch.stack(found, dim=-1)


def num_couplings(l_in: int, degree: int, order: int) -> int:
    """P of `coupling_matrices`, without building them."""
    counts = Counter(natural_irreps(l_in))
    for _ in range(order - 1):
        products: Counter[Irrep] = Counter()
        for irrep, factor in product(counts, natural_irreps(l_in)):
            products.update(dict.fromkeys(irreps_of_product(irrep, factor), counts[irrep]))
        counts = products
    return counts[natural_irrep(degree)]


Components = tuple[Irrep, Tensor]
"""An irrep and its components as sums of products of factors, (2l + 1, n, .., n)."""


def _factors(l_in: int) -> list[Components]:
    irreps = natural_irreps(l_in)
    unit = torch.eye((l_in + 1) ** 2, dtype=torch.float64)
    return [(irrep, unit[block]) for irrep, block in zip(irreps, blocks(irreps), strict=True)]


def _pairs(l_in: int, order: int) -> list[tuple[Components, Components]]:
    """What can be coupled to products of `order` factors: those of one factor less and the last factor."""
    return [(left, right) for left in _coupled(l_in, order - 1) for right in _factors(l_in)]


@cache
def _coupled(l_in: int, order: int) -> list[Components]:
    """All irreps of products, sorted."""
    if order == 1:
        return _factors(l_in)
    found = [
        (irrep, _coupled_pair(left, right, irrep))
        for left, right in _pairs(l_in, order)
        for irrep in irreps_of_product(left[0], right[0])
    ]
    return sorted(found, key=lambda components: components[0])


def _coupled_pair(left: Components, right: Components, irrep: Irrep) -> Tensor:
    couplings = math.sqrt(irrep.dimension) * coupling(irrep.degree, left[0].degree, right[0].degree)
    return torch.einsum("oab,a...,bz->o...z", couplings, left[1], right[1])


@dataclass(frozen=True, eq=False)
class Block:
    """Rows and the monomials that they may contain, which are filled up to one number with those of coefficient 0."""

    factors: Tensor  # the components of x that are multiplied: of classes (correlation - 1, K M), of lengths (.., rows, M)
    coefficients: Tensor  # (R, K, rows, M); (R, rows, M)


@dataclass(frozen=True, eq=False)
class Blocks:
    """All rows, in blocks of rows that have about as many monomials."""

    parts: list[Block]
    slot_of_row: Tensor  # (O (1 + n),) where the rows are if those of all blocks stand one after the other
    row_of_slot: Tensor  # the reverse, and 0 for rows that only fill a block up


@dataclass(frozen=True, eq=False)
class Polynomials:
    """The independent basis functions as B_o = sum_a x_a r_oa(x) where x = (1, A), all of one degree in x.

    r_oa is the derivative of B_o by x_a over that degree (Euler). It is a sum over monomials; of these only those can occur
    that change sign as x_a and B_o do when an axis is turned around: all rows fall into 8 classes, each with its monomials.
    """

    reduction: Tensor  # (R, sum P) weights of independent functions from those of all
    by_class: Blocks
    by_length: Blocks


@cache
def polynomials(l_in: int, degrees: tuple[int, ...], correlation: int) -> Polynomials:
    """Basis functions of orders 1 to `correlation`, of all degrees one after the other and orders within a degree."""
    num = (l_in + 1) ** 2 + 1
    monomials = _products(num, correlation - 1)
    reduction, rows = _rows(l_in, degrees, correlation, monomials)
    by_class = _by_class(rows, monomials, l_in, degrees)
    return Polynomials(torch.as_tensor(reduction), by_class, _by_length(rows, monomials))


def _by_class(rows: np.ndarray, monomials: np.ndarray, l_in: int, degrees: tuple[int, ...]) -> Blocks:
    """The class of the constant, which has the most monomials, and the other seven, as rows (R, O (1 + n), all monomials)."""
    classes = np.concatenate([[0], _classes(range(l_in + 1))])
    class_of_row = (_classes(degrees)[:, None] ^ classes).ravel()
    class_of_monomial = np.bitwise_xor.reduce(classes[monomials], axis=1)
    found, slots = [], []
    for members in ([0], list(range(1, 8))):
        rows_of = [np.flatnonzero(class_of_row == member) for member in members]
        monomials_of = [np.flatnonzero(class_of_monomial == member) for member in members]
        block, slots_of_block = _block(rows, monomials, list(zip(rows_of, monomials_of, strict=True)))
        found.append(block)
        slots.append(slots_of_block)
    return _blocks(found, np.concatenate(slots))


def _by_length(rows: np.ndarray, monomials: np.ndarray) -> Blocks:
    """Rows of few and rows of many monomials that do occur, cut where the least has to be filled up."""
    size = np.abs(rows).max(axis=0)
    occurs = size > ROUNDING * size.max()
    length = occurs.sum(axis=1)
    order = np.argsort(length, kind="stable")
    sorted_length = length[order]
    place = np.arange(1, len(order))
    cut = place[np.argmin(place * sorted_length[:-1] + (len(order) - place) * sorted_length[-1])]
    found = []
    for part in (order[:cut], order[cut:]):
        own = np.argsort(~occurs[part], axis=1, kind="stable")[:, : length[part].max()]  # (rows, M)
        coefficients = np.take_along_axis((rows * occurs)[:, part], own[None], axis=2)
        found.append(Block(torch.as_tensor(monomials[own].transpose(2, 0, 1).copy()), torch.as_tensor(coefficients)))
    return _blocks(found, order)


def _blocks(found: list[Block], row_of_slot: np.ndarray) -> Blocks:
    """With -1 in the place of a row that only fills up."""
    filled = np.flatnonzero(row_of_slot >= 0)
    slot_of_row = np.empty(len(filled), dtype=int)
    slot_of_row[row_of_slot[filled]] = filled
    return Blocks(found, torch.as_tensor(slot_of_row), torch.as_tensor(row_of_slot.clip(min=0)))


def _classes(degrees: Sequence[int] | range) -> np.ndarray:
    """Of each component of these degrees whether it changes sign with each of the three axes, as the bits of a number."""
    m = np.concatenate([np.arange(-degree, degree + 1) for degree in degrees])
    degree = np.concatenate([np.full(2 * degree + 1, degree) for degree in degrees])
    sine = m < 0
    classes: np.ndarray = (m + sine) % 2 + 2 * sine + 4 * ((degree + m) % 2)
    return classes


def _block(rows: np.ndarray, monomials: np.ndarray, used: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Block, np.ndarray]:
    """The rows (R, O (1 + n), all monomials) of classes, and which these are, -1 where one only fills up."""
    height, width = (max(len(pair[axis]) for pair in used) for axis in (0, 1))
    coefficients = np.zeros((len(rows), len(used), height, width))
    factors = np.zeros((monomials.shape[1], len(used), width), dtype=int)
    slots = np.full((len(used), height), -1)
    for place, (own_rows, own_monomials) in enumerate(used):
        coefficients[:, place, : len(own_rows), : len(own_monomials)] = rows[:, own_rows[:, None], own_monomials]
        factors[:, place, : len(own_monomials)] = monomials[own_monomials].T
        slots[place, : len(own_rows)] = own_rows
    block = Block(torch.as_tensor(factors.reshape(len(factors), len(used) * width)), torch.as_tensor(coefficients))
    return block, slots.ravel()


def _rows(l_in: int, degrees: tuple[int, ...], correlation: int, monomials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reduction, and the coefficients of all r_oa, (R, O (1 + n), number of monomials)."""
    num = (l_in + 1) ** 2 + 1
    codes = _codes(_products(num, correlation), num)
    reductions, tables = [], []
    for place, degree in enumerate(degrees):
        for order in range(1, correlation + 1):
            functions = _as_polynomials(l_in, degree, order, codes, correlation)
            if not len(functions):
                continue
            independent, reduction = _independent(functions)
            table = np.zeros((len(reduction), sum(2 * other + 1 for other in degrees), len(codes)))
            begin = sum(2 * other + 1 for other in degrees[:place])
            table[:, begin : begin + 2 * degree + 1] = independent
            reductions.append(reduction)
            tables.append(table)
    multiplied = np.concatenate(
        [
            np.broadcast_to(np.arange(num)[:, None, None], (num, len(monomials), 1)),
            np.broadcast_to(monomials, (num, *monomials.shape)),
        ],
        axis=2,
    )  # (1 + n, monomials, correlation): x_a times a monomial
    times = (multiplied == multiplied[:, :, :1]).sum(axis=2)
    place_of_product = np.searchsorted(codes, _codes(np.sort(multiplied, axis=2), num))
    rows = np.concatenate(tables)[:, :, place_of_product] * (times / correlation)  # (R, O, 1 + n, monomials)
    return _block_diagonal(reductions), rows.reshape(len(rows), -1, len(monomials))


def _products(num: int, degree: int) -> np.ndarray:
    """All products of so many of `num` factors, which are sorted, (products, degree)."""
    products = list(combinations_with_replacement(range(num), degree))
    return np.array(products, dtype=int).reshape(len(products), degree)


def _codes(factors: np.ndarray, num: int) -> np.ndarray:
    """One number for each product of sorted factors (.., correlation), which sorts as they do."""
    return factors @ num ** np.arange(factors.shape[-1])[::-1]


def _as_polynomials(l_in: int, degree: int, order: int, codes: np.ndarray, correlation: int) -> np.ndarray:
    """Coupling matrices as coefficients of products of x, (P, 2 degree + 1, number of products)."""
    matrices = coupling_matrices(l_in, degree, order).numpy()
    num = matrices.shape[1] + 1
    factors = np.sort(np.indices(matrices.shape[1:-1]).reshape(order, -1).T + 1, axis=1)
    place = np.searchsorted(codes, _codes(np.pad(factors, ((0, 0), (correlation - order, 0))), num))
    result = np.zeros((len(codes), matrices.shape[0], matrices.shape[-1]))
    np.add.at(result, place, matrices.reshape(len(matrices), len(place), matrices.shape[-1]).swapaxes(0, 1))
    return result.transpose(2, 1, 0)


def _independent(functions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Independent functions (R, ..) and the reduction (R, P): sum_p w_p f_p = sum_r (sum_p reduction_rp w_p) independent_r."""
    left, values, right = np.linalg.svd(functions.reshape(len(functions), -1), full_matrices=False)
    num = int((values > INDEPENDENT * values[0]).sum())
    return right[:num].reshape(num, *functions.shape[1:]), (left[:, :num] * values[:num]).T


def _block_diagonal(matrices: list[np.ndarray]) -> np.ndarray:
    result = np.zeros(np.sum([matrix.shape for matrix in matrices], axis=0))
    row = column = 0
    for matrix in matrices:
        result[row : row + matrix.shape[0], column : column + matrix.shape[1]] = matrix
        row, column = row + matrix.shape[0], column + matrix.shape[1]
    return result
