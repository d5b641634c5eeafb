"""What reads a product's result is read of what is multiplied, against the product written out. About 0.2 s."""

import pytest
import torch

from modelforge.nn.equivariant.channelwise_products import ChannelwiseProduct
from modelforge.nn.equivariant.couplings import coupling
from modelforge.nn.equivariant.irreps import Irrep, blocks, num_components
from modelforge.nn.native.library import SWITCH

SCALAR = Irrep(0, 1)
SOURCES = [Irrep(0, 1), Irrep(1, -1), Irrep(1, 1), Irrep(2, 1)]
TARGETS = [Irrep(0, 1), Irrep(1, 1), Irrep(1, -1), Irrep(2, -1)]
L_MAX, NUM_ATOMS, NUM_CHANNELS = 2, 5, 3


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("num_weights", [1, NUM_CHANNELS])
def test_a_result_read_directly_is_read_of_what_is_multiplied(num_weights, is_native, monkeypatch):
    if not is_native:
        monkeypatch.setenv(SWITCH, "0")
    product = ChannelwiseProduct(SOURCES, TARGETS, l_max=L_MAX, num_channels=num_weights).double()
    tensors = torch.randn(num_components(SOURCES), NUM_ATOMS, NUM_CHANNELS, dtype=torch.float64)
    environment = torch.randn((L_MAX + 1) ** 2, NUM_ATOMS, NUM_CHANNELS, dtype=torch.float64)
    of_sources, of_targets = dict(zip(SOURCES, blocks(SOURCES), strict=True)), dict(zip(TARGETS, blocks(TARGETS), strict=True))
    results = torch.zeros(num_components(TARGETS), NUM_ATOMS, NUM_CHANNELS, dtype=torch.float64)
    for weight, (source, degree, target) in zip(product.weights, product.paths, strict=True):
        part = environment[degree**2 : (degree + 1) ** 2]
        table = target.dimension**0.5 * coupling(source.degree, degree, target.degree)
        results[of_targets[target]] += weight * torch.einsum("abc,anu,bnu->cnu", table, tensors[of_sources[source]], part)
    reading = torch.randn_like(results)
    expected = (reading * results).sum(dim=0)
    torch.testing.assert_close((product.before(reading, environment) * tensors).sum(dim=0), expected)
    torch.testing.assert_close((product.scalar(environment) * tensors).sum(dim=0), results[0])
