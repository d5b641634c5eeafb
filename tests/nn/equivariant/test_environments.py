"""Environments and readings are the sums of their equations, with all derivatives. About 1 s."""

import torch
from made_structures import batch_of, cluster
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from modelforge.nn.dense_networks import Projected
from modelforge.nn.equivariant.environments import edge_rows, environments, environments_of_projected, readings

L_MAX, NUM_CHANNELS = 2, 3
GRAPH = batch_of([cluster(4, (1, 6), seed=0), cluster(3, (1, 6), seed=1)], cutoff=3.0).graph
ROWS = edge_rows(GRAPH, l_max=L_MAX)
SHARED_ROWS = edge_rows(GRAPH, l_max=L_MAX, by_degree=False)
DEGREES = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_an_environment_is_the_sum_of_the_weighted_harmonics_of_its_edges():
    weights, harmonics = random(GRAPH.num_edges, L_MAX + 1, NUM_CHANNELS), random(GRAPH.num_edges, 9)
    per_edge = (weights[:, DEGREES] * harmonics[:, :, None]).transpose(0, 1)
    expected = torch.zeros(9, GRAPH.num_atoms, NUM_CHANNELS, dtype=torch.float64).index_add(1, GRAPH.receivers, per_edge)
    torch.testing.assert_close(environments(weights, harmonics, ROWS), expected)


def test_a_matrix_that_comes_after_the_sum_gives_the_same_environment_and_derivatives():
    hidden, matrix, harmonics = random(GRAPH.num_edges, 5), random(5, (L_MAX + 1) * NUM_CHANNELS), random(GRAPH.num_edges, 9)
    expected = environments((0.7 * hidden @ matrix).view(-1, L_MAX + 1, NUM_CHANNELS), harmonics, ROWS)
    found = environments_of_projected(Projected(hidden, matrix, 0.7), harmonics, SHARED_ROWS)
    torch.testing.assert_close(found, expected)
    for check in (gradcheck, gradgradcheck):
        assert check(
            lambda h, m, y: environments_of_projected(Projected(h, m, 0.7), y, SHARED_ROWS),
            (hidden, matrix, harmonics),
            fast_mode=True,
        )


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
