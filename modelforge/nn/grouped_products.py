"""Products of rows with a matrix of the row's group: one matrix product a group, where rows are sorted by group.

    product:  y_n = W_g(n) x_n  (or its transpose, W^T);    outer:  W_g = sum_{n in g} y_n x_n^T

Each is the derivative of the other, so both can be differentiated any number of times. They are operators of their own, as a
graph with dynamic sizes has no way to write down a product of which only the data say how many rows it has. On a GPU the
numbers of rows are not read back: each matrix is applied to all rows, and those of other groups are set to zero.

N rows, G groups, I and O columns: of the widest matrix; a narrower one reads the first columns and leaves zeros in the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Which rows are in which group."""

    order: Tensor  # (N,) the rows, group after group
    place: Tensor  # (N,) where each row is in that order
    ends: Tensor  # (G,) how many rows there are up to the end of each group


def row_groups(group_of_row: Tensor, *, num_groups: int) -> RowGroups:
    """Groups from 0 to num_groups - 1, (N,)."""
    order = torch.argsort(group_of_row, stable=True)
    rows = torch.arange(order.shape[0], device=order.device)
    place = torch.empty_like(order).scatter_(0, order, rows)
    is_in_group = group_of_row == torch.arange(num_groups, device=order.device)[:, None]  # (G, N)
    return RowGroups(order, place, is_in_group.sum(dim=1).cumsum(dim=0))


def sorted_by_group(rows: Tensor, groups: RowGroups) -> Tensor:
    """The rows, group after group, (N, ...)."""
    return cast(Tensor, _Permuted.apply(rows, groups.order, groups.place))  # type: ignore[no-untyped-call]


def back_in_place(rows: Tensor, groups: RowGroups) -> Tensor:
    """Rows that are sorted by group in the order of before, (N, ...)."""
    return cast(Tensor, _Permuted.apply(rows, groups.place, groups.order))  # type: ignore[no-untyped-call]


def grouped_linear(rows: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], groups: RowGroups) -> Tensor:
    """A linear layer for each group; sorted rows (N, I), weights G x (O_g, I_g), biases G x (O_g,) -> (N, O).

    Under autocast the product is in half precision, as that of a layer of torch.
    """
    ones = rows.new_ones(rows.shape[0], 1)
    columns = [bias[:, None] for bias in biases]
    return grouped_product(*_for_autocast(rows, weights), groups.ends) + grouped_product(ones, columns, groups.ends)


def grouped_product(rows: Tensor, weights: Sequence[Tensor], ends: Tensor) -> Tensor:
    """W_g x for each row, (N, I) and G x (O_g, I_g) -> (N, O)."""
    return _product(rows, weights, ends, num_out=max(weight.shape[0] for weight in weights), transposed=False)


def _for_autocast(rows: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    device = rows.device.type
    if not torch.is_autocast_enabled(device):
        return rows, weights
    half = torch.get_autocast_dtype(device)
    return rows.to(half), [weight.to(half) for weight in weights]


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, order: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(order, place)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        order, place = ctx.saved_tensors  # type: ignore[attr-defined]
        return cast(Tensor, _Permuted.apply(gradients[0], place, order)), None, None  # type: ignore[no-untyped-call]


# A product is the sum of two nodes: one that has only the rows as its inputs, and one, of value zero, that has only the
# weights. Autograd then computes the derivatives that are asked for and no others; of one node it would compute both, always.


def _product(rows: Tensor, weights: Sequence[Tensor], ends: Tensor, *, num_out: int, transposed: bool) -> Tensor:
    by_rows = _ProductOfRows.apply(rows, list(weights), ends, num_out, transposed)  # type: ignore[no-untyped-call]
    by_weights = _ZeroOfWeights.apply([rows], ends, num_out, transposed, *weights)  # type: ignore[no-untyped-call]
    return cast(Tensor, by_rows + by_weights)


def _outer(left: Tensor, right: Tensor, ends: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    return cast(tuple[Tensor, ...], _Outer.apply(left, right, ends, shapes))  # type: ignore[no-untyped-call]


class _ProductOfRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, weights: list[Tensor], ends: Tensor, num_out: int, transposed: bool
    ) -> Tensor:
        ctx.others = (weights, ends, rows.shape[1], transposed)  # type: ignore[attr-defined]
        return product_operator(rows, weights, ends, num_out, transposed)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        weights, ends, num_in, transposed = ctx.others  # type: ignore[attr-defined]
        by_rows = _product(gradients[0], weights, ends, num_out=num_in, transposed=not transposed)
        return by_rows, None, None, None, None


class _ZeroOfWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: list[Tensor], ends: Tensor, num_out: int, transposed: bool, *weights: Tensor
    ) -> Tensor:
        ctx.others = (rows[0], ends, transposed, [weight.shape for weight in weights])  # type: ignore[attr-defined]
        return rows[0].new_zeros(1, 1).expand(rows[0].shape[0], num_out)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[None, None, None, None, *tuple[Tensor, ...]]:
        rows, ends, transposed, shapes = ctx.others  # type: ignore[attr-defined]
        left, right = (rows, gradients[0]) if transposed else (gradients[0], rows)
        return None, None, None, None, *_outer(left, right, ends, shapes)


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, left: Tensor, right: Tensor, ends: Tensor, shapes: Sequence[torch.Size]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(left, right, ends)
        return tuple(outer_operator(left, right, ends, [shape[0] for shape in shapes], [shape[1] for shape in shapes]))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right, ends = ctx.saved_tensors  # type: ignore[attr-defined]
        by_left = _product(right, gradients, ends, num_out=left.shape[1], transposed=False)
        by_right = _product(left, gradients, ends, num_out=right.shape[1], transposed=True)
        return by_left, by_right, None, None


