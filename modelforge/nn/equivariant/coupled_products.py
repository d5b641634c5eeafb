"""Products of two factors, coupled component by component and weighted path by path, channel by channel, on the CPU.

    product:  z_k = sum_p w_p sum_ij c_pijk x_i y_j        for each atom and channel; w_p for each channel
    slopes:   by w_p: sum of c_pijk x_i y_j z_k over atoms

with coefficients c that are mostly zero: `coupled_products.c` goes through the others only. By its factors a product is
differentiated as a product of the others, with the components in other places.

N atoms, U channels, P paths; I, J, K components of x, y, z; T coefficients that are not zero.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_longlong, c_void_p
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from modelforge.nn.autograd import is_wanted
from modelforge.nn.native.library import native_rows

SOURCE = Path(__file__).with_name("coupled_products.c")


class Couplings(nn.Module):
    """Coefficients (P, I, J, K) of paths, as what is not zero of them, for products that give any one of the three factors."""

    def __init__(self, coefficients: Tensor) -> None:
        super().__init__()
        self.sizes = tuple(coefficients.shape)
        for place in range(3):
            for name, table in _terms(coefficients.movedim(place + 1, 1)).items():
                self.register_buffer(f"{name}_{place}", table, persistent=False)

    def terms(self, place: int, dtype: torch.dtype) -> list[Tensor]:
        """Tables of the products that give the factor in this place, of 0 to 2: groups, terms, first groups, coefficients."""
        groups, terms, first_groups, coefficients = (cast(Tensor, getattr(self, f"{name}_{place}")) for name in NAMES)
        return [groups, terms, first_groups, coefficients.to(dtype)]


NAMES = ("groups", "terms", "first_groups", "coefficients")


def _terms(coefficients: Tensor) -> dict[str, Tensor]:
    """(P, K, I, J), K the result: a group for each path and component of the result, a term for each coefficient."""
    path, result, left, right = coefficients.nonzero(as_tuple=True)  # sorted
    pairs, sizes = torch.unique_consecutive(torch.stack([path, result]), dim=1, return_counts=True)
    first_groups = torch.searchsorted(pairs[0].contiguous(), torch.arange(len(coefficients) + 1))
    tables = (torch.stack([*pairs, sizes.cumsum(0)], dim=1), torch.stack([left, right], dim=1), first_groups)
    return dict(zip(NAMES, (*tables, coefficients[path, result, left, right]), strict=True))


def is_native(factor: Tensor) -> bool:
    """Whether there is compiled code for such factors (.., U)."""
    return factor.device.type == "cpu" and _library(factor) is not None


def coupled_product(couplings: Couplings, place: int, factors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The factor in this place of 0 to 2 as a product of the two others, in their order, (.., N, U); weights (P, U)."""
    return cast(Tensor, _Product.apply(couplings, place, *factors, weights))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, couplings: Couplings, place: int, left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(left, right, weights)
        ctx.others = (couplings, place)  # type: ignore[attr-defined]
        tables, size = couplings.terms(place, left.dtype), couplings.sizes[place + 1]
        return cast(Tensor, torch.ops.modelforge.coupled_product(left, right, weights, tables, size))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (*factors, weights), (couplings, place) = ctx.saved_tensors, ctx.others  # type: ignore[attr-defined]
        factors.insert(place, gradients[0])
        others = [other for other in range(3) if other != place]
        by_factors = _by_factors(ctx, couplings, others, factors, weights)
        by_weights = _Slopes.apply(couplings, *factors) if is_wanted(ctx, 2) else None  # type: ignore[no-untyped-call]
        return None, None, *by_factors, by_weights


class _Slopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, couplings: Couplings, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, z)
        ctx.couplings = couplings  # type: ignore[attr-defined]
        return cast(Tensor, torch.ops.modelforge.coupled_slopes(x, y, z, couplings.terms(2, x.dtype), couplings.sizes[0]))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factors, couplings = list(ctx.saved_tensors), ctx.couplings  # type: ignore[attr-defined]
        return None, *_by_factors(ctx, couplings, range(3), factors, gradients[0])


def _by_factors(
    ctx: FunctionCtx, couplings: Couplings, places: Sequence[int], factors: Sequence[Tensor], weights: Tensor
) -> list[Tensor | None]:
    """The gradients by the factors in these places, which are the first inputs of the function."""
    return [
        coupled_product(couplings, place, [*factors[:place], *factors[place + 1 :]], weights)
        if is_wanted(ctx, number)
        else None
        for number, place in enumerate(places)
    ]


# Operators, opaque to the compiler

torch.library.define(
    "modelforge::coupled_product", "(Tensor left, Tensor right, Tensor weights, Tensor[] tables, int size) -> Tensor"
)
torch.library.define("modelforge::coupled_slopes", "(Tensor left, Tensor right, Tensor z, Tensor[] tables, int size) -> Tensor")


@torch.library.impl("modelforge::coupled_product", "CPU")
def _coupled_product(left: Tensor, right: Tensor, weights: Tensor, tables: list[Tensor], size: int) -> Tensor:
    result = left.new_empty(size, *left.shape[1:])
    _call("product_of", tables, (left, right, weights), result, num_results=size)
    return result


@torch.library.impl("modelforge::coupled_slopes", "CPU")
def _coupled_slopes(left: Tensor, right: Tensor, z: Tensor, tables: list[Tensor], size: int) -> Tensor:
    result = left.new_empty(size, left.shape[2])
    _call("slopes_of_weights", tables, (left, right, z), result, num_results=len(z))
    return result


@torch.library.register_fake("modelforge::coupled_product")  # type: ignore[untyped-decorator]
def _(left: Tensor, right: Tensor, weights: Tensor, tables: list[Tensor], size: int) -> Tensor:  # noqa: ARG001
    return left.new_empty(size, *left.shape[1:])


@torch.library.register_fake("modelforge::coupled_slopes")  # type: ignore[untyped-decorator]
def _(left: Tensor, right: Tensor, z: Tensor, tables: list[Tensor], size: int) -> Tensor:  # noqa: ARG001
    return left.new_empty(size, left.shape[2])


class _Products(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("groups", "terms", "coefficients", "first_groups")),
        *((f"num_{name}", c_longlong) for name in ("groups", "paths", "left", "right", "results", "atoms")),
        ("num_threads", c_int),
    )


def _library(factor: Tensor) -> ctypes.CDLL | None:
    return native_rows(SOURCE, factor.dtype, factor.shape[-1])


def _call(name: str, tables: Sequence[Tensor], factors: Sequence[Tensor], result: Tensor, *, num_results: int) -> None:
    library = _library(result)
    assert library is not None, "native code cannot be loaded any more"
    groups, terms, first_groups, coefficients = tables
    left, right, *_ = kept = [factor.contiguous() for factor in factors]  # which lives as long as its address is used
    pointers = (c_void_p(table.data_ptr()) for table in (groups, terms, coefficients, first_groups))
    sizes = (len(groups), len(first_groups) - 1, len(left), len(right), num_results, left.shape[1])
    described = _Products(*pointers, *sizes, torch.get_num_threads())
    getattr(library, name)(ctypes.byref(described), *(c_void_p(tensor.data_ptr()) for tensor in (*kept, result)))
