"""Convolutions against sums written out with einsum: values and derivatives up to the third, in C and in torch. About 3 s."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from made_structures import batch_of, cluster
from torch import Tensor
from torch.autograd.function import FunctionCtx

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.equivariant.convolutions import Convolution, EdgeTables
from modelforge.nn.equivariant.couplings import coupling
from modelforge.nn.equivariant.edge_layout import layout_of
from modelforge.nn.equivariant.irreps import Irrep
from modelforge.nn.equivariant.native_edges import library_for
from modelforge.nn.native import library
from modelforge.nn.neighbours.pairs import Pairs, pairs_of

EXACT = 1e-12
L_MAX, CHANNELS = 2, 3
SOURCES = [Irrep(0, 1), Irrep(1, -1), Irrep(1, 1)]
TARGETS = {Irrep(0, 1), Irrep(0, -1), Irrep(1, -1), Irrep(1, 1), Irrep(2, 1)}
Sums = Callable[..., tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def graph() -> AtomicGraph:
    return batch_of([cluster(6, (1, 6, 8), seed=1), cluster(1, (1,), seed=2), cluster(4, (1, 6), seed=3)], cutoff=3.0).graph


@pytest.fixture(params=[("C", 3), ("C", 16), ("torch", 3)], ids=["C", "C with several vectors at once", "torch"])
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name, channels = request.param
    monkeypatch.setenv(library.SWITCH, "1" if name == "C" else "0")
    monkeypatch.setitem(globals(), "CHANNELS", channels)
    if name == "C" and library_for(torch.empty(1, 1, CHANNELS, dtype=torch.float64)) is None:
        pytest.skip("there is no C compiler here")
    return name


def written_out(convolution: Convolution, graph: AtomicGraph, pairs: Pairs) -> Sums:
    """The definition: a term for each path and edge, added to its receiver."""

    def sums(weights: Tensor, harmonics: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        of_edges = weights.view(weights.shape[0], len(convolution.paths), CHANNELS)[pairs.of_edge]
        found: dict[Irrep, list[Tensor]] = {target: [] for target in convolution.targets}
        for place, (source, degree, target) in enumerate(convolution.paths):
            terms = torch.einsum(
                "abk,aec,eb,ec->kec",
                coupling(source.degree, degree, target.degree),
                features[SOURCES.index(source)][:, graph.senders],
                harmonics[:, degree**2 : (degree + 1) ** 2],
                of_edges[:, place],
            )
            empty = torch.zeros(target.dimension, graph.num_atoms, CHANNELS, dtype=terms.dtype)
            found[target].append(target.dimension**0.5 * empty.index_add(1, graph.receivers, terms))
        return tuple(torch.cat(pieces, dim=2) for pieces in found.values())

    return sums


def ours(convolution: Convolution, graph: AtomicGraph, pairs: Pairs) -> Sums:
    tables = EdgeTables(graph, pairs)

    def sums(weights: Tensor, harmonics: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        return tuple(convolution(dict(zip(SOURCES, features, strict=True)), weights, harmonics, tables).values())

    return sums


def inputs_for(convolution: Convolution, graph: AtomicGraph, pairs: Pairs) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(pairs.first), len(convolution.paths) * CHANNELS), (graph.num_edges, (L_MAX + 1) ** 2)]
    shapes += [(source.dimension, graph.num_atoms, CHANNELS) for source in SOURCES]
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


def derivatives(sums: Sums, inputs: Sequence[Tensor], *, order: int) -> list[Tensor]:
    """Of the sum of cubes by all inputs, then of the sum of squares of these, and so on."""
    loss = torch.stack([(result**3).sum() for result in sums(*inputs)]).sum()
    found: list[Tensor] = []
    for _ in range(order):
        gradients = torch.autograd.grad(loss, inputs, create_graph=True)
        found += gradients
        loss = torch.stack([(gradient**2).sum() for gradient in gradients]).sum()
    return found


@pytest.mark.usefixtures("language")
def test_values_and_derivatives_are_those_of_the_definition(graph: AtomicGraph) -> None:
    pairs = pairs_of(graph.reverse_edge)
    convolution = Convolution(SOURCES, TARGETS, l_max=L_MAX)
    inputs = inputs_for(convolution, graph, pairs)
    one, other = ours(convolution, graph, pairs), written_out(convolution, graph, pairs)
    assert {path.target for path in convolution.paths} == TARGETS
    for got, want in zip(one(*inputs), other(*inputs), strict=True):
        assert (got - want).abs().max() < EXACT * want.abs().max()
    for got, want in zip(derivatives(one, inputs, order=3), derivatives(other, inputs, order=3), strict=True):
        assert (got - want).abs().max() < EXACT * want.abs().max()


@pytest.mark.usefixtures("language")
def test_a_pass_by_some_inputs_gives_what_a_pass_by_all_gives(graph: AtomicGraph) -> None:
    """It leaves out what nobody asked for, and nothing else."""
    pairs = pairs_of(graph.reverse_edge)
    convolution = Convolution(SOURCES, TARGETS, l_max=L_MAX)
    leaves = inputs_for(convolution, graph, pairs)
    sums = ours(convolution, graph, pairs)

    def second(chosen: Sequence[Tensor]) -> tuple[Tensor, ...]:
        inputs = [leaf * 1.0 for leaf in leaves]
        energy = torch.stack([(result**2).sum() for result in sums(*inputs)]).sum()
        (force,) = torch.autograd.grad(energy, [leaves[1]], create_graph=True)
        return torch.autograd.grad((force**2).sum(), chosen)

    of_all = second(leaves)
    for place, leaf in enumerate(leaves):
        torch.testing.assert_close(second([leaf])[0], of_all[place], rtol=EXACT, atol=EXACT)


class _Cut(torch.autograd.Function):
    """The same numbers, on which nothing depends any more."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> None:  # noqa: ARG004
        return None


def test_slopes_on_which_nothing_depends_change_nothing(graph: AtomicGraph) -> None:
    pairs = pairs_of(graph.reverse_edge)
    convolution = Convolution(SOURCES, TARGETS, l_max=L_MAX)
    weights, *others = inputs_for(convolution, graph, pairs)
    energy = torch.stack([(result**2).sum() for result in ours(convolution, graph, pairs)(weights, *others)]).sum()
    (slopes,) = torch.autograd.grad(energy, weights, create_graph=True)
    cut: Tensor = _Cut.apply(slopes)  # type: ignore[no-untyped-call]
    assert not torch.autograd.grad(cut.sum(), others[0])[0].any()


@pytest.mark.usefixtures("language")
def test_the_number_of_threads_changes_no_bit(graph: AtomicGraph) -> None:
    pairs = pairs_of(graph.reverse_edge)
    convolution = Convolution(SOURCES, TARGETS, l_max=L_MAX)
    inputs = inputs_for(convolution, graph, pairs)
    before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            results.append(derivatives(ours(convolution, graph, pairs), inputs, order=2))
    finally:
        torch.set_num_threads(before)
    for one, other in pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_layout_is_read_from_its_text() -> None:
    convolution = Convolution(SOURCES, TARGETS, l_max=L_MAX)
    assert layout_of(str(convolution.layout)) == convolution.layout
