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

from modelforge.nn.autograd import is_wanted

ROWS, WEIGHTS = 0, 2  # places among the tensors that a product takes
LEFT, RIGHT = 0, 1  # and an outer product


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

    Under autocast it is in half precision, as a layer of torch.
    """
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        half = torch.get_autocast_dtype(device)
        rows, weights, biases = rows.to(half), [w.to(half) for w in weights], [b.to(half) for b in biases]
    num_out = max(weight.shape[0] for weight in weights)
    return _product(rows, weights, groups.ends, num_out=num_out, transposed=False, biases=biases)


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, order: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(order, place)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        order, place = ctx.saved_tensors  # type: ignore[attr-defined]
        return cast(Tensor, _Permuted.apply(gradients[0], place, order)), None, None  # type: ignore[no-untyped-call]


def _product(
    rows: Tensor, weights: Sequence[Tensor], ends: Tensor, *, num_out: int, transposed: bool, biases: Sequence[Tensor] = ()
) -> Tensor:
    options = (num_out, transposed, len(weights))
    return cast(Tensor, _Product.apply(rows, ends, *options, *weights, *biases))  # type: ignore[no-untyped-call]


def _outer(left: Tensor, right: Tensor, ends: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    return cast(tuple[Tensor, ...], _Outer.apply(left, right, ends, shapes))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        rows: Tensor,
        ends: Tensor,
        num_out: int,
        transposed: bool,
        num_groups: int,
        *weights_and_biases: Tensor,
    ) -> Tensor:
        weights, biases = list(weights_and_biases[:num_groups]), list(weights_and_biases[num_groups:])
        ctx.save_for_backward(rows, ends, *weights)
        ctx.others = (transposed, [bias.shape for bias in biases])  # type: ignore[attr-defined]
        result: Tensor = torch.ops.modelforge.grouped_product(rows, weights, biases, ends, num_out, transposed)
        return result

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, ends, *weights = ctx.saved_tensors  # type: ignore[attr-defined]
        (transposed, shapes), gradient = ctx.others, gradients[0]  # type: ignore[attr-defined]
        by_rows = None
        by_weights: Sequence[Tensor | None] = [None] * len(weights)
        by_biases: Sequence[Tensor | None] = [None] * len(shapes)
        if is_wanted(ctx, ROWS):
            by_rows = _product(gradient, weights, ends, num_out=rows.shape[1], transposed=not transposed)
        if any(is_wanted(ctx, WEIGHTS + place) for place in range(len(weights))):
            left, right = (rows, gradient) if transposed else (gradient, rows)
            by_weights = _outer(left, right, ends, [weight.shape for weight in weights])
        if any(is_wanted(ctx, WEIGHTS + len(weights) + place) for place in range(len(shapes))):
            columns = _outer(gradient, rows.new_ones(rows.shape[0], 1), ends, [torch.Size((*shape, 1)) for shape in shapes])
            by_biases = [column[:, 0] for column in columns]
        return by_rows, None, None, None, None, *by_weights, *by_biases


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, left: Tensor, right: Tensor, ends: Tensor, shapes: Sequence[torch.Size]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(left, right, ends)
        num_left, num_right = [shape[0] for shape in shapes], [shape[1] for shape in shapes]
        return tuple(torch.ops.modelforge.grouped_outer(left, right, ends, num_left, num_right))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        left, right, ends = ctx.saved_tensors  # type: ignore[attr-defined]
        by_left = by_right = None
        if is_wanted(ctx, LEFT):
            by_left = _product(right, gradients, ends, num_out=left.shape[1], transposed=False)
        if is_wanted(ctx, RIGHT):
            by_right = _product(left, gradients, ends, num_out=right.shape[1], transposed=True)
        return by_left, by_right, None, None


# The operators, opaque to the compiler: rows that are sorted by group, whose ends are known.

torch.library.define(
    "modelforge::grouped_product",
    "(Tensor rows, Tensor[] weights, Tensor[] biases, Tensor ends, int num_out, bool transposed) -> Tensor",
)
torch.library.define(
    "modelforge::grouped_outer", "(Tensor left, Tensor right, Tensor ends, int[] num_left, int[] num_right) -> Tensor[]"
)


@torch.library.impl("modelforge::grouped_product", "cpu")
def product_on_cpu(
    rows: Tensor, weights: list[Tensor], biases: list[Tensor], ends: Tensor, num_out: int, transposed: bool
) -> Tensor:
    """W_g x + b_g, (N, I) -> (N, num_out); there may be no biases."""
    result = rows.new_zeros(rows.shape[0], num_out)
    for group, (begin, end) in enumerate(_bounds(ends)):
        if begin == end:
            continue
        matrix = weights[group] if transposed else weights[group].T  # (I_g, O_g)
        num_in, width = matrix.shape
        part, to = rows[begin:end, :num_in], result[begin:end, :width]
        if biases:
            torch.addmm(biases[group], part, matrix, out=to)
        else:
            torch.mm(part, matrix, out=to)
    return result


@torch.library.impl("modelforge::grouped_outer", "cpu")
def outer_on_cpu(left: Tensor, right: Tensor, ends: Tensor, num_left: list[int], num_right: list[int]) -> list[Tensor]:
    """sum_n y_n x_n^T over the rows of each group, (N, O), (N, I) -> G x (O_g, I_g)."""
    sizes = zip(_bounds(ends), num_left, num_right, strict=True)
    return [left[begin:end, :rows].T @ right[begin:end, :columns] for (begin, end), rows, columns in sizes]


def _bounds(ends: Tensor) -> list[tuple[int, int]]:
    """First row and end of each group; reading numbers back costs nothing on the CPU."""
    return list(pairwise([0, *ends.tolist()]))


@torch.library.impl("modelforge::grouped_product", "cuda")
def product_on_gpu(
    rows: Tensor, weights: list[Tensor], biases: list[Tensor], ends: Tensor, num_out: int, transposed: bool
) -> Tensor:
    """The same without reading `ends` back."""
    result = rows.new_zeros(rows.shape[0], num_out)
    for group, is_member in enumerate(_members(rows, ends)):
        matrix = weights[group] if transposed else weights[group].T
        num_in, width = matrix.shape
        result[:, :width].addmm_(rows[:, :num_in] * is_member, matrix)
        if biases:
            result[:, :width].addcmul_(is_member, biases[group])
    return result


@torch.library.impl("modelforge::grouped_outer", "cuda")
def outer_on_gpu(left: Tensor, right: Tensor, ends: Tensor, num_left: list[int], num_right: list[int]) -> list[Tensor]:
    """The same without reading `ends` back."""
    sizes = zip(_members(left, ends), num_left, num_right, strict=True)
    return [(left[:, :rows] * is_member).T @ right[:, :columns] for is_member, rows, columns in sizes]


def _members(rows: Tensor, ends: Tensor) -> list[Tensor]:
    """1 for the rows of each group and 0 for the others, G x (N, 1)."""
    place = torch.arange(rows.shape[0], device=rows.device)
    begins = functional.pad(ends[:-1], (1, 0))
    is_member = (place >= begins[:, None]) & (place < ends[:, None])  # (G, N)
    return list(is_member.to(rows.dtype)[:, :, None].unbind())


@torch.library.register_fake("modelforge::grouped_product")  # type: ignore[untyped-decorator]
def _(
    rows: Tensor,
    weights: list[Tensor],  # noqa: ARG001
    biases: list[Tensor],  # noqa: ARG001
    ends: Tensor,  # noqa: ARG001
    num_out: int,
    transposed: bool,  # noqa: ARG001
) -> Tensor:
    return rows.new_empty(rows.shape[0], num_out)


@torch.library.register_fake("modelforge::grouped_outer")  # type: ignore[untyped-decorator]
def _(left: Tensor, right: Tensor, ends: Tensor, num_left: list[int], num_right: list[int]) -> list[Tensor]:  # noqa: ARG001
    return [left.new_empty(rows, columns) for rows, columns in zip(num_left, num_right, strict=True)]
