"""Functions that bring an interaction smoothly to zero at the cutoff. E edges."""

import math

import torch
from torch import Tensor


def cosine_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    """(cos(pi d/r_c) + 1)/2 below the cutoff, 0 beyond; (E,) -> (E,). Behler, J. Chem. Phys. 134, 074106 (2011), eq. 2."""
    inside = 0.5 * (torch.cos(distance * (math.pi / cutoff)) + 1.0)
    return torch.where(distance < cutoff, inside, torch.zeros_like(distance))


def polynomial_cutoff(distance: Tensor, cutoff: float, *, power: int = 3) -> Tensor:
    """1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) with x = r/r_c, 0 beyond; (E,) -> (E,).

    Gasteiger et al., DimeNet, arXiv:2003.03123, eq. 8; slope and curvature are zero at the cutoff, too. With p = 3 it is
    PhysNet's 1 - 10 x^3 + 15 x^4 - 6 x^5 (Unke, Meuwly, JCTC 15, 3678, 2019).
    """
    x, p = distance / cutoff, power
    inside = 1.0 - x**p * (0.5 * (p + 1) * (p + 2) - x * (p * (p + 2) - x * (0.5 * p * (p + 1))))
    return torch.where(x < 1.0, inside, 0.0)
