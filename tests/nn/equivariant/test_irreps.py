"""Irreps: their order, what products consist of, and where components stand."""

import torch

from modelforge.nn.equivariant.irreps import Irrep, blocks, irreps_of_product, natural_irreps, num_components
from modelforge.nn.equivariant.spherical_harmonics import SphericalHarmonics


def test_they_sort_by_degree_and_the_odd_one_first() -> None:
    irreps = [Irrep(degree, parity) for degree in (2, 0, 1) for parity in (1, -1)]
    assert [str(irrep) for irrep in sorted(irreps)] == ["0o", "0e", "1o", "1e", "2o", "2e"]


def test_a_product_has_as_many_components_as_pairs_of_components() -> None:
    for left in (Irrep(degree, parity) for degree in range(5) for parity in (1, -1)):
        for right in (Irrep(degree, parity) for degree in range(5) for parity in (1, -1)):
            product = irreps_of_product(left, right)
            assert num_components(product) == left.dimension * right.dimension
            assert {irrep.parity for irrep in product} == {left.parity * right.parity}


def test_natural_irreps_are_those_of_the_harmonics() -> None:
    vectors = torch.tensor([[0.3, -1.2, 0.7]], dtype=torch.float64)
    one, inverted = SphericalHarmonics(4)(vectors)[0], SphericalHarmonics(4)(-vectors)[0]
    irreps = natural_irreps(4)
    assert num_components(irreps) == one.shape[0]
    for irrep, block in zip(irreps, blocks(irreps), strict=True):
        assert one[block].shape == (irrep.dimension,)
        torch.testing.assert_close(inverted[block], irrep.parity * one[block])
