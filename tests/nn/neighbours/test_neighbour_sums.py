"""Sums over neighbours with filters of pairs: against terms written out, in C and in torch, with derivatives. About 2 s."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from made_structures import batch_of, cluster
from torch import Tensor

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.native import library
from modelforge.nn.neighbours import native_sums
from modelforge.nn.neighbours.neighbour_sums import sum_over_neighbours
from modelforge.nn.neighbours.pairs import pairs_of

PARTS = (1, 3, 2)
FEATURES = 5
EXACT = 1e-13
Sum = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def graph() -> AtomicGraph:
    return batch_of([cluster(6, (1, 6, 8), seed=1), cluster(1, (1,), seed=2), cluster(4, (1, 6), seed=3)], cutoff=3.0).graph


@pytest.fixture(params=["C", "torch"])
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(library.SWITCH, "1" if request.param == "C" else "0")
    if request.param == "C" and not native_sums.is_native(torch.empty(1, sum(PARTS), FEATURES, dtype=torch.float64)):
        pytest.skip("there is no C compiler here")
    return request.param


def inputs_for(graph: AtomicGraph) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(graph.num_edges // 2, len(PARTS), FEATURES), (graph.num_atoms, sum(PARTS), FEATURES)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


def ours(graph: AtomicGraph) -> Sum:
    pairs = pairs_of(graph.reverse_edge)
    return lambda filters, x: sum_over_neighbours(filters, x, pairs, graph, parts=PARTS)


def written_out(graph: AtomicGraph) -> Sum:
    """The definition: a term for each edge, added to its receiver."""
    pairs = pairs_of(graph.reverse_edge)
    part = torch.tensor([number for number, width in enumerate(PARTS) for _ in range(width)])

    def total(filters: Tensor, x: Tensor) -> Tensor:
        terms = filters[pairs.of_edge][:, part] * x[graph.senders]
        return torch.zeros_like(x).index_add(0, graph.receivers, terms)

    return total


def derivatives(total: Sum, inputs: list[Tensor], *, order: int) -> list[Tensor]:
    loss = (total(*inputs) ** 3).sum()
    found: list[Tensor] = []
    for _ in range(order):
        gradients = torch.autograd.grad(loss, inputs, create_graph=True)
        found += gradients
        loss = torch.stack([(gradient**2).sum() for gradient in gradients]).sum()
    return found


@pytest.mark.usefixtures("language")
def test_values_and_derivatives_are_those_of_the_definition(graph: AtomicGraph) -> None:
    inputs = inputs_for(graph)
    torch.testing.assert_close(ours(graph)(*inputs), written_out(graph)(*inputs), rtol=EXACT, atol=EXACT)
    one, other = (derivatives(total, inputs, order=3) for total in (ours(graph), written_out(graph)))
    for got, want in zip(one, other, strict=True):
        assert (got - want).abs().max() < EXACT * want.abs().max()


@pytest.mark.usefixtures("language")
def test_the_number_of_threads_changes_no_bit(graph: AtomicGraph) -> None:
    inputs, before, results = inputs_for(graph), torch.get_num_threads(), []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            results.append(derivatives(ours(graph), inputs, order=2))
    finally:
        torch.set_num_threads(before)
    for one, other in pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.usefixtures("language")
def test_inputs_need_not_be_contiguous(graph: AtomicGraph) -> None:
    filters, x = (tensor.detach() for tensor in inputs_for(graph))
    strange = [tensor.transpose(0, 2).contiguous().transpose(0, 2) for tensor in (filters, x)]
    assert torch.equal(ours(graph)(*strange), ours(graph)(filters, x))


@pytest.mark.usefixtures("language")
def test_atoms_without_edges_get_zeros() -> None:
    alone = batch_of([cluster(1, (1,), seed=1), cluster(1, (6,), seed=2)], cutoff=3.0).graph
    assert not ours(alone)(*inputs_for(alone)).any()
