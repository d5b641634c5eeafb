"""The product basis of MACE (Batatia et al., arXiv:2206.07697): polynomials of the components of an atom, element by element.

    B_o = sum_k sum_p w_z,k,p sum_(a1 .. ak) U_o,a1..ak,p A_a1 .. A_ak        for each atom (element z) and channel

It is evaluated as B_o = sum_a x_a r_oa, x = (1, A), see `product_basis.py`. The rows r have all there is to know of the first
derivative, which is dB_o/dx_a = d r_oa for polynomials of degree d, so they are computed once for values and forces; and once
more, along a direction, for the weight gradient of a loss of forces.

N atoms, C channels, Z elements, n components of A, O of B, P basis functions.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import FunctionCtx

from modelforge.nn.elements.grouped_products import RowGroups, back_in_place, sorted_by_group
from modelforge.nn.equivariant.polynomial_rows import Rows, RowsAsProducts, RowsAsSums
from modelforge.nn.equivariant.product_basis import Blocks, coupling_matrices, polynomials

MOST_ELEMENTS = 10  # of rows as sums: without C the slopes of their weights cost as much as each element alone for all of them


class SymmetricContraction(nn.Module):
    """Polynomials of A of natural parity, with weights for each element and channel."""

    reduction: Tensor

    def __init__(self, l_in: int, outputs: Sequence[int], *, correlation: int, num_elements: int, num_channels: int) -> None:
        """`outputs`: degrees of B, one block after the other; `correlation`: the largest number of factors A."""
        super().__init__()
        self.weights = nn.ParameterDict()
        for degree in outputs:
            for order in range(1, correlation + 1):
                if num := coupling_matrices(l_in, degree, order).shape[-1]:
                    weights = torch.randn(num_elements, num, num_channels) / num
                    self.weights[weight_name(degree, order)] = nn.Parameter(weights)
        basis = polynomials(l_in, tuple(outputs), correlation)
        self.register_buffer("reduction", basis.reduction, persistent=False)
        self.by_class, self.by_length = _Tables(basis.by_class), _Tables(basis.by_length)

    def forward(self, features: Tensor, columns: Tensor, groups: RowGroups) -> Tensor:
        """A (N, n, C) and which element each atom is, (N,) from 0 to Z - 1, and as groups -> B (N, O, C).

        In the precision of the weights, also under autocast.
        """
        with torch.autocast(features.device.type, enabled=False):
            of_all = torch.cat(list(self.weights.values()), dim=1)
            features = features.to(of_all.dtype)
            weights = self.reduction.to(of_all.dtype) @ of_all  # (Z, R, C)
            if isinstance(features, FakeTensor) and weights.shape[0] <= MOST_ELEMENTS:  # what is traced for a compiler
                return _polynomials(_with_one(features), self._as_sums(weights, columns))
            x = _with_one(sorted_by_group(features, groups).permute(2, 1, 0))
            return back_in_place(_polynomials(x, self._as_products(weights, groups)).permute(2, 1, 0), groups)

    def _as_sums(self, weights: Tensor, columns: Tensor) -> RowsAsSums:
        blocks = self.by_length
        tables = blocks.coefficients(weights.dtype)  # (R, rows, M)
        shapes = [(weights.shape[0], *table.shape[1:], weights.shape[2]) for table in tables]
        coefficients = [(table.flatten(1).T @ weights).view(shape) for table, shape in zip(tables, shapes, strict=True)]
        return RowsAsSums(coefficients, blocks.factors(), blocks.slot_of_row, blocks.row_of_slot, columns)

    def _as_products(self, weights: Tensor, groups: RowGroups) -> RowsAsProducts:
        num_elements, _, num_channels = weights.shape
        of_channels = weights.transpose(1, 2).flatten(0, 1)  # (Z C, R)
        blocks = self.by_class
        tables = blocks.coefficients(weights.dtype)  # (R, K, rows, M)
        shapes = [(num_elements, num_channels * table.shape[1], *table.shape[2:]) for table in tables]
        coefficients = [(of_channels @ table.flatten(1)).view(shape) for table, shape in zip(tables, shapes, strict=True)]
        return RowsAsProducts(coefficients, blocks.factors(), blocks.slot_of_row, blocks.row_of_slot, groups.ends)


class _Tables(nn.Module):
    """Blocks of rows as buffers."""

    slot_of_row: Tensor
    row_of_slot: Tensor

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self.num = len(blocks.parts)
        self.register_buffer("slot_of_row", blocks.slot_of_row, persistent=False)
        self.register_buffer("row_of_slot", blocks.row_of_slot, persistent=False)
        for place, block in enumerate(blocks.parts):
            self.register_buffer(f"factors_{place}", block.factors, persistent=False)
            self.register_buffer(f"coefficients_{place}", block.coefficients, persistent=False)

    def factors(self) -> list[Tensor]:
        """Those of each block."""
        return [cast(Tensor, getattr(self, f"factors_{place}")) for place in range(self.num)]

    def coefficients(self, dtype: torch.dtype) -> list[Tensor]:
        """Those of each block."""
        return [cast(Tensor, getattr(self, f"coefficients_{place}")).to(dtype) for place in range(self.num)]


def weight_name(degree: int, order: int) -> str:
    """The name of the weights (Z, P, C) of products of `order` factors that form this degree."""
    return f"degree_{degree}_order_{order}"


def _with_one(components: Tensor) -> Tensor:
    """x = (1, A): (.., n, ..) -> (.., 1 + n, ..)."""
    return torch.cat([torch.ones_like(components[:, :1]), components], dim=1)


def _polynomials(x: Tensor, rows: Rows) -> Tensor:
    """B, (.., 1 + n, ..) -> (.., O, ..)."""
    values = rows.values(x)
    by_weights = cast(Tensor, _OfWeights.apply(values.detach(), [x], rows, *rows.coefficients))  # type: ignore[no-untyped-call]
    of_x = cast(Tensor, _Values.apply(x, [by_weights, values], rows))  # type: ignore[no-untyped-call]
    return of_x + cast(Tensor, _ZeroOfRows.apply(by_weights, [x]))  # type: ignore[no-untyped-call]


# Rows come twice: `rows` as a function of all, which only third derivatives follow, and `by_weights`, the same numbers as a
# function of the weights alone: that they depend on x is in the factor d by which values and slopes know their derivatives.
# Values are the sum of two nodes, of which one, of value zero, has the weights: forces then do not compute what they need not.
# For that x must be no input of the nodes that have the weights: in a list it is none, and keeps its own derivatives.


class _OfWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, x: list[Tensor], rows: Rows, *coefficients: Tensor) -> Tensor:  # noqa: ARG004
        ctx.others = (x[0], rows)  # type: ignore[attr-defined]
        return values.view_as(values)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[None, None, None, *tuple[Tensor, ...]]:
        x, rows = ctx.others  # type: ignore[attr-defined]
        return None, None, None, *rows.slopes_of_coefficients(gradients[0], x)


class _Values(torch.autograd.Function):
    """B_o = sum_a x_a r_oa as a function of x."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, values: list[Tensor], rows: Rows) -> Tensor:
        ctx.save_for_backward(x)
        ctx.others = (values, rows)  # type: ignore[attr-defined]
        return _by_output(values[0], x).mul(x[:, None]).sum(dim=2)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        (by_weights, values), rows = ctx.others  # type: ignore[attr-defined]
        return _Slopes.apply(gradients[0], by_weights, x, [values], rows), None, None  # type: ignore[no-untyped-call]


