"""`Layout`: the paths of a convolution, and which components, products, entries and results belong together.

A block holds the paths from one irrep of the features. Products (block, path, component of the feature) and entries (block,
component of the feature, path, component of the result) are numbered in this order. Results are rows (target, component, atom,
path), so that the channels of all paths to a target stand side by side.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, groupby, pairwise, product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """The paths from one irrep of the features."""

    dimension: int  # components of the features
    widths: tuple[int, ...]  # components of the results of each path
    targets: tuple[int, ...]  # which of the results each path goes to, ascending

    def __str__(self) -> str:
        return f"{self.dimension}:{_list(self.widths)}:{_list(self.targets)}"


@dataclass(frozen=True)
class Entry:
    """A component of a feature with one of a result of a path."""

    product: int
    target: int
    component: int  # of the result
    place: int  # of the path among those to the target


@dataclass(frozen=True)
class Target:
    """A result: its components, the number of paths to it, and the entries that add up to each component, by path."""

    width: int
    num_paths: int
    entries: Tensor  # (2l+1, entries of a component)
    starts: Tensor  # (paths,) where those of each path begin


@dataclass(frozen=True)
class Layout:
    """The paths of a convolution."""

    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        """A text that `layout_of` reads, as operators take texts."""
        return ";".join(map(str, self.blocks))

    @property
    def num_paths(self) -> list[int]:
        """Of each block."""
        return [len(block.widths) for block in self.blocks]

    @property
    def dimensions(self) -> list[int]:
        """Components of the features of each block."""
        return [block.dimension for block in self.blocks]

    @property
    def products(self) -> list[slice]:
        """Those of each block."""
        ends = list(accumulate((block.dimension * len(block.widths) for block in self.blocks), initial=0))
        return [slice(begin, end) for begin, end in pairwise(ends)]

    @cached_property
    def results(self) -> list[tuple[int, int]]:
        """Components and number of paths of each target."""
        pairs = sorted(pair for block in self.blocks for pair in zip(block.targets, block.widths, strict=True))
        return [(width, len(list(group))) for (_, width), group in groupby(pairs)]

    @property
    def num_results(self) -> int:
        """K, components of the results of all paths."""
        return sum(width * paths for width, paths in self.results)

    @cached_property
    def entries(self) -> list[Entry]:
        """All entries, in their order."""
        found, taken, first_product = [], [0] * len(self.results), 0
        for block in self.blocks:
            places = []
            for target in block.targets:
                places.append(taken[target])
                taken[target] += 1
            paths = list(zip(block.targets, block.widths, places, strict=True))
            for a, (path, (target, width, place)) in product(range(block.dimension), enumerate(paths)):
                number = first_product + path * block.dimension + a
                found += [Entry(number, target, component, place) for component in range(width)]
            first_product += len(paths) * block.dimension
        return found

    @cached_property
    def description(self) -> list[int]:
        """What `edge_products.c` reads: blocks; of each, components and paths; of each path, the places of its results."""
        numbers, starts = [len(self.blocks)], list(accumulate((width * paths for width, paths in self.results), initial=0))
        taken = [0] * len(self.results)
        for block in self.blocks:
            numbers += [block.dimension, len(block.widths)]
            for target, width in zip(block.targets, block.widths, strict=True):
                paths, place = self.results[target][1], taken[target]
                taken[target] += 1
                places = [(starts[target] + component * paths, paths, place) for component in range(width)]
                numbers += [width, *(number for triple in places for number in triple)]
        return numbers

    @cached_property
    def widths_of_products(self) -> list[int]:
        """Components of the results of the path of each product."""
        return [width for block in self.blocks for width in block.widths for _ in range(block.dimension)]

    def on(self, device: torch.device) -> "Tables":
        """Its numbers as tensors."""
        return _tables(self, device)


@dataclass(frozen=True)
class Tables:
    """Of a layout: T entries, R products."""

    product_of_entry: Tensor  # (T,)
    first_rows: Tensor  # (T,) the row of the results of an entry is N first_rows + strides n + offsets, n the atom
    strides: Tensor  # (T,)
    offsets: Tensor  # (T,)
    by_product: Tensor  # (T,) entries sorted by product
    runs: Sequence[tuple[int, int, int]]  # in that order: first entry, number of products and components of the results of each
    first_of_product: Tensor  # (R,) where its entries begin in that order
    width_of_product: Tensor  # (R,)
    targets: Sequence[Target]


@cache
def layout_of(text: str) -> Layout:
    """What `str` of a layout says."""
    parts = (block.split(":") for block in text.split(";"))
    return Layout(tuple(Block(int(d), *(tuple(map(int, numbers.split(","))) for numbers in rest)) for d, *rest in parts))


@cache
def _tables(layout: Layout, device: torch.device) -> Tables:
    def tensor(numbers: Iterable[int]) -> Tensor:
        return torch.tensor(list(numbers), dtype=torch.long, device=device)

    entries, results, widths = layout.entries, layout.results, layout.widths_of_products
    first_rows = list(accumulate((width * paths for width, paths in results), initial=0))
    begins = list(accumulate(widths, initial=0))[:-1]
    grouped = [(width, len(list(group))) for width, group in groupby(widths)]
    run_begins = accumulate((width * number for width, number in grouped), initial=0)
    return Tables(
        product_of_entry=tensor(entry.product for entry in entries),
        first_rows=tensor(first_rows[entry.target] + entry.component * results[entry.target][1] for entry in entries),
        strides=tensor(results[entry.target][1] for entry in entries),
        offsets=tensor(entry.place for entry in entries),
        by_product=tensor(sorted(range(len(entries)), key=lambda number: (entries[number].product, entries[number].component))),
        runs=[(begin, number, width) for begin, (width, number) in zip(run_begins, grouped, strict=False)],
        first_of_product=tensor(begins),
        width_of_product=tensor(widths),
        targets=[_target(layout, target, device) for target in range(len(results))],
    )


def _target(layout: Layout, target: int, device: torch.device) -> Target:
    width, num_paths = layout.results[target]
    rows: list[list[list[int]]] = [[[] for _ in range(num_paths)] for _ in range(width)]
    for number, entry in enumerate(layout.entries):
        if entry.target == target:
            rows[entry.component][entry.place].append(number)
    starts = list(accumulate((len(numbers) for numbers in rows[0]), initial=0))[:-1]
    entries = [[number for numbers in row for number in numbers] for row in rows]
    return Target(width, num_paths, torch.tensor(entries, device=device), torch.tensor(starts, device=device))


def _list(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
