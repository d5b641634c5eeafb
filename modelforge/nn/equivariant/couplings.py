"""Real Clebsch-Gordan coefficients: how products of two sets of spherical harmonics form components of a third degree.

    (x, y)_c = sum_ab C_abc x_a y_b   turns as degree l3 where x turns as l1 and y as l2

They are the coefficients of the complex harmonics (Racah's formula) in the basis of the real ones of `spherical_harmonics.py`
times (-i)^l, a factor that makes all of them real, those of odd l1 + l2 + l3 too; it also fixes their signs, to those of e3nn.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor


@cache
def coupling(l1: int, l2: int, l3: int) -> Tensor:
    """C of three degrees, (2 l1 + 1, 2 l2 + 1, 2 l3 + 1) in double precision, of norm 1; not to be written to."""
    assert abs(l1 - l2) <= l3 <= l1 + l2, f"degrees {l1} and {l2} do not couple to {l3}"
    to_complex = [_complex_from_real(degree) for degree in (l1, l2, l3)]
    first, second, third = to_complex[0], to_complex[1], to_complex[2].conj()
    real = np.einsum("ijk,ia,jb,kc->abc", _complex_coupling(l1, l2, l3), first, second, third, optimize=True).real
    return torch.as_tensor(real / np.linalg.norm(real))


def _complex_coupling(l1: int, l2: int, l3: int) -> np.ndarray:
    """<l1 m1 l2 m2 | l3 m3> up to a factor that all of them share."""
    table = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            table[l1 + m1, l2 + m2, l3 + m1 + m2] = _racah((l1, l2, l3), m1, m2)
    return table


def _racah(degrees: tuple[int, int, int], m1: int, m2: int) -> float:
    """Racah's formula in binomial coefficients, its sum in whole numbers, which cancels without a rounding error."""
    l1, l2, l3 = degrees
    beyond = l1 + l2 - l3
    lowest, highest = max(0, l1 - m1 - (l1 - l2 + l3), l2 + m2 - (l2 - l1 + l3)), min(beyond, l1 - m1, l2 + m2)
    total = sum(
        (-1) ** k * math.comb(beyond, k) * math.comb(l1 - l2 + l3, l1 - m1 - k) * math.comb(l2 - l1 + l3, l2 + m2 - k)
        for k in range(lowest, highest + 1)
    )
    weight = math.comb(2 * l1, l1 - m1) * math.comb(2 * l2, l2 - m2) * math.comb(2 * l3, l3 - m1 - m2)
    return float(total / math.sqrt(weight))


@cache
def _complex_from_real(degree: int) -> np.ndarray:
    """The matrix Q of Y_complex = Q Y_real (with the phase of Condon and Shortley), times (-i)^l."""
    matrix = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=complex)
    matrix[degree, degree] = 1.0
    for m in range(1, degree + 1):
        phase = (-1) ** m / math.sqrt(2)
        matrix[degree + m, [degree + m, degree - m]] = phase, 1j * phase
        matrix[degree - m, [degree + m, degree - m]] = 1 / math.sqrt(2), -1j / math.sqrt(2)
    return (-1j) ** degree * matrix
