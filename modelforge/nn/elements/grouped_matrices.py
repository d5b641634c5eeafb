"""Products of matrices of which each group of columns and each member of a batch has another, for columns sorted by group.

    product:  y_bn = W_g(n)b x_bn  (or its transpose, W^T);    outer:  W_gb = sum_{n in g} y_bn x_bn^T

Each is the derivative of the other, so both can be differentiated any number of times. As in `grouped_products.py` they are
operators of their own, which only the data tell how many columns a group has, and on a GPU that number is not read back.

N columns, G groups, B members of the batch, O and I rows.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from modelforge.nn.autograd import is_wanted


def product(weights: Tensor, columns: Tensor, ends: Tensor) -> Tensor:
    """(G, B, O, I), (B, I, N) -> (B, O, N); `ends` (G,) as in `RowGroups`."""
    return cast(Tensor, _Product.apply(weights, columns, ends, False))  # type: ignore[no-untyped-call]


def outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """(B, O, N), (B, I, N) -> (G, B, O, I)."""
    return cast(Tensor, _Outer.apply(left, right, ends))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weights: Tensor, columns: Tensor, ends: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(weights, columns, ends)
        ctx.transposed = transposed  # type: ignore[attr-defined]
        result: Tensor = torch.ops.modelforge.batched_grouped_product(weights, columns, ends, transposed)
        return result

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weights, columns, ends = ctx.saved_tensors  # type: ignore[attr-defined]
        transposed = ctx.transposed  # type: ignore[attr-defined]
        by_weights = by_columns = None
        if is_wanted(ctx, 0):
            left, right = (columns, gradients[0]) if transposed else (gradients[0], columns)
            by_weights = outer(left, right, ends)
        if is_wanted(ctx, 1):
            by_columns = _Product.apply(weights, gradients[0], ends, not transposed)  # type: ignore[no-untyped-call]
        return by_weights, by_columns, None, None


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(left, right, ends)
        result: Tensor = torch.ops.modelforge.batched_grouped_outer(left, right, ends)
        return result

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        left, right, ends = ctx.saved_tensors  # type: ignore[attr-defined]
        by_left = product(gradients[0], right, ends) if is_wanted(ctx, 0) else None
        by_right = _Product.apply(gradients[0], left, ends, True) if is_wanted(ctx, 1) else None  # type: ignore[no-untyped-call]
        return by_left, by_right, None


# The operators, opaque to the compiler.

torch.library.define(
    "modelforge::batched_grouped_product", "(Tensor weights, Tensor columns, Tensor ends, bool transposed) -> Tensor"
)
torch.library.define("modelforge::batched_grouped_outer", "(Tensor left, Tensor right, Tensor ends) -> Tensor")


def product_on_cpu(weights: Tensor, columns: Tensor, ends: Tensor, transposed: bool) -> Tensor:
    """One batched product a group."""
    matrices = weights.mT if transposed else weights
    result = columns.new_empty(columns.shape[0], matrices.shape[2], columns.shape[2])
    for group, (begin, end) in enumerate(_bounds(ends)):
        if begin < end:  # a product that writes to a part of the result itself would be many times slower
            result[:, :, begin:end] = torch.bmm(matrices[group], columns[:, :, begin:end])
    return result


def outer_on_cpu(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """One batched product a group."""
    result = left.new_empty(ends.shape[0], left.shape[0], left.shape[1], right.shape[1])
    for group, (begin, end) in enumerate(_bounds(ends)):
        torch.bmm(left[:, :, begin:end], right[:, :, begin:end].mT, out=result[group])
    return result


def _bounds(ends: Tensor) -> list[tuple[int, int]]:
    """First column and end of each group; reading numbers back costs nothing on the CPU."""
    return list(pairwise([0, *ends.tolist()]))


def product_on_gpu(weights: Tensor, columns: Tensor, ends: Tensor, transposed: bool) -> Tensor:
    """The matrices of each group are applied to all columns."""
    matrices = weights.mT if transposed else weights
    result = columns.new_zeros(columns.shape[0], matrices.shape[2], columns.shape[2])
    for group, is_member in enumerate(_members(columns, ends)):
        result.addcmul_(torch.bmm(matrices[group], columns), is_member)
    return result


def outer_on_gpu(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Columns of other groups are set to zero."""
    return torch.stack([torch.bmm(left * is_member, right.mT) for is_member in _members(left, ends)])


def _members(columns: Tensor, ends: Tensor) -> list[Tensor]:
    """1 for the columns of each group and 0 for the others, G x (N,)."""
    place = torch.arange(columns.shape[2], device=columns.device)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    is_member = (place >= begins[:, None]) & (place < ends[:, None])  # (G, N)
    return list(is_member.to(columns.dtype).unbind())


torch.library.impl("modelforge::batched_grouped_product", "cpu", product_on_cpu)
torch.library.impl("modelforge::batched_grouped_product", "cuda", product_on_gpu)
torch.library.impl("modelforge::batched_grouped_outer", "cpu", outer_on_cpu)
torch.library.impl("modelforge::batched_grouped_outer", "cuda", outer_on_gpu)


@torch.library.register_fake("modelforge::batched_grouped_product")  # type: ignore[untyped-decorator]
def _(weights: Tensor, columns: Tensor, ends: Tensor, transposed: bool) -> Tensor:  # noqa: ARG001
    return columns.new_empty(columns.shape[0], weights.shape[3 if transposed else 2], columns.shape[2])


@torch.library.register_fake("modelforge::batched_grouped_outer")  # type: ignore[untyped-decorator]
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[0], left.shape[1], right.shape[1])
