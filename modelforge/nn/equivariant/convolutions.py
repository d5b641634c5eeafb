"""Tensor-product convolutions: each atom sums what its neighbours' features and the harmonics of the edges couple to.

    m_i^{o} = sum_j w_ij^p (h_j^{s} x Y_ij^{l})^{o}   for each path p = (s, l, o):  component k is
              sqrt(2 l_o + 1) sum_ab C_abk h_ja Y_ijb, channel by channel

with Clebsch-Gordan coefficients C of norm 1 and weights w of the distance, for each path and channel (the product `uvu` of
e3nn). The coefficients are summed with the harmonics of each edge, which are the same for all channels; the rest is left to
`edge_products.py`. Results come with the channels of all paths to an irrep side by side, as linear layers want them.

N atoms, E edges, Q pairs of atoms, P paths, C channels, B components of the harmonics.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.autograd import is_wanted
from modelforge.nn.equivariant.couplings import coupling
from modelforge.nn.equivariant.edge_layout import Block, Layout
from modelforge.nn.equivariant.edge_products import edge_tables, numbers_of, pull, push
from modelforge.nn.equivariant.irreps import Irrep, irreps_of_product, natural_irrep
from modelforge.nn.equivariant.joined_rows import joined, parted
from modelforge.nn.neighbours.pairs import Pairs


class Path(NamedTuple):
    """An irrep of the features, a degree of the harmonics, and the irrep they couple to."""

    source: Irrep
    degree: int
    target: Irrep


def paths_between(sources: Sequence[Irrep], targets: Collection[Irrep], *, l_max: int) -> list[Path]:
    """All that there are, by source, target, degree."""
    return [
        Path(source, degree, target)
        for source in sources
        for target in sorted(targets)
        for degree in range(l_max + 1)
        if target in irreps_of_product(source, natural_irrep(degree))
    ]


class EdgeTables:
    """The tables of all convolutions on the edges of a graph; those of the same shape share theirs."""

    def __init__(self, graph: AtomicGraph, pairs: Pairs) -> None:
        self.graph, self.pairs = graph, pairs
        self._known: dict[tuple[Layout, int], list[Tensor]] = {}

    def of(self, layout: Layout, weights: Tensor) -> list[Tensor]:
        """For a convolution with such weights, (Q, P, C)."""
        key = (layout, weights.shape[2])
        if key not in self._known:
            self._known[key] = edge_tables(self.graph, self.pairs, weights.detach(), layout)
        return self._known[key]


class Convolution(nn.Module):
    """The sum of the module's docstring, over all paths from some irreps to others by harmonics of degrees 0 to l_max."""

    coefficients: Tensor

    def __init__(self, sources: Sequence[Irrep], targets: Collection[Irrep], *, l_max: int) -> None:
        super().__init__()
        self.paths = paths_between(sources, targets, l_max=l_max)
        self.sources = [source for source in sources if any(path.source == source for path in self.paths)]
        self.targets = [target for target in sorted(targets) if any(path.target == target for path in self.paths)]
        blocks = [(source, list(paths)) for source, paths in groupby(self.paths, key=lambda path: path.source)]
        self.layout = Layout(
            tuple(
                Block(
                    source.dimension,
                    tuple(path.target.dimension for path in paths),
                    tuple(self.targets.index(path.target) for path in paths),
                )
                for source, paths in blocks
            )
        )
        tables = [_coefficients(paths, l_max=l_max) for _, paths in blocks]
        self.register_buffer("coefficients", torch.cat(tables).T.contiguous(), persistent=False)

    def num_paths_to(self, target: Irrep) -> int:
        """How many paths there are to an irrep."""
        return sum(path.target == target for path in self.paths)

    def forward(
        self, features: Mapping[Irrep, Tensor], weights: Tensor, harmonics: Tensor, tables: EdgeTables
    ) -> dict[Irrep, Tensor]:
        """Features (2l+1, N, C), weights (Q, P C), harmonics (E, B) -> (2l+1, N, P_target C) of each target."""
        dtype = harmonics.dtype  # also under autocast: what follows are geometry and sums
        of_pairs = torch.unflatten(weights.to(dtype), 1, (len(self.paths), -1))  # (Q, P, C)
        together = joined([features[source] for source in self.sources]).to(dtype)  # (components, N, C)
        with torch.autocast(harmonics.device.type, enabled=False):
            numbers = harmonics @ self.coefficients.to(dtype)  # (E, T)
        arguments = (tables.of(self.layout, of_pairs), self.layout)
        sums = _Push.apply(of_pairs, together, numbers, *arguments)  # type: ignore[no-untyped-call]
        num_atoms = together.shape[1]
        parts = parted(sums, [width * paths * num_atoms for width, paths in self.layout.results])
        return {target: part.view(target.dimension, num_atoms, -1) for target, part in zip(self.targets, parts, strict=True)}