# The operators, opaque to the compiler.


@torch.library.custom_op("modelforge::grouped_product", mutates_args=())
def product_operator(rows: Tensor, weights: list[Tensor], ends: Tensor, num_out: int, transposed: bool) -> Tensor:
    """W_g x of sorted rows, (N, I) -> (N, num_out)."""
    matrices = [weight if transposed else weight.T for weight in weights]  # (I_g, O_g)
    result = rows.new_zeros(rows.shape[0], num_out)
    for part, to, matrix in zip(_parts(rows, ends), _parts(result, ends), matrices, strict=True):
        num_in, width = matrix.shape
        to[:, :width].addmm_(part[:, :num_in], matrix)
    return result


@torch.library.custom_op("modelforge::grouped_outer", mutates_args=())
def outer_operator(left: Tensor, right: Tensor, ends: Tensor, num_left: list[int], num_right: list[int]) -> list[Tensor]:
    """sum_n y_n x_n^T over the rows of each group, (N, O), (N, I) -> G x (O_g, I_g)."""
    parts = zip(_parts(left, ends), _parts(right, ends), num_left, num_right, strict=True)
    return [part[:, :rows].T @ other[:, :columns] for part, other, rows, columns in parts]


def _parts(rows: Tensor, ends: Tensor) -> list[Tensor]:
    """The rows of each group; reading the numbers back costs nothing on the CPU."""
    bounds = [0, *ends.tolist()]
    return [rows[begin:end] for begin, end in pairwise(bounds)]


@product_operator.register_kernel("cuda")
def _(rows: Tensor, weights: list[Tensor], ends: Tensor, num_out: int, transposed: bool) -> Tensor:
    result = rows.new_zeros(rows.shape[0], num_out)
    for weight, is_member in zip(weights, _members(rows, ends), strict=True):
        matrix = weight if transposed else weight.T
        num_in, width = matrix.shape
        result[:, :width].addmm_(rows[:, :num_in] * is_member, matrix)
    return result


@outer_operator.register_kernel("cuda")
def _(left: Tensor, right: Tensor, ends: Tensor, num_left: list[int], num_right: list[int]) -> list[Tensor]:
    parts = zip(_members(left, ends), num_left, num_right, strict=True)
    return [(left[:, :rows] * is_member).T @ right[:, :columns] for is_member, rows, columns in parts]


def _members(rows: Tensor, ends: Tensor) -> list[Tensor]:
    """1 for the rows of each group and 0 for the others, G x (N, 1)."""
    place = torch.arange(rows.shape[0], device=rows.device)
    begins = functional.pad(ends[:-1], (1, 0))
    is_member = (place >= begins[:, None]) & (place < ends[:, None])  # (G, N)
    return list(is_member.to(rows.dtype)[:, :, None].unbind())


@product_operator.register_fake
def _(rows: Tensor, weights: list[Tensor], ends: Tensor, num_out: int, transposed: bool) -> Tensor:  # noqa: ARG001
    return rows.new_empty(rows.shape[0], num_out)


@outer_operator.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor, num_left: list[int], num_right: list[int]) -> list[Tensor]:  # noqa: ARG001
    return [left.new_empty(rows, columns) for rows, columns in zip(num_left, num_right, strict=True)]
