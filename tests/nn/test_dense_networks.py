"""A dense network in parts is one with its inputs and outputs side by side. About 0.1 s."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import silu

from modelforge.nn.dense_networks import DenseNetwork, Projected, cheaper, scaled_product, value_of

INPUTS, OUTPUTS = (3, 4), (2, 5)


def side_by_side(network: DenseNetwork, x: Tensor) -> Tensor:
    """The same with one matrix a layer, divided by the root of its number of rows, times the gain behind a silu."""
    for place, layer in enumerate(network.layers):
        matrix = torch.cat([torch.cat(list(column)) for column in layer], dim=1)
        x = (2.0**0.5 * silu(x) if place else x) @ matrix / matrix.shape[0] ** 0.5
    return x


@pytest.mark.parametrize("hidden", [(), (6,), (6, 7)])
@pytest.mark.parametrize("first_is_projected", [False, True])
def test_parts_stand_side_by_side(hidden, first_is_projected):
    network = DenseNetwork(INPUTS, hidden, OUTPUTS).double()
    first = Projected(torch.randn(9, 5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64), 0.7)
    second = torch.randn(9, 4, dtype=torch.float64)
    expected = side_by_side(network, torch.cat([value_of(first), second], dim=1))
    parts = network([first if first_is_projected else value_of(first), second])
    torch.testing.assert_close(torch.cat([value_of(part) for part in parts], dim=1), expected)


def test_what_is_projected_from_fewer_features_stays_so():
    rows = torch.randn(9, 4)
    assert isinstance(cheaper(Projected(rows, torch.randn(4, 5), 1.0)), Projected)
    wide = Projected(rows, torch.randn(4, 3), 0.7)
    torch.testing.assert_close(cheaper(wide), 0.7 * rows @ wide.matrix)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_a_scaled_product_has_its_derivatives(check):
    left, right = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (3, 2)))
    assert check(lambda a, b: scaled_product(a, b, 0.7), (left, right))


def test_a_compiler_finds_no_memory_without_numbers_in_a_scaled_product():
    """It may multiply with zero what is not to be read, and NaN stays NaN."""
    traced = make_fx(lambda a, b: scaled_product(a, b, 0.7))(torch.ones(1, 3), torch.ones(3, 1))
    names = [str(node.target) for node in traced.graph.nodes]
    assert any("addmm" in name for name in names)
    assert not any("empty" in name for name in names)