def _coefficients(paths: Sequence[Path], *, l_max: int) -> Tensor:
    """sqrt(2 l_o + 1) C_abk of the paths from one irrep, (A K, B): components of the features, of the results."""
    num_harmonics = (l_max + 1) ** 2
    blocks = []
    for source, degree, target in paths:
        block = torch.zeros(source.dimension, target.dimension, num_harmonics, dtype=torch.float64)
        table = coupling(source.degree, degree, target.degree).transpose(1, 2)
        block[:, :, degree**2 : (degree + 1) ** 2] = target.dimension**0.5 * table
        blocks.append(block)
    return torch.cat(blocks, dim=1).flatten(0, 1)


class _Push(torch.autograd.Function):
    """`push` of weights, features and numbers."""

    @staticmethod
    def forward(ctx: FunctionCtx, weights: Tensor, features: Tensor, numbers: Tensor, *edges: Any) -> Tensor:
        ctx.save_for_backward(weights, features, numbers)
        ctx.edges = edges  # type: ignore[attr-defined]
        return push([weights], [features], numbers, *edges)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weights, features, numbers), edges = ctx.saved_tensors, ctx.edges  # type: ignore[attr-defined]
        by_weights, by_features = _pulled(ctx, weights, features, numbers, gradients[0], edges)
        by_numbers = _Numbers.apply(weights, features, gradients[0], *edges) if is_wanted(ctx, 2) else None  # type: ignore[no-untyped-call]
        return by_weights, by_features, by_numbers, None, None


class _Pull(torch.autograd.Function):
    """`pull` of numbers and results, by weights and by features as far as they are wanted."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        weights: Tensor,
        features: Tensor,
        numbers: Tensor,
        results: Tensor,
        wanted: tuple[bool, bool],
        *edges: Any,
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(weights, features, numbers, results)
        ctx.edges = edges  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)  # None for what nothing depends on
        return pull(weights if wanted[1] else None, features if wanted[0] else None, numbers, results, *edges)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None and gradients[1] is None:
            return (None,) * 7
        (weights, features, numbers, results), edges = ctx.saved_tensors, ctx.edges  # type: ignore[attr-defined]
        # What comes for the gradient by weights stands in the place of weights, and so with features.
        by_weights, by_features = _pulled(ctx, gradients[0], gradients[1], numbers, results, edges)
        pairs = [(gradients[0], features), (weights, gradients[1])]
        parts = [(w, h) for w, h in pairs if w is not None and h is not None]
        by_results = _pushed(parts, numbers, edges) if is_wanted(ctx, 3) else None
        by_numbers = None
        if is_wanted(ctx, 2):
            terms = [_Numbers.apply(w, h, results, *edges) for w, h in parts]  # type: ignore[no-untyped-call]
            by_numbers = torch.stack(terms).sum(dim=0)
        return by_weights, by_features, by_numbers, by_results, None, None, None


class _Numbers(torch.autograd.Function):
    """`numbers_of` weights, features and results."""

    @staticmethod
    def forward(ctx: FunctionCtx, weights: Tensor, features: Tensor, results: Tensor, *edges: Any) -> Tensor:
        ctx.save_for_backward(weights, features, results)
        ctx.edges = edges  # type: ignore[attr-defined]
        return numbers_of(weights, features, results, *edges)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weights, features, results), edges = ctx.saved_tensors, ctx.edges  # type: ignore[attr-defined]
        by_weights, by_features = _pulled(ctx, weights, features, gradients[0], results, edges)
        by_results = _pushed([(weights, features)], gradients[0], edges) if is_wanted(ctx, 2) else None
        return by_weights, by_features, by_results, None, None


def _pulled(
    ctx: Any, weights: Tensor | None, features: Tensor | None, numbers: Tensor, results: Tensor, edges: tuple[Any, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by the first two inputs of a function, as far as they are wanted and there is what they need."""
    wanted = (is_wanted(ctx, 0) and features is not None, is_wanted(ctx, 1) and weights is not None)
    if not any(wanted):
        return None, None
    nothing = numbers.new_empty(0)  # in the place of None: only tensors count among the inputs
    given = [nothing if tensor is None else tensor for tensor in (weights, features)]
    found = _Pull.apply(*given, numbers, results, wanted, *edges)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor | None, Tensor | None], found)


def _pushed(parts: Sequence[tuple[Tensor, Tensor]], numbers: Tensor, edges: tuple[Any, ...]) -> Tensor:
    """The sum of the pushes of weights and features: one of all where nothing is differentiated any more."""
    if torch.is_grad_enabled():
        sums = [_Push.apply(w, h, numbers, *edges) for w, h in parts]  # type: ignore[no-untyped-call]
        return torch.stack(sums).sum(dim=0)
    return push([w for w, _ in parts], [h for _, h in parts], numbers, *edges)
