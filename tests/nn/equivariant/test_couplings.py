"""Couplings against e3nn's numbers, known products of vectors, and what defines them: they turn as they should."""

from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from modelforge.nn.equivariant.couplings import coupling
from modelforge.nn.equivariant.spherical_harmonics import SphericalHarmonics

EXACT = 1e-13


def triples(l_max: int) -> list[tuple[int, int, int]]:
    degrees = range(l_max + 1)
    return [(a, b, c) for a in degrees for b in degrees for c in range(abs(a - b), min(a + b, l_max) + 1)]


def turning_matrix(degree: int, turn: torch.Tensor) -> torch.Tensor:
    """The matrix that turns components of a degree, from harmonics of vectors before and after the turn."""
    vectors = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(degree))
    harmonics, block = SphericalHarmonics(degree), slice(degree**2, (degree + 1) ** 2)
    before, after = harmonics(vectors)[:, block], harmonics(vectors @ turn.T)[:, block]
    return torch.linalg.lstsq(before, after).solution.T


def test_orders_and_signs_are_those_of_e3nn(shared_data: Path) -> None:
    with np.load(shared_data / "golden" / "e3nn_conventions.npz") as golden:
        tensors = {key: golden[key] for key in golden if key.startswith("w3j/")}
    assert len(tensors) >= len(triples(4))
    for key, expected in tensors.items():
        l1, l2, l3 = (int(degree) for degree in key.removeprefix("w3j/").split("_"))
        assert np.abs(coupling(l1, l2, l3).numpy() - expected).max() < EXACT, key


def test_vectors_couple_to_their_scalar_and_vector_products() -> None:
    x, y = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scalar, vector = (torch.einsum("abc,a,b->c", coupling(1, 1, degree), x, y) for degree in (0, 1))
    torch.testing.assert_close(scalar, (x @ y)[None] / 3**0.5, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(vector, torch.linalg.cross(x, y) / 6**0.5, rtol=EXACT, atol=EXACT)


def test_those_of_two_degrees_are_an_orthonormal_basis_of_their_products() -> None:
    for l1, l2 in ((0, 3), (1, 1), (2, 3), (4, 2), (6, 6)):
        degrees = range(abs(l1 - l2), l1 + l2 + 1)
        basis = torch.cat([coupling(l1, l2, degree).flatten(0, 1) * (2 * degree + 1) ** 0.5 for degree in degrees], dim=1)
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), rtol=EXACT, atol=EXACT)


def test_coupled_components_turn_as_their_degree() -> None:
    turn = torch.as_tensor(Rotation.random(random_state=3).as_matrix())
    turns = [turning_matrix(degree, turn) for degree in range(7)]
    for l1, l2, l3 in [*triples(4), (6, 5, 2), (6, 6, 5), (5, 6, 6)]:
        before = coupling(l1, l2, l3)
        after = torch.einsum("abc,ai,bj,ck->ijk", before, turns[l1], turns[l2], turns[l3])
        assert (after - before).abs().max() < 100 * EXACT, (l1, l2, l3)
