"""Sums over neighbours of products of features, weights and numbers of the edges, and all derivatives of these sums.

    push:     m_ik = sum_j sum_a b_jak w_jp h_ja             (of each channel; component k of the results is one of path p)
    pull:     by w_jp:  sum_a h_ja y_jpa,    by h_ja:  sum_p w_jp y_jpa,    where  y_jpa = sum_{k of p} b_jak g_ik
    numbers:  by b_jak: sum of w_jp h_ja g_ik over the channels

Features h are of senders, results m and their gradients g of receivers, weights w and numbers b of edges. All are linear in
each of their factors, so that every derivative of a push, a pull or of numbers is one of these again, with other factors. They
are operators of their own, as products of sparse matrices are: `embedding_bag` reads rows of channels where they are and writes
nothing but sums; only w h and y have the size of edges times components, and nobody keeps them.

N atoms, E edges, Q pairs of atoms, C channels; A components of the features, P paths, K components of the results, R products
w h, T entries b. Weights are the same for both directions of an edge. Shapes: features (A, N, C), weights (Q, P, C), numbers
(E, T), results (K N, C). Where there is a compiler, `edge_products.c` does it on the CPU. The layout (`edge_layout.py`) says
what belongs to what.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.equivariant import native_edges
from modelforge.nn.equivariant.edge_layout import Layout, Tables, layout_of
from modelforge.nn.neighbours.pairs import Pairs

SENDERS, SENT, SENT_STARTS, PRODUCTS, STARTS, RESULTS, TERMS, TERM_STARTS, ORDER, OWNERS, OWNER_STARTS, PAIRS, *BOTH = range(14)

torch.library.define(
    "modelforge::edge_tables",
    "(Tensor receivers, Tensor senders, Tensor reverse_edge, Tensor first_edge, Tensor pair_of_edge, Tensor first_of_pair, "
    "Tensor second_of_pair, Tensor weights, str layout) -> Tensor[]",
)
torch.library.define(
    "modelforge::edge_push",
    "(Tensor[] weights, Tensor[] features, Tensor numbers, Tensor[] tables, str layout) -> Tensor",
)
torch.library.define(
    "modelforge::edge_pull",
    "(Tensor? weights, Tensor? features, Tensor numbers, Tensor results, Tensor[] tables, str layout) -> Tensor[]",
)
torch.library.define(
    "modelforge::edge_numbers",
    "(Tensor weights, Tensor features, Tensor results, Tensor[] tables, str layout) -> Tensor",
)


def edge_tables(graph: AtomicGraph, pairs: Pairs, weights: Tensor, layout: Layout) -> list[Tensor]:
    """What the others need to know of the edges.

    Rows of the sparse matrices of a layout, and where those of each sum begin, in the order of the names above; or less for
    native code, which `weights` are there to choose.
    """
    edges = (graph.receivers, graph.senders, graph.reverse_edge, graph.first_edge)
    of_pairs = (pairs.of_edge, pairs.first, pairs.second)
    found: list[Tensor] = torch.ops.modelforge.edge_tables(*edges, *of_pairs, weights, str(layout))
    return found


def push(
    weights: Sequence[Tensor], features: Sequence[Tensor], numbers: Tensor, tables: list[Tensor], layout: Layout
) -> Tensor:
    """Of the sum of the products w h of several weights and features; (K N, C)."""
    found: Tensor = torch.ops.modelforge.edge_push(list(weights), list(features), numbers, tables, str(layout))
    return found


def pull(
    weights: Tensor | None, features: Tensor | None, numbers: Tensor, results: Tensor, tables: list[Tensor], layout: Layout
) -> tuple[Tensor | None, Tensor | None]:
    """By weights, for these features; by features, for these weights; none where the other is not given."""
    found = torch.ops.modelforge.edge_pull(weights, features, numbers, results, tables, str(layout))
    return (None if features is None else found[0]), (None if weights is None else found[1])


def numbers_of(weights: Tensor, features: Tensor, results: Tensor, tables: list[Tensor], layout: Layout) -> Tensor:
    """By the numbers."""
    found: Tensor = torch.ops.modelforge.edge_numbers(weights, features, results, tables, str(layout))
    return found


@torch.library.impl("modelforge::edge_tables", "CompositeExplicitAutograd")
def _edge_tables(
    receivers: Tensor,
    senders: Tensor,
    reverse_edge: Tensor,
    first_edge: Tensor,
    pair_of_edge: Tensor,
    first_of_pair: Tensor,
    second_of_pair: Tensor,
    weights: Tensor,
    layout: str,
) -> list[Tensor]:
    of_pairs = [pair_of_edge.clone(), first_of_pair.clone(), second_of_pair.clone()]
    if native_edges.library_for(weights) is not None:
        return [first_edge.clone(), senders.clone(), reverse_edge.clone(), *of_pairs]
    shape, device, num_edges, num_atoms = layout_of(layout), receivers.device, len(receivers), len(first_edge)
    static = shape.on(device)
    edges, atoms = torch.arange(num_edges, device=device), torch.arange(num_atoms, device=device)
    components = torch.arange(sum(shape.dimensions), device=device)[:, None]
    entries = torch.arange(len(shape.entries), device=device)[:, None]
    results = (static.first_rows * num_atoms + static.offsets)[:, None] + static.strides[:, None] * receivers  # (T, E)
    order, owners = _by_product(torch.stack([entries * num_edges + edges, results]), static)
    return [
        (components * num_atoms + senders).flatten(),  # (A E,) features of the edges
        (components * num_edges + reverse_edge).flatten(),  # (A E,) the edges of each feature
        (components * num_edges + first_edge).flatten(),
        (static.product_of_entry[:, None] * num_edges + edges).flatten(),  # (T E,) products of the entries of each receiver
        (entries * num_edges + first_edge).flatten(),
        results.flatten(),  # (T E,) results that these go to
        *_terms(static, atoms),  # the sums of entries of each result, then where they begin
        order,  # (T E,) entries of each product
        owners,  # (T E,) and results of these
        (static.first_of_product[:, None] * num_edges + static.width_of_product[:, None] * edges).flatten(),
        *of_pairs,
    ]


def _by_product(both: Tensor, static: Tables) -> Tensor:
    """Sorted by product, then edge, then component of the result; (2, T, E) -> (2, T E)."""
    both = both[:, static.by_product]
    runs = [
        both[:, begin : begin + number * width].reshape(2, number, width, -1).transpose(2, 3).flatten(1)
        for begin, number, width in static.runs
    ]
    return torch.cat(runs, dim=1)


def _terms(static: Tables, atoms: Tensor) -> tuple[Tensor, Tensor]:
    terms, starts, begin = [], [], 0
    components = [torch.arange(target.width, device=atoms.device)[:, None] for target in static.targets]
    for target, component in zip(static.targets, components, strict=True):
        num_terms = target.entries.shape[1]
        terms.append((target.entries[:, None] * len(atoms) + atoms[:, None]).flatten())
        places = begin + num_terms * (component * len(atoms) + atoms)  # (2l+1, N)
        starts.append((places[:, :, None] + target.starts).flatten())
        begin = begin + target.width * num_terms * len(atoms)
    return torch.cat(terms), torch.cat(starts)


@torch.library.impl("modelforge::edge_push", "CompositeExplicitAutograd")
def _edge_push(weights: list[Tensor], features: list[Tensor], numbers: Tensor, tables: list[Tensor], layout: str) -> Tensor:
    if len(tables) == native_edges.NUM_TABLES:
        return native_edges.push(weights, features, numbers, tables, layout_of(layout))
    rows = _products(weights, features, tables, layout_of(layout))
    sums = _sums(rows, tables[PRODUCTS], tables[STARTS], numbers.T.flatten())  # (T N, C)
    return _sums(sums, tables[TERMS], tables[TERM_STARTS])


@torch.library.impl("modelforge::edge_pull", "CompositeExplicitAutograd")
def _edge_pull(
    weights: Tensor | None, features: Tensor | None, numbers: Tensor, results: Tensor, tables: list[Tensor], layout: str
) -> list[Tensor]:
    if len(tables) == native_edges.NUM_TABLES:
        return native_edges.pull(weights, features, numbers, results, tables, layout_of(layout))
    shape, channels = layout_of(layout), results.shape[1]
    y = _sums(results, tables[OWNERS], tables[OWNER_STARTS], numbers.T.flatten().index_select(0, tables[ORDER]))
    y = y.view(-1, numbers.shape[0], channels)  # (R, E, C)
    blocks = [y[part].view(-1, block.dimension, *y.shape[1:]) for part, block in zip(shape.products, shape.blocks, strict=True)]
    by_weights, by_features = numbers.new_empty(0), numbers.new_empty(0)
    if features is not None:
        parts = torch.split(features.flatten(0, 1).index_select(0, tables[SENDERS]).view(-1, *y.shape[1:]), shape.dimensions)
        sums = torch.cat([_sum_of_products(block.unbind(1), part.unbind()) for block, part in zip(blocks, parts, strict=True)])
        both = [sums.index_select(1, tables[place]) for place in BOTH]  # (P, Q, C)
        by_weights = (both[0] + both[1]).transpose(0, 1).contiguous()
    if weights is not None:
        parts = torch.split(_of_edges(weights, tables), shape.num_paths)
        sums = torch.cat([_sum_of_products(block.unbind(), part.unbind()) for block, part in zip(blocks, parts, strict=True)])
        by_features = _sums(sums.flatten(0, 1), tables[SENT], tables[SENT_STARTS]).view(sum(shape.dimensions), -1, channels)
    return [by_weights, by_features]


@torch.library.impl("modelforge::edge_numbers", "CompositeExplicitAutograd")
def _edge_numbers(weights: Tensor, features: Tensor, results: Tensor, tables: list[Tensor], layout: str) -> Tensor:
    if len(tables) == native_edges.NUM_TABLES:
        return native_edges.numbers_of(weights, features, results, tables, layout_of(layout))
    rows = _products([weights], [features], tables, layout_of(layout))
    options = (tables[PRODUCTS], tables[STARTS], tables[RESULTS], 0)
    found: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(results, rows, *options)
    return found.view(-1, len(tables[PAIRS])).T.contiguous()


def _of_edges(weights: Tensor, tables: list[Tensor]) -> Tensor:
    """(Q, P, C) -> (P, E, C)."""
    num_paths = weights.shape[1]
    rows = tables[PAIRS] * num_paths + torch.arange(num_paths, device=weights.device)[:, None]  # (P, E)
    return weights.flatten(0, 1).index_select(0, rows.flatten()).view(num_paths, -1, weights.shape[2])


def _products(weights: list[Tensor], features: list[Tensor], tables: list[Tensor], shape: Layout) -> Tensor:
    """Sum of w h over several weights (Q, P, C) and features (A, N, C); (R E, C)."""
    num_edges, channels = len(tables[PAIRS]), weights[0].shape[2]
    rows = weights[0].new_empty(shape.products[-1].stop, num_edges, channels)
    for number, (of_pairs, of_atoms) in enumerate(zip(weights, features, strict=True)):
        of_senders = of_atoms.flatten(0, 1).index_select(0, tables[SENDERS]).view(-1, num_edges, channels)
        parts = zip(
            shape.products,
            torch.split(_of_edges(of_pairs, tables), shape.num_paths),
            torch.split(of_senders, shape.dimensions),
            strict=True,
        )
        for part, w, h in parts:
            out = rows[part].view(w.shape[0], *h.shape)
            out.addcmul_(w[:, None], h) if number else torch.mul(w[:, None], h, out=out)
    return rows.flatten(0, 1)


def _sum_of_products(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """x_1 y_1 + x_2 y_2 + .. without the products in memory."""
    total = left[0] * right[0]
    for x, y in zip(left[1:], right[1:], strict=True):
        total.addcmul_(x, y)
    return total


def _sums(rows: Tensor, entries: Tensor, starts: Tensor, numbers: Tensor | None = None) -> Tensor:
    return functional.embedding_bag(entries, rows, starts, mode="sum", per_sample_weights=numbers)


@torch.library.register_fake("modelforge::edge_tables")  # type: ignore[untyped-decorator]
def _(
    receivers: Tensor,
    senders: Tensor,
    reverse_edge: Tensor,
    first_edge: Tensor,
    pair_of_edge: Tensor,
    first_of_pair: Tensor,
    second_of_pair: Tensor,
    weights: Tensor,
    layout: str,
) -> list[Tensor]:
    of_pairs = [torch.empty_like(table) for table in (pair_of_edge, first_of_pair, second_of_pair)]
    if native_edges.library_for(weights) is not None:
        return [*(torch.empty_like(table) for table in (first_edge, senders, reverse_edge)), *of_pairs]
    shape, num_edges, num_atoms = layout_of(layout), receivers.shape[0], first_edge.shape[0]
    features, entries, products = sum(shape.dimensions), len(shape.entries), shape.products[-1].stop
    of_edges = (features, features, 0, entries, 0, entries, 0, 0, entries, entries, products)
    of_atoms = (0, 0, features, 0, entries, 0, entries, shape.num_results, 0, 0, 0)
    sizes = [e * num_edges if e else n * num_atoms for e, n in zip(of_edges, of_atoms, strict=True)]
    return [*(receivers.new_empty(size) for size in sizes), *of_pairs]


@torch.library.register_fake("modelforge::edge_push")  # type: ignore[untyped-decorator]
def _(weights: list[Tensor], features: list[Tensor], numbers: Tensor, tables: list[Tensor], layout: str) -> Tensor:  # noqa: ARG001
    _, num_atoms, channels = features[0].shape
    return features[0].new_empty(layout_of(layout).num_results * num_atoms, channels)


@torch.library.register_fake("modelforge::edge_pull")  # type: ignore[untyped-decorator]
def _(
    weights: Tensor | None, features: Tensor | None, numbers: Tensor, results: Tensor, tables: list[Tensor], layout: str
) -> list[Tensor]:
    shape, channels, num_features = layout_of(layout), results.shape[1], sum(layout_of(layout).dimensions)
    num_pairs, nothing = tables[-1].shape[0], numbers.new_empty(0)
    by_weights = nothing if features is None else numbers.new_empty(num_pairs, sum(shape.num_paths), channels)
    is_native = len(tables) == native_edges.NUM_TABLES
    num_atoms = tables[0].shape[0] if is_native else tables[SENT_STARTS].shape[0] // num_features
    by_features = numbers.new_empty(0) if weights is None else numbers.new_empty(num_features, num_atoms, channels)
    return [by_weights, by_features]


@torch.library.register_fake("modelforge::edge_numbers")  # type: ignore[untyped-decorator]
def _(weights: Tensor, features: Tensor, results: Tensor, tables: list[Tensor], layout: str) -> Tensor:  # noqa: ARG001
    num_edges = tables[1].shape[0] if len(tables) == native_edges.NUM_TABLES else tables[PAIRS].shape[0]
    return weights.new_empty(num_edges, len(layout_of(layout).entries))
