"""Symmetry functions of ANI with their Jacobian written out, as products and sums of few and large tensors.

Of an edge of length d with direction u, and f = f_c(d); of a triple of edges, c = u_1 . u_2, m = (d_1 + d_2)/2, w = f_1 f_2:

    radial:   G_r = 1/4 exp(-eta (d - R_r)^2) f_c(d),       dG_r/dd = 1/4 exp(...) (f_c' - 2 eta (d - R_r) f_c)
    angular:  A_a B_t w,   A_a = exp(-eta' (m - R_a)^2),    A_a' = -2 eta' (m - R_a) A_a
                           B_t = 2 b^zeta,                  B_t' = zeta B_t b'/b
              b = (1 + k c cos q_t + s sin q_t)/2,          b' = k (cos q_t - (k c/s) sin q_t)/2,   s = sqrt(1 - (k c)^2)

and with r = d u: dd = u . dr, du = (dr - u dd)/d. Legend: E edges, M triples, R, A, T functions of distance, mean distance and
angle. What is computed of triples one by one has them in the last dimension, which is the quick order for it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modelforge.atoms.sums import Segments, at_rows, sum_over_segments

SMALLEST_SQUARE = 1e-20  # angstrom^2: of atoms in one place, whose distance has no derivative
COSINE_FACTOR = 0.95  # k: keeps theta from 0 and pi, where the angle has no derivative


@dataclass(frozen=True)
class SymmetryConstants:
    """Angstrom and 1/angstrom^2; shifts are in equal steps from the first one, to a step before the cutoff."""

    cutoff: float
    angular_cutoff: float
    first_shift: float
    num_radial: int
    radial_eta: float
    num_shells: int
    angular_eta: float
    num_angles: int
    zeta: float


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Which edges and triples there are, and which of an atom's functions each adds to."""

    num_atoms: int
    num_elements: int
    triples: Tensor  # (2, M)
    of_edges: Segments  # 2M rows of E edges
    by_element: Segments  # E rows
    by_pair: Segments  # M rows


@dataclass(frozen=True, eq=False)
class RadialSlopes:
    """Of the radial functions by the distances."""

    slopes: Tensor  # (E, R)
    by_element: Segments

    def pulled(self, by_values: Tensor) -> Tensor:
        """(N Z, R) -> (E,)."""
        return (at_rows(by_values, self.by_element) * self.slopes).sum(dim=1)

    def pushed(self, distances: Tensor) -> Tensor:
        """(E,) -> (N Z, R)."""
        return sum_over_segments(self.slopes * distances[:, None], self.by_element)


@dataclass(frozen=True, eq=False)
class AngularSlopes:
    """Of the angular functions by c, m and w."""

    of_distance: Tensor  # (A, M) A'
    of_angle: Tensor  # (T, M) B' w
    angle: Tensor  # (T, M) B
    distance_rows: Tensor  # (M, A T) A
    angle_rows: Tensor  # (M, A T) B w
    by_pair: Segments

    def pulled(self, by_values: Tensor) -> Tensor:
        """(N P, A T) -> (3, M)."""
        rows = at_rows(by_values, self.by_pair)
        spread_a, spread_t = _spread(self.of_distance, self.angle)
        by_angle = _product(spread_t, (rows * self.distance_rows).T)  # (T, M)
        by_distance = _product(spread_a, (rows * self.angle_rows).T)  # (A, M)
        of_factors = ((by_angle * self.of_angle), (by_distance * self.of_distance), (by_angle * self.angle))
        return torch.stack([of_factor.sum(dim=0) for of_factor in of_factors])

    def pushed(self, factors: Tensor) -> Tensor:
        """(3, M) -> (N P, A T)."""
        cosine, mean_distance, envelope = factors
        spread_a, spread_t = _spread(self.of_distance, self.angle)
        angle = torch.addcmul(self.of_angle * cosine, self.angle, envelope)  # (T, M)
        rows = self.distance_rows * _product(angle.T, spread_t)
        rows = torch.addcmul(rows, self.angle_rows, _product((self.of_distance * mean_distance).T, spread_a))
        return sum_over_segments(rows, self.by_pair)


