"""Triples are all pairs of near edges of each atom, in order; and sums over them are those of plain loops."""

from itertools import combinations

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster, crystal

from modelforge.atoms.graph import AtomicGraph, Reach
from modelforge.atoms.sums import Segments, at_rows, elements_of_edges, sum_over_segments
from modelforge.atoms.triple_sums import edges_of_triples, element_pairs_of_triples
from modelforge.atoms.triples import find_triples

REACH = Reach(4.0, triples_cutoff=2.9)
ELEMENTS = (1, 6, 8)
SMALL_CELL = Atoms("OH", positions=[[0, 0, 0], [0.3, 0.4, 0.9]], cell=[[2.1, 0, 0], [0.7, 2.0, 0], [0.2, 0.5, 2.2]], pbc=True)
CASES = {
    "molecule": [cluster(9, ELEMENTS, seed=1)],
    "crystal": [crystal(6, ELEMENTS, seed=2)],
    "images of itself": [SMALL_CELL],
    "several": [Atoms("O"), cluster(5, ELEMENTS, seed=3), Atoms("HH", [[0, 0, 0], [0, 0, 0.7]]), SMALL_CELL, Atoms("C")],
    "none": [Atoms("O"), Atoms("HH", [[0, 0, 0], [0, 0, 0.7]])],
}


@pytest.fixture(params=CASES)
def graph(request) -> AtomicGraph:
    return batch_of(CASES[request.param], reach=REACH).graph


def expected_triples(graph: AtomicGraph) -> set[frozenset[int]]:
    near = torch.nonzero(graph.edge_vectors.norm(dim=1) < REACH.triples_cutoff)[:, 0].tolist()
    receivers = graph.receivers.tolist()
    return {frozenset(pair) for pair in combinations(near, 2) if receivers[pair[0]] == receivers[pair[1]]}


def test_each_pair_of_near_edges_of_an_atom_is_one_triple(graph: AtomicGraph):
    found = [frozenset(pair) for pair in graph.triples.T.tolist()]
    assert len(found) == len(set(found))
    assert set(found) == expected_triples(graph)


def test_the_cases_have_triples_with_two_images_of_one_atom():
    graph = batch_of([SMALL_CELL], reach=REACH).graph
    first, second = graph.senders[graph.triples]
    assert (first == second).any()
    assert (graph.senders == graph.receivers).any()


def test_triples_are_sorted_by_receiver_then_by_the_elements_of_the_senders(graph: AtomicGraph):
    first, second = graph.atomic_numbers[graph.senders[graph.triples]].tolist()
    receivers = graph.receivers[graph.triples[0]].tolist()
    keys = list(zip(receivers, first, second, strict=True))
    assert keys == sorted(keys)
    assert all(a <= b for a, b in zip(first, second, strict=True))


def test_edges_are_counted_from_the_first_of_the_atom():
    triples = find_triples(
        np.array([0, 3, 2]), np.array([8, 1, 6, 1, 1], dtype=np.uint8), np.array([1, 1, 1, 1, 0], dtype=bool)
    )
    assert triples.triples_of_atom.tolist() == [0, 3, 0]
    assert triples.edges.tolist() == [[1, 2], [1, 0], [2, 0]]


def test_a_graph_has_no_triples_unless_they_are_asked_for():
    assert batch_of(CASES["several"], cutoff=4.0).graph.triples.shape == (2, 0)


def column() -> torch.Tensor:
    places = torch.zeros(max(ELEMENTS) + 1, dtype=torch.long)
    places[list(ELEMENTS)] = torch.arange(len(ELEMENTS))
    return places


def segments_of(graph: AtomicGraph, name: str) -> tuple[Segments, list[int], int]:
    """Segments, the owner of each row by a loop, and the number of owners."""
    numbers, receivers, senders = (values.tolist() for values in (graph.atomic_numbers, graph.receivers, graph.senders))
    num = len(ELEMENTS)
    place = {number: position for position, number in enumerate(ELEMENTS)}
    if name == "edges":
        return edges_of_triples(graph), graph.triples.flatten().tolist(), graph.num_edges
    if name == "elements":
        owner = [receivers[e] * num + place[numbers[senders[e]]] for e in range(graph.num_edges)]
        return elements_of_edges(graph, column(), num_elements=num), owner, graph.num_atoms * num
    pairs = [(i, j) for i in range(num) for j in range(i, num)]
    owner = [
        receivers[a] * len(pairs) + pairs.index((place[numbers[senders[a]]], place[numbers[senders[b]]]))
        for a, b in graph.triples.T.tolist()
    ]
    return element_pairs_of_triples(graph, column(), num_elements=num), owner, graph.num_atoms * len(pairs)


@pytest.mark.parametrize("name", ["edges", "elements", "pairs"])
def test_sums_and_selections_are_those_of_loops(graph: AtomicGraph, name: str):
    segments, owner, num_owners = segments_of(graph, name)
    assert segments.owner.tolist() == owner
    rows = torch.randn(len(owner), 2, dtype=torch.float64)
    expected = torch.zeros(num_owners, 2, dtype=torch.float64)
    for row, of_row in zip(rows, owner, strict=True):
        expected[of_row] += row
    torch.testing.assert_close(sum_over_segments(rows, segments), expected, rtol=0, atol=1e-13)
    owners = torch.randn(num_owners, 2, dtype=torch.float64)
    assert torch.equal(at_rows(owners, segments), owners[owner])


@pytest.mark.parametrize("name", ["edges", "elements", "pairs"])
def test_sums_and_selections_can_be_differentiated_twice(name: str):
    segments, owner, num_owners = segments_of(batch_of(CASES["several"], reach=REACH).graph, name)

    def of_rows(rows: torch.Tensor) -> torch.Tensor:
        return sum_over_segments(rows**3, segments)

    def of_owners(owners: torch.Tensor) -> torch.Tensor:
        return at_rows(owners**3, segments)

    for function, num in ((of_rows, len(owner)), (of_owners, num_owners)):
        values = torch.randn(num, 1, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(function, values, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, values, fast_mode=True)
