"""Environments and readings are the sums of their equations, with all derivatives. About 1 s."""

import torch
from made_structures import batch_of, cluster
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from modelforge.nn.equivariant.environments import edge_rows, environments, readings

L_MAX, NUM_CHANNELS = 2, 3
GRAPH = batch_of([cluster(4, (1, 6), seed=0), cluster(3, (1, 6), seed=1)], cutoff=3.0).graph
ROWS = edge_rows(GRAPH, l_max=L_MAX)
DEGREES = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_an_environment_is_the_sum_of_the_weighted_harmonics_of_its_edges():
    weights, harmonics = random(GRAPH.num_edges, L_MAX + 1, NUM_CHANNELS), random(GRAPH.num_edges, 9)
    per_edge = (weights[:, DEGREES] * harmonics[:, :, None]).transpose(0, 1)
    expected = torch.zeros(9, GRAPH.num_atoms, NUM_CHANNELS, dtype=torch.float64).index_add(1, GRAPH.receivers, per_edge)
    torch.testing.assert_close(environments(weights, harmonics, ROWS), expected)


def test_a_reading_sums_the_components_of_each_degree():
    harmonics, of_atoms = random(GRAPH.num_edges, 9), random(9, GRAPH.num_atoms, NUM_CHANNELS)
    products = harmonics[:, :, None] * of_atoms[:, GRAPH.receivers].transpose(0, 1)
    expected = torch.zeros(GRAPH.num_edges, L_MAX + 1, NUM_CHANNELS, dtype=torch.float64).index_add(1, DEGREES, products)
    torch.testing.assert_close(readings(harmonics, of_atoms, ROWS), expected)


def test_both_have_derivatives_of_first_and_second_order():
    weights, harmonics = random(GRAPH.num_edges, L_MAX + 1, NUM_CHANNELS), random(GRAPH.num_edges, 9)
    of_atoms = random(9, GRAPH.num_atoms, NUM_CHANNELS)
    for check in (gradcheck, gradgradcheck):
        assert check(lambda w, y: environments(w, y, ROWS), (weights, harmonics), fast_mode=True)
        assert check(lambda y, d: readings(y, d, ROWS), (harmonics, of_atoms), fast_mode=True)