@dataclass(frozen=True, eq=False)
class SymmetrySlopes:
    """The Jacobian of all symmetry functions by the edge vectors."""

    distance: Tensor  # (E,)
    direction: Tensor  # (E, 3)
    envelope_slope: Tensor  # (E,) f'
    edges: Tensor  # (2, M, 5) u, 1, f
    radial: RadialSlopes
    angular: AngularSlopes
    surroundings: Surroundings

    def pulled(self, by_values: Tensor) -> Tensor:
        """(N, Z R + P A T) -> (E, 3)."""
        num_radial = self.radial.slopes.shape[1]
        split = self.surroundings.num_elements * num_radial
        by_distance = self.radial.pulled(by_values[:, :split].reshape(-1, num_radial))
        by_factors = self.angular.pulled(by_values[:, split:].reshape(-1, self.angular.angle_rows.shape[1]))
        weights = _product(by_factors.T, _factors_of_edges(by_factors))  # (M, 5)
        of_edges = sum_over_segments((self.edges.flip(0) * weights).flatten(0, 1), self.surroundings.of_edges)  # (E, 5)
        by_direction = of_edges[:, :3] / self.distance[:, None]
        along = by_distance + of_edges[:, 3] + self.envelope_slope * of_edges[:, 4]
        along = along - (by_direction * self.direction).sum(dim=1)
        return torch.addcmul(by_direction, self.direction, along[:, None])

    def pushed(self, directions: Tensor) -> Tensor:
        """(E, 3) -> (N, Z R + P A T)."""
        distance = (directions * self.direction).sum(dim=1)  # (E,)
        direction = (directions - self.direction * distance[:, None]) / self.distance[:, None]
        of_edges = torch.cat([direction, distance[:, None], (self.envelope_slope * distance)[:, None]], dim=1)
        first, second = at_rows(of_edges, self.surroundings.of_edges).chunk(2)
        factors = torch.addcmul(self.edges[0] * second, self.edges[1], first)  # (M, 5)
        angular = self.angular.pushed(_product(_factors_of_edges(factors), factors.T))
        return _side_by_side(self.radial.pushed(distance), angular, self.surroundings)


def symmetry_functions(
    vectors: Tensor, surroundings: Surroundings, constants: SymmetryConstants
) -> tuple[Tensor, SymmetrySlopes]:
    """All functions of the edge vectors (E, 3), (N, Z R + P A T), and their Jacobian; autograd is to be off."""
    distance = vectors.square().sum(dim=1).clamp(min=SMALLEST_SQUARE).sqrt()
    direction = vectors / distance[:, None]
    envelope, envelope_slope = _cosine_cutoff(distance, constants.angular_cutoff)
    of_edges = torch.cat([direction, torch.ones_like(envelope)[:, None], envelope[:, None]], dim=1)  # (E, 5)
    edges = at_rows(of_edges, surroundings.of_edges).view(*surroundings.triples.shape, 5)  # (2, M, 5)
    cosine, _, envelopes = _product(_factors_of_edges(edges), (edges[0] * edges[1]).T)  # (M,)
    first, second = distance[surroundings.triples]
    radial, of_radial = _radial(distance, surroundings.by_element, constants)
    angular, of_angular = _angular(cosine, 0.5 * (first + second), envelopes, surroundings.by_pair, constants)
    slopes = SymmetrySlopes(distance, direction, envelope_slope, edges, of_radial, of_angular, surroundings)
    return _side_by_side(radial, angular, surroundings), slopes


def _radial(distance: Tensor, by_element: Segments, constants: SymmetryConstants) -> tuple[Tensor, RadialSlopes]:
    """Sums (N Z, R)."""
    envelope, envelope_slope = _cosine_cutoff(distance, constants.cutoff)
    shifts = _steps(constants.first_shift, constants.cutoff, constants.num_radial, distance)
    offset = distance[:, None] - shifts  # (E, R)
    gaussian = 0.25 * (-constants.radial_eta * offset.square()).exp()
    slopes = gaussian * (envelope_slope[:, None] - 2.0 * constants.radial_eta * offset * envelope[:, None])
    return sum_over_segments(gaussian * envelope[:, None], by_element), RadialSlopes(slopes, by_element)


