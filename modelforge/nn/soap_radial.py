"""What a Gaussian at distance d from the origin gives to the radial functions of SOAP, as a series in cosines and sines.

    F_nl(d) = 4 pi int r^2 g_nl(r) exp(-(r^2 + d^2) / (2 sigma^2)) i_l(r d/sigma^2) dr,  i_l: modified spherical Bessel function

with the radial functions g of DScribe 2.1 ("gto", "polynomial"). F is smooth, has the parity of l and comes to nothing at a
length D, so F_nl(d) = sum_k a_k cos(k pi d/D) for even l and sum_k a_k sin(k pi d/D) for odd l converges to the last digit, and
so do all derivatives. All is in float64. L degrees, n radial functions, K terms, D distances, Q points.
"""

from dataclasses import dataclass
from math import gamma
from typing import Literal

import mpmath
import numpy as np
import numpy.typing as npt
from scipy.special import ive

SOAPBasisName = Literal["gto", "polynomial"]
Floats = npt.NDArray[np.float64]

NEGLIGIBLE = 1e-15  # relative, of terms of the series
NUM_POINTS = 200  # of Gauss and Legendre
TAIL = 36.0  # exp(-36) = 2e-16
DIGITS = 60  # float64 has 16, and loses them all to ten polynomials


@dataclass(frozen=True)
class RadialSeries:
    """F_nl as a series."""

    length: float  # D, angstrom
    coefficients: Floats  # (K, L, n) of cos(k pi d/D) for even l, of sin(k pi d/D) for odd l
    at_zero: Floats  # (n,) F_n0(0); the others are 0 there


def radial_series(name: SOAPBasisName, *, num_radial: int, l_max: int, cutoff: float, gaussian_width: float) -> RadialSeries:
    """The series of a basis that reaches up to `cutoff`, for Gaussians of this standard deviation, in angstrom."""
    functions = {"gto": gto_functions, "polynomial": polynomial_functions}[name]
    slowest = cutoff**2 / np.log(1e3) + 2.0 * gaussian_width**2  # squared decay length of the widest function of "gto"
    length = np.sqrt(TAIL * slowest) if name == "gto" else cutoff + np.sqrt(2.0 * TAIL) * gaussian_width
    # The Gaussian lets no wave number pass beyond sqrt(2 TAIL)/sigma.
    num_terms = int(np.ceil(np.sqrt(2.0 * TAIL) / gaussian_width * length / np.pi))
    num_samples = 2 * num_terms
    distance = length * np.arange(num_samples + 1) / num_samples  # (D,)
    values = functions(distance, num_radial=num_radial, l_max=l_max, cutoff=cutoff, gaussian_width=gaussian_width)
    phases = np.pi * np.outer(np.arange(num_terms + 1), np.arange(num_samples + 1)) / num_samples  # (K, D)
    coefficients = np.empty((num_terms + 1, l_max + 1, num_radial))
    ends = np.where(np.arange(num_samples + 1) % num_samples == 0, 0.5, 1.0)
    coefficients[:, 0::2] = np.einsum("kd,dln->kln", 2.0 / num_samples * ends * np.cos(phases), values[:, 0::2])
    coefficients[:, 1::2] = np.einsum("kd,dln->kln", 2.0 / num_samples * np.sin(phases), values[:, 1::2])
    coefficients[0] *= 0.5
    largest = np.abs(coefficients).max(axis=(1, 2))
    needed = np.flatnonzero(largest > NEGLIGIBLE * largest.max())[-1] + 1
    return RadialSeries(float(length), coefficients[:needed], values[0, 0])


def gto_functions(distance: Floats, *, num_radial: int, l_max: int, cutoff: float, gaussian_width: float) -> Floats:
    """F_nl(d), (D, L, n), of g_nl = sum_k beta_nk r^l exp(-alpha_kl r^2): a Gaussian times a Gaussian, in closed form."""
    sharpness = 0.5 / gaussian_width**2
    ends = np.linspace(1.0, cutoff, num_radial)  # where each function has come down to 1e-3
    values = np.empty((len(distance), l_max + 1, num_radial))
    for degree in range(l_max + 1):
        decay = -np.log(1e-3 / ends**degree) / ends**2  # (n,)
        power = degree + 1.5
        overlaps = 0.5 * gamma(power) * (decay[:, None] + decay) ** -power
        together = decay + sharpness
        primitive = (
            np.pi**1.5
            * (sharpness * distance[:, None]) ** degree
            * together**-power
            * np.exp(-sharpness * decay / together * distance[:, None] ** 2)
        )  # (D, n)
        values[:, degree] = primitive @ inverse_root(overlaps)
    return values


def polynomial_functions(distance: Floats, *, num_radial: int, l_max: int, cutoff: float, gaussian_width: float) -> Floats:
    """F_nl(d), (D, L, n), of g_n = sum_k beta_nk (r_c - r)^(k+2) up to r_c, k = 1, 2, ..: by quadrature."""
    order = np.arange(1, num_radial + 1)
    sums = order[:, None] + order
    overlaps = 2.0 * cutoff ** (7.0 + sums) / ((5 + sums) * (6 + sums) * (7 + sums))
    nodes, weights = np.polynomial.legendre.leggauss(NUM_POINTS)
    radius, weights = 0.5 * cutoff * (nodes + 1.0), 0.5 * cutoff * weights  # (Q,)
    functions = (cutoff - radius[:, None]) ** (order + 2) @ inverse_root(overlaps)  # (Q, n)
    weighted = (4.0 * np.pi * weights * radius**2)[:, None] * functions
    argument = np.maximum(np.outer(distance, radius) / gaussian_width**2, 1e-30)  # (D, Q)
    gaussian = np.exp(-0.5 * ((distance[:, None] - radius) / gaussian_width) ** 2) * np.sqrt(0.5 * np.pi / argument)
    return np.stack([gaussian * ive(degree + 0.5, argument) @ weighted for degree in range(l_max + 1)], axis=1)


def inverse_root(overlaps: Floats) -> Floats:
    """S^(-1/2) of a symmetric matrix that may be as good as singular: radial functions are much alike."""
    with mpmath.workdps(DIGITS):
        eigenvalues, vectors = mpmath.eigsy(mpmath.matrix(overlaps.tolist()))
        root = vectors * mpmath.diag([1 / mpmath.sqrt(value) for value in eigenvalues]) * vectors.T
        return np.array(root.tolist(), dtype=np.float64)
