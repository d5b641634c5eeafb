"""What a Gaussian at distance d from the origin gives to the radial functions of SOAP, as a series in cosines and sines.

    F_nl(d) = 4 pi int r^2 g_nl(r) exp(-(r^2 + d^2) / (2 sigma^2)) i_l(r d/sigma^2) dr,  i_l: modified spherical Bessel function

with the radial functions g of DScribe 2.1 ("gto", "polynomial"). F is smooth, has the parity of l and comes to nothing at a
length D, so F_nl(d) = sum_k a_k cos(k pi d/D) for even l and sum_k a_k sin(k pi d/D) for odd l converges to the last digit, and
so do all derivatives. What makes the functions orthogonal is computed with more digits than float64 has, else it would depend
on the last one. L degrees, n radial functions, K terms, D distances, Q points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mpmath
import numpy as np
import numpy.typing as npt
from scipy.special import ive

SOAPBasisName = Literal["gto", "polynomial"]
Floats = npt.NDArray[np.float64]

NEGLIGIBLE = 1e-15  # relative, of terms of the series
NUM_POINTS, POINTS_PER_WIDTH = 200, 3  # of Gauss and Legendre: at least, and for each width of a narrow Gaussian
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
    values = np.empty((len(distance), l_max + 1, num_radial))
    for degree in range(l_max + 1):
        exact_decay, roots = gto_basis(degree, num_radial=num_radial, cutoff=cutoff)
        decay = np.array(exact_decay, dtype=np.float64)  # (n,)
        together = decay + sharpness
        primitive = (
            np.pi**1.5
            * (sharpness * distance[:, None]) ** degree
            * together ** -(degree + 1.5)
            * np.exp(-sharpness * decay / together * distance[:, None] ** 2)
        )  # (D, n)
        values[:, degree] = primitive @ as_floats(roots)
    return values


def gto_basis(degree: int, *, num_radial: int, cutoff: float) -> tuple[list[mpmath.mpf], mpmath.matrix]:
    """alpha (n,) and beta (n, n) of "gto" for a degree, exact."""
    with mpmath.workdps(DIGITS):
        step = (mpmath.mpf(cutoff) - 1) / max(num_radial - 1, 1)
        ends = [1 + k * step for k in range(num_radial)]  # where each function has come down to 1e-3
        decay = [-mpmath.log(end**-degree / 1000) / end**2 for end in ends]
        power = degree + mpmath.mpf(1.5)
        factor = mpmath.gamma(power) / 2
        overlaps = [[factor * (one + other) ** -power for other in decay] for one in decay]
        return decay, inverse_root(overlaps)


def polynomial_functions(distance: Floats, *, num_radial: int, l_max: int, cutoff: float, gaussian_width: float) -> Floats:
    """F_nl(d), (D, L, n), of g_n = sum_k beta_nk (r_c - r)^(k+2) up to r_c, k = 1, 2, ..: by quadrature."""
    num_points = max(NUM_POINTS, int(np.ceil(POINTS_PER_WIDTH * cutoff / gaussian_width)))
    nodes, weights = np.polynomial.legendre.leggauss(num_points)
    radius, weights = 0.5 * cutoff * (nodes + 1.0), 0.5 * cutoff * weights  # (Q,)
    functions = polynomials(radius, num_radial=num_radial, cutoff=cutoff)  # (Q, n)
    weighted = (4.0 * np.pi * weights * radius**2)[:, None] * functions
    argument = np.maximum(np.outer(distance, radius) / gaussian_width**2, 1e-30)  # (D, Q)
    gaussian = np.exp(-0.5 * ((distance[:, None] - radius) / gaussian_width) ** 2) * np.sqrt(0.5 * np.pi / argument)
    return np.stack([gaussian * ive(degree + 0.5, argument) @ weighted for degree in range(l_max + 1)], axis=1)


def polynomials(radius: Floats, *, num_radial: int, cutoff: float) -> Floats:
    """g_n(r) of "polynomial", (Q,) -> (Q, n)."""
    order = range(1, num_radial + 1)
    with mpmath.workdps(DIGITS):
        end = mpmath.mpf(cutoff)
        sums = [[i + j for j in order] for i in order]
        overlaps = [[2 * end ** (7 + k) / ((5 + k) * (6 + k) * (7 + k)) for k in row] for row in sums]
        powers = mpmath.matrix([[(end - r) ** (k + 2) for k in order] for r in radius.tolist()])
        return as_floats(powers * inverse_root(overlaps))


def inverse_root(overlaps: Sequence[Sequence[mpmath.mpf]]) -> mpmath.matrix:
    """S^(-1/2) of a nearly singular symmetric matrix, as radial functions are much alike; with the digits of `workdps`."""
    eigenvalues, vectors = mpmath.eigsy(mpmath.matrix(overlaps))
    return vectors * mpmath.diag([1 / mpmath.sqrt(value) for value in eigenvalues]) * vectors.T


def as_floats(matrix: mpmath.matrix) -> Floats:
    """A matrix, rounded."""
    return np.array(matrix.tolist(), dtype=np.float64)
