"""Real spherical harmonics against e3nn's numbers, SciPy's complex ones, and their symmetries."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from modelforge.nn.equivariant.spherical_harmonics import SphericalHarmonics

EXACT = 1e-13


def unit_vectors(num: int, *, seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(num, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_order_signs_and_norms_are_those_of_e3nn(shared_data: Path) -> None:
    with np.load(shared_data / "golden" / "e3nn_conventions.npz") as golden:
        vectors, expected = torch.as_tensor(golden["sh_vectors"]), torch.as_tensor(golden["sh_component"])
    l_max = math.isqrt(expected.shape[1]) - 1
    assert l_max >= 4
    found = SphericalHarmonics(l_max)(vectors / vectors.norm(dim=1, keepdim=True))
    assert (found - expected).abs().max() < EXACT


def test_high_degrees_are_those_of_scipy() -> None:
    """Real combinations of complex harmonics, whose phase of Condon and Shortley is taken off, for the axes (z, x, y)."""
    vectors = unit_vectors(30)
    x, y, z = vectors[:, 2].numpy(), vectors[:, 0].numpy(), vectors[:, 1].numpy()
    found = SphericalHarmonics(9, normalization="integral")(vectors)
    for degree in range(10):
        for m in range(-degree, degree + 1):
            values = sph_harm_y(degree, abs(m), np.arccos(z), np.arctan2(y, x)) * (-1) ** m
            part = values.real if m >= 0 else values.imag
            expected = torch.as_tensor(part * (math.sqrt(2) if m else 1))
            assert (found[:, degree**2 + degree + m] - expected).abs().max() < 10 * EXACT


def test_they_are_polynomials_of_the_vector() -> None:
    vectors, factor = unit_vectors(5), 1.7
    one, longer = (SphericalHarmonics(4)(scale * vectors) for scale in (1.0, factor))
    powers = torch.cat([torch.full((2 * degree + 1,), factor**degree, dtype=torch.float64) for degree in range(5)])
    torch.testing.assert_close(longer, one * powers, rtol=1e-12, atol=1e-12)


def test_products_of_a_degree_depend_on_the_angle_alone() -> None:
    """The addition theorem: rotations mix the components of a degree and nothing else."""
    turn = torch.as_tensor(Rotation.random(random_state=1).as_matrix())
    one, other = unit_vectors(6, seed=1), unit_vectors(6, seed=2)
    harmonics = SphericalHarmonics(9)
    before, after = ((harmonics(a), harmonics(b)) for a, b in ((one, other), (one @ turn.T, other @ turn.T)))
    for degree in range(10):
        part = slice(degree**2, (degree + 1) ** 2)
        products = [(a[:, part] * b[:, part]).sum(dim=1) for a, b in (before, after)]
        torch.testing.assert_close(products[1], products[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("vectors", [torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.3, -0.2, 0.9]])])
def test_all_derivatives_exist_also_at_the_poles_and_at_zero(vectors: torch.Tensor) -> None:
    vectors = vectors.double().requires_grad_()
    harmonics = SphericalHarmonics(4)
    assert torch.autograd.gradcheck(harmonics, vectors)
    assert torch.autograd.gradgradcheck(harmonics, vectors)


def test_numbers_are_in_the_precision_of_the_vectors() -> None:
    single = SphericalHarmonics(6).float()(unit_vectors(4).float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), SphericalHarmonics(6)(unit_vectors(4)), rtol=1e-5, atol=1e-5)
