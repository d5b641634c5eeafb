"""Radial bases: distances as vectors. E edges, K radial functions."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

RadialBasisName = Literal["gaussian", "bessel"]


class GaussianBasis(nn.Module):
    """exp(-(d - mu_k)^2 / (2 w_k^2)), mu_k evenly on [0, r_c] with both ends, w_k their spacing (SchNet, PaiNN)."""

    centres: Tensor
    widths: Tensor

    def __init__(self, *, num_radial: int, cutoff: float) -> None:
        super().__init__()
        centres = torch.linspace(0.0, cutoff, num_radial, dtype=torch.float64)
        self.register_buffer("centres", centres.to(torch.get_default_dtype()))
        self.register_buffer("widths", torch.full_like(self.centres, cutoff / (num_radial - 1)))

    def forward(self, distance: Tensor) -> Tensor:
        """(E,) angstrom -> (E, K)."""
        return torch.exp(-0.5 * ((distance[:, None] - self.centres) / self.widths) ** 2)


class BesselBasis(nn.Module):
    """sin(k pi d/r_c)/d, k = 1..K (Gasteiger et al., DimeNet, arXiv:2003.03123, eq. 7 without its norm)."""

    frequencies: Tensor

    def __init__(self, *, num_radial: int, cutoff: float) -> None:
        super().__init__()
        frequencies = torch.arange(1, num_radial + 1, dtype=torch.float64) * (math.pi / cutoff)
        self.register_buffer("frequencies", frequencies.to(torch.get_default_dtype()))

    def forward(self, distance: Tensor) -> Tensor:
        """(E,) angstrom -> (E, K)."""
        return torch.sin(distance[:, None] * self.frequencies) / distance[:, None]


class ExpNormalBasis(nn.Module):
    """exp(-b (exp(-a d) - m_k)^2), m_k evenly on [exp(-r_c), 1], b = (2/K (1 - exp(-r_c)))^-2.

    a is 5/r_c in TorchMD-Net and SAKE, 1/angstrom in PhysNet.
    """

    centres: Tensor
    steepness: Tensor

    def __init__(self, *, num_radial: int, cutoff: float, rate: float | None = None) -> None:
        """`rate`: a, in 1/angstrom; 5/r_c where it is not given."""
        super().__init__()
        self.rate = 5.0 / cutoff if rate is None else rate
        centres = torch.linspace(math.exp(-cutoff), 1.0, num_radial, dtype=torch.float64)
        self.register_buffer("centres", centres.to(torch.get_default_dtype()))
        steepness = (2.0 / num_radial * (1.0 - math.exp(-cutoff))) ** -2
        self.register_buffer("steepness", torch.full_like(self.centres, steepness))

    def forward(self, distance: Tensor) -> Tensor:
        """(E,) angstrom -> (E, K)."""
        return torch.exp(-self.steepness * (torch.exp(-self.rate * distance)[:, None] - self.centres) ** 2)


def radial_basis(name: RadialBasisName, *, num_radial: int, cutoff: float) -> GaussianBasis | BesselBasis:
    """The radial basis of that name."""
    bases: dict[RadialBasisName, type[GaussianBasis] | type[BesselBasis]] = {
        "gaussian": GaussianBasis,
        "bessel": BesselBasis,
    }
    return bases[name](num_radial=num_radial, cutoff=cutoff)