class _ZeroOfRows(torch.autograd.Function):
    """Zero, whose gradient by the rows is that of B."""

    @staticmethod
    def forward(ctx: FunctionCtx, by_weights: Tensor, x: list[Tensor]) -> Tensor:
        ctx.x = x[0]  # type: ignore[attr-defined]
        return by_weights.new_zeros(1, 1, 1).expand(
            by_weights.shape[0], by_weights.shape[1] // x[0].shape[1], by_weights.shape[2]
        )

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return _outer_product(gradients[0], ctx.x), None  # type: ignore[attr-defined]


class _Slopes(torch.autograd.Function):
    """sum_o y_o dB_o/dx_a = d sum_o y_o r_oa."""

    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, by_weights: Tensor, x: Tensor, values: list[Tensor], rows: Rows) -> Tensor:
        ctx.save_for_backward(y, x)
        ctx.others = (values[0], rows)  # type: ignore[attr-defined]
        return _by_output(by_weights, x).mul(y[:, :, None]).sum(dim=1) * (rows.degree + 1)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        y, x = ctx.saved_tensors  # type: ignore[attr-defined]
        values, rows = ctx.others  # type: ignore[attr-defined]
        direction = (rows.degree + 1) * gradients[0]
        by_y = (_by_output(values, x) * direction[:, None]).sum(dim=2)
        by_x = (_by_output(rows.slopes(x, direction), x) * y[:, :, None]).sum(dim=1)
        return by_y, _outer_product(y, direction), by_x, None, None


def _by_output(rows: Tensor, x: Tensor) -> Tensor:
    """(.., O (1 + n), ..) -> (.., O, 1 + n, ..)."""
    return rows.view(rows.shape[0], rows.shape[1] // x.shape[1], x.shape[1], rows.shape[2])


def _outer_product(y: Tensor, x: Tensor) -> Tensor:
    """(.., O, ..), (.., 1 + n, ..) -> (.., O (1 + n), ..)."""
    return (y[:, :, None] * x[:, None]).flatten(1, 2)
