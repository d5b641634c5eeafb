"""Sums over neighbours, filtered and directed, against plain loops over edges, and their derivatives of two orders."""

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from made_structures import batch_of, crystal
from torch import Tensor

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.neighbours.directed_sums import directed_sum
from modelforge.nn.neighbours.filtered_sums import filtered_sum
from modelforge.nn.neighbours.neighbourhood import neighbourhood_of
from modelforge.nn.neighbours.pairs import pairs_of

NUM_FEATURES = 2


def graph_of(structures: list[Atoms]) -> AtomicGraph:
    return batch_of(structures, cutoff=2.0).graph


GRAPH = graph_of([Atoms("H"), molecule("H2O"), Atoms("H"), crystal(2, (1, 6), seed=1)])
PAIRS = pairs_of(GRAPH.reverse_edge)
NEAR = neighbourhood_of(GRAPH, PAIRS)
NUM_PAIRS = GRAPH.num_edges // 2


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


FILTERS = random(NUM_PAIRS, NUM_FEATURES, seed=0)
DIRECTIONS = random(NUM_PAIRS, 3, seed=1)
SCALARS = random(GRAPH.num_atoms, NUM_FEATURES, seed=2)
VECTORS = random(3, GRAPH.num_atoms, NUM_FEATURES, seed=3)


def filtered(filters: Tensor, x: Tensor) -> Tensor:
    return filtered_sum(filters, x, NEAR)


def directed(directions: Tensor, filters: Tensor, x: Tensor) -> Tensor:
    return directed_sum(directions, filters, x, NEAR)


def filtered_by_a_loop(filters: Tensor, x: Tensor) -> Tensor:
    rows: list[list[Tensor]] = [[torch.zeros_like(x[:, 0])] for _ in range(GRAPH.num_atoms)]
    for receiver, sender, pair in zip(*GRAPH.edge_index.tolist(), PAIRS.of_edge.tolist(), strict=True):
        rows[receiver].append(filters[pair] * x[:, sender])
    return torch.stack([sum(row) for row in rows], dim=1)


def directed_by_a_loop(directions: Tensor, filters: Tensor, x: Tensor) -> Tensor:
    rows: list[list[Tensor]] = [[torch.zeros(3, NUM_FEATURES, dtype=x.dtype)] for _ in range(GRAPH.num_atoms)]
    edges = zip(*GRAPH.edge_index.tolist(), PAIRS.of_edge.tolist(), strict=True)
    for edge, (receiver, sender, pair) in enumerate(edges):
        direction = directions[pair] if PAIRS.first[pair] == edge else -directions[pair]
        rows[receiver].append(direction[:, None] * (filters[pair] * x[sender]))
    return torch.stack([sum(row) for row in rows], dim=1)


CASES = {
    "filtered": (filtered, filtered_by_a_loop, (FILTERS, VECTORS)),
    "directed": (directed, directed_by_a_loop, (DIRECTIONS, FILTERS, SCALARS)),
}


@pytest.mark.parametrize("name", CASES)
def test_sums_are_those_of_a_loop(name: str):
    function, loop, inputs = CASES[name]
    torch.testing.assert_close(function(*inputs), loop(*inputs), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_are_those_of_a_loop(name: str):
    results = []
    function, loop, inputs = CASES[name]
    for compute in (function, loop):
        value = compute(*inputs)
        first = torch.autograd.grad((value * random(*value.shape, seed=4)).pow(2).sum(), inputs, create_graph=True)
        scalar = sum((slope * random(*slope.shape, seed=5)).pow(3).sum() for slope in first)
        results.append([*first, *torch.autograd.grad(scalar, inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_third_derivatives_are_those_of_finite_differences(name: str):
    function, _, inputs = CASES[name]

    def slopes(*changed: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*changed).pow(3).sum(), changed, create_graph=True)

    assert torch.autograd.gradgradcheck(slopes, inputs, fast_mode=True)


def test_a_direction_is_not_differentiated_twice_for_the_gradients_of_weights(monkeypatch: pytest.MonkeyPatch):
    num_turns = 0

    def counted(per_edge: Tensor, vectors: Tensor, _near: object) -> Tensor:
        nonlocal num_turns
        num_turns += 1
        return torch.zeros(per_edge.shape[0], vectors.shape[0], dtype=per_edge.dtype)

    monkeypatch.setattr("modelforge.nn.neighbours.directed_sums.products_with_received", counted)
    directions = DIRECTIONS * 1.0
    value = directed(directions, FILTERS, SCALARS)
    by_directions, by_filters = torch.autograd.grad(value.pow(2).sum(), (directions, FILTERS), create_graph=True)
    loss = by_directions.pow(2).sum() + by_filters.pow(2).sum()
    torch.autograd.grad(loss, (FILTERS, SCALARS))
    assert num_turns == 1


def test_atoms_without_edges_receive_zeros_that_can_be_differentiated():
    graph = graph_of([Atoms("H"), Atoms("O")])
    near = neighbourhood_of(graph, pairs_of(graph.reverse_edge))
    scalars, vectors = random(2, NUM_FEATURES, seed=0), random(3, 2, NUM_FEATURES, seed=1)
    filters, directions = random(0, NUM_FEATURES, seed=2), random(0, 3, seed=3)
    total = directed_sum(directions, filters, scalars, near) + filtered_sum(filters, vectors, near)
    slopes = torch.autograd.grad(total.pow(2).sum(), (scalars, vectors, filters, directions))
    assert total.tolist() == torch.zeros(3, 2, NUM_FEATURES).tolist()
    assert [slope.shape for slope in slopes] == [(2, NUM_FEATURES), (3, 2, NUM_FEATURES), (0, NUM_FEATURES), (0, 3)]
