"""Sums over edges and atoms against plain loops, and their derivatives."""

from collections.abc import Callable

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from made_structures import batch_of, crystal
from torch import Tensor

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import (
    at_atoms,
    at_receivers,
    at_senders,
    sum_over_atoms,
    sum_over_edges,
    sum_over_sent_edges,
)

Sum = Callable[[Tensor, AtomicGraph], Tensor]


def graph_with_lonely_atoms() -> AtomicGraph:
    """Atoms without edges at the beginning, in the middle and at the end."""
    lonely = Atoms("H")
    return batch_of([lonely, molecule("H2O"), lonely, lonely, crystal(2, (1, 6), seed=1), lonely], cutoff=2.6).graph


GRAPH = graph_with_lonely_atoms()
SHAPES = [(), (4,), (3, 2)]
SUMS: dict[str, tuple[Sum, Callable[[AtomicGraph], Tensor], int]] = {
    "sum_over_edges": (sum_over_edges, lambda graph: graph.receivers, GRAPH.num_atoms),
    "sum_over_sent_edges": (sum_over_sent_edges, lambda graph: graph.senders, GRAPH.num_atoms),
    "sum_over_atoms": (sum_over_atoms, lambda graph: graph.structure_index, GRAPH.num_structures),
}
SELECTIONS: dict[str, tuple[Sum, Callable[[AtomicGraph], Tensor], int]] = {
    "at_receivers": (at_receivers, lambda graph: graph.receivers, GRAPH.num_atoms),
    "at_senders": (at_senders, lambda graph: graph.senders, GRAPH.num_atoms),
    "at_atoms": (at_atoms, lambda graph: graph.structure_index, GRAPH.num_structures),
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_that_of_a_loop(name: str, shape: tuple[int, ...]):
    function, owner_of, num_owners = SUMS[name]
    owner = owner_of(GRAPH)
    rows = random(len(owner), *shape)
    expected = torch.zeros(num_owners, *shape, dtype=torch.float64)
    for row, place in zip(rows, owner.tolist(), strict=True):
        expected[place] += row
    torch.testing.assert_close(function(rows, GRAPH), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(function(rows, GRAPH), torch.zeros_like(expected).index_add(0, owner, rows))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_is_that_of_a_loop(name: str, shape: tuple[int, ...]):
    function, owner_of, num_owners = SELECTIONS[name]
    values = random(num_owners, *shape)
    expected = torch.stack([values[place] for place in owner_of(GRAPH).tolist()])
    assert torch.equal(function(values, GRAPH), expected)


@pytest.mark.parametrize("name", [*SUMS, *SELECTIONS])
def test_first_and_second_derivatives_are_right(name: str):
    """Of the square, as the second derivative of a sum itself is zero."""
    function, owner_of, num_owners = {**SUMS, **SELECTIONS}[name]
    rows = random(num_owners if name in SELECTIONS else len(owner_of(GRAPH)), 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x**2, GRAPH), rows)
    assert torch.autograd.gradgradcheck(lambda x: function(x**2, GRAPH), rows)


def test_a_view_and_a_transposed_tensor_sum_up_alike():
    rows = random(5, GRAPH.num_edges)
    assert torch.equal(sum_over_edges(rows.T, GRAPH), sum_over_edges(rows.T.contiguous(), GRAPH))


def test_sums_without_edges_are_zeros_that_can_be_differentiated():
    graph = batch_of([Atoms("H"), Atoms("O")], cutoff=2.0).graph
    rows = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    sums = sum_over_edges(rows, graph)
    assert torch.equal(sums, torch.zeros(2, 3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(sums.square().sum(), rows)
    assert gradient.shape == (0, 3)
    assert at_senders(random(2, 3), graph).shape == (0, 3)