def _angular(
    cosine: Tensor, mean_distance: Tensor, envelopes: Tensor, by_pair: Segments, constants: SymmetryConstants
) -> tuple[Tensor, AngularSlopes]:
    """Sums (N P, A T)."""
    of_shells, shell_slopes = _shells(mean_distance, constants)  # (A, M)
    of_angles, angle_slopes = _angles(cosine, constants)  # (T, M)
    spread_a, spread_t = _spread(of_shells, of_angles)
    distance_rows, angle_rows = _product(of_shells.T, spread_a), _product((of_angles * envelopes).T, spread_t)  # (M, A T)
    slopes = AngularSlopes(shell_slopes, angle_slopes * envelopes, of_angles, distance_rows, angle_rows, by_pair)
    return sum_over_segments(distance_rows * angle_rows, by_pair), slopes


def _shells(mean_distance: Tensor, constants: SymmetryConstants) -> tuple[Tensor, Tensor]:
    """A and A', (A, M)."""
    shifts = _steps(constants.first_shift, constants.angular_cutoff, constants.num_shells, mean_distance)
    offset = mean_distance - shifts[:, None]
    gaussian = (-constants.angular_eta * offset.square()).exp()
    return gaussian, (-2.0 * constants.angular_eta) * offset * gaussian


def _angles(cosine: Tensor, constants: SymmetryConstants) -> tuple[Tensor, Tensor]:
    """B and B', (T, M)."""
    angles = _steps(0.0, math.pi, constants.num_angles, cosine)[:, None] + 0.5 * math.pi / constants.num_angles
    half_cosine, half_sine = 0.5 * angles.cos(), 0.5 * angles.sin()
    cosine = COSINE_FACTOR * cosine
    sine = (1.0 - cosine.square()).sqrt()
    nearness = 0.5 + half_cosine * cosine + half_sine * sine
    power = 2.0 * (constants.zeta * nearness.log()).exp()
    slope = half_cosine - half_sine * (cosine / sine)
    return power, (COSINE_FACTOR * constants.zeta) * slope * (power / nearness)


def _cosine_cutoff(distance: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """f_c and f_c'."""
    rate = math.pi / cutoff
    inside, phase = distance < cutoff, rate * distance
    return torch.where(inside, 0.5 + 0.5 * phase.cos(), 0.0), torch.where(inside, (-0.5 * rate) * phase.sin(), 0.0)


def _steps(begin: float, end: float, num: int, like: Tensor) -> Tensor:
    """From the begin to a step before the end, (num,)."""
    return begin + torch.arange(num, dtype=like.dtype, device=like.device) * ((end - begin) / num)


def _spread(of_distance: Tensor, of_angle: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices of zeros and ones that repeat A and T values to A T of them: (A, A T), (T, A T).

    Products with them are several times as fast as broadcasting over a few numbers, and sums of those.
    """
    (num_a, num_t), like = (of_distance.shape[0], of_angle.shape[0]), of_angle
    of_a = torch.eye(num_a, dtype=like.dtype, device=like.device).repeat_interleave(num_t, dim=1)
    return of_a, torch.eye(num_t, dtype=like.dtype, device=like.device).repeat(1, num_a)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """In the precision of the factors, also under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def _side_by_side(radial: Tensor, angular: Tensor, surroundings: Surroundings) -> Tensor:
    """(N Z, R), (N P, A T) -> (N, Z R + P A T)."""
    return torch.cat([part.reshape(surroundings.num_atoms, -1) for part in (radial, angular)], dim=1)


def _factors_of_edges(like: Tensor) -> Tensor:
    """What c, m and w have of the products (u, 1, f) of two edges, or of their derivatives, (3, 5)."""
    rows = [[1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)
