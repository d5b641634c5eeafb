"""Real spherical harmonics of degrees 0 to l_max as polynomials of a vector, in the order and the axes of e3nn.

Components of degree l stand at l^2 .. (l+1)^2 - 1, m = -l .. l, and the polar axis is y: those of degree 1 are (x, y, z). They
are the usual ones without the phase of Condon and Shortley for the axes (z, x, y). Of a vector of length r they are r^l times
those of its direction (solid harmonics); nothing divides, so all derivatives exist everywhere.

Each degree follows from the two before it (Z the polar axis, |m| <= l), and its two ends from those of the last one:

    Y_{l+1,m} = a_lm Z Y_{l,m} - b_lm r^2 Y_{l-1,m};   Y_{l+1,l+1} + i Y_{l+1,-l-1} = c_l (X + iY) (Y_{l,l} + i Y_{l,-l})

Slopes of those of degree l are combinations of those of degree l-1, so all derivatives follow from the harmonics themselves.

"component": squares of a degree sum up to 2l+1 on unit vectors; "integral": the integral of a square over the sphere is 1.
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from modelforge.nn.equivariant.couplings import coupling

Normalization = Literal["component", "integral"]


class SphericalHarmonics(nn.Module):
    """Harmonics of all degrees up to `l_max`."""

    along: Tensor  # a_lm of all degrees, one after the other
    before: Tensor  # b_lm likewise
    slopes: Tensor  # (B, 3 B) the slopes of all harmonics by x, then y, then z, from all of them

    def __init__(self, l_max: int, *, normalization: Normalization = "component") -> None:
        super().__init__()
        self.l_max = l_max
        self.first = 1.0 if normalization == "component" else 0.5 / math.sqrt(math.pi)
        along = [_along(degree, m) for degree in range(l_max) for m in range(-degree, degree + 1)]
        before = [_before(degree, m) for degree in range(1, l_max) for m in range(1 - degree, degree)]
        self.register_buffer("along", torch.tensor(along, dtype=torch.float64), persistent=False)
        self.register_buffer("before", torch.tensor(before, dtype=torch.float64), persistent=False)
        self.register_buffer("slopes", _slopes(l_max), persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """(E, 3) -> (E, (l_max + 1)^2)."""
        return cast(Tensor, _Harmonics.apply(vectors, self))  # type: ignore[no-untyped-call]

    def polynomials(self, vectors: Tensor) -> Tensor:
        """The harmonics, without a derivative."""
        y, z, x = vectors.chunk(3, dim=1)  # the usual names: z is polar
        square = vectors.square().sum(dim=1, keepdim=True)
        degrees = [torch.full_like(x, self.first)]
        for degree in range(self.l_max):
            degrees.append(self._next(degrees, degree, (x, y, z), square))
        return torch.cat(degrees, dim=1)

    def _next(self, degrees: list[Tensor], degree: int, axes: tuple[Tensor, Tensor, Tensor], square: Tensor) -> Tensor:
        x, y, z = axes
        last = degrees[degree]  # (E, 2l + 1)
        sine, cosine = last[:, :1], last[:, -1:]
        if degree == 0:  # one component is both ends
            return math.sqrt(3.0) * torch.cat([y * last, z * last, x * last], dim=1)
        along, before = (table.to(last.dtype) for table in (self.along, self.before))
        middle = along[degree**2 : (degree + 1) ** 2] * z * last
        middle = middle - functional.pad(before[(degree - 1) ** 2 : degree**2] * square * degrees[degree - 1], (1, 1))
        end = math.sqrt((2 * degree + 3) / (2 * degree + 2))
        return torch.cat([end * (x * sine + y * cosine), middle, end * (x * cosine - y * sine)], dim=1)


class _Harmonics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, vectors: Tensor, harmonics: SphericalHarmonics) -> Tensor:
        ctx.save_for_backward(vectors)
        ctx.harmonics = harmonics  # type: ignore[attr-defined]
        return harmonics.polynomials(vectors)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (vectors,), harmonics = ctx.saved_tensors, ctx.harmonics  # type: ignore[attr-defined]
        slopes = harmonics(vectors) @ harmonics.slopes.to(vectors.dtype)  # (E, 3 B)
        return (slopes.unflatten(1, (3, -1)) * gradients[0][:, None]).sum(dim=2), None


def _slopes(l_max: int) -> Tensor:
    """d Y_lk/d r_c = sum_a s_l C_cak Y_{l-1,a} with C of degrees 1, l-1, l; along the polar axis both sides are known."""
    table = torch.zeros((l_max + 1) ** 2, 3, (l_max + 1) ** 2, dtype=torch.float64)
    for degree in range(1, l_max + 1):
        coefficients = coupling(1, degree - 1, degree)
        along_axis = coefficients[1, degree - 1, degree] * math.sqrt((2 * degree - 1) / (2 * degree + 1))
        block = (degree / along_axis) * coefficients.transpose(0, 1)
        table[(degree - 1) ** 2 : degree**2, :, degree**2 : (degree + 1) ** 2] = block
    return table.flatten(1)


def _along(degree: int, m: int) -> float:
    return math.sqrt((2 * degree + 1) * (2 * degree + 3) / ((degree + 1) ** 2 - m**2))


def _before(degree: int, m: int) -> float:
    ratio = (2 * degree + 3) * (degree**2 - m**2) / ((2 * degree - 1) * ((degree + 1) ** 2 - m**2))
    return math.sqrt(ratio)
