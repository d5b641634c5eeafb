"""Batches within a budget of edges and atoms: every structure once an epoch, in as many steps each time.

S structures.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations, pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelforge.data.batching.packing import PackedOrder, budget_shares, evaluation_batches, fewest_batches

varied = settings(max_examples=60, deadline=None, derandomize=True, database=None)
RANDOM = np.random.default_rng(0)


class Case(NamedTuple):
    """Sizes of S structures and the budgets of a batch."""

    num_edges: np.ndarray
    num_atoms: np.ndarray
    max_edges: int | None
    max_atoms: int | None

    def order(self, *, seed: int = 0) -> PackedOrder:
        return PackedOrder(**self._asdict(), seed=seed)

    def is_within_budget(self, batch: Sequence[int]) -> bool:
        return self.load(batch) <= 1.0

    def load(self, batch: Sequence[int]) -> float:
        """The part of the tighter budget that a batch uses."""
        edges = self.num_edges[batch].sum() / self.max_edges if self.max_edges else 0.0
        atoms = self.num_atoms[batch].sum() / self.max_atoms if self.max_atoms else 0.0
        return max(edges, atoms)

    def alone_too_large(self) -> list[int]:
        return [structure for structure in range(len(self.num_edges)) if not self.is_within_budget([structure])]


@st.composite
def cases(draw: st.DrawFn, *, largest_set: int = 60) -> Case:
    """Few or many, alike or widely spread, with or without edges, some larger than a budget."""
    num = draw(st.integers(1, largest_set))
    edges = draw(st.lists(st.sampled_from([0, 1, 2, 7, 50, 51, 400]) | st.integers(0, 500), min_size=num, max_size=num))
    atoms = draw(st.lists(st.integers(1, 40), min_size=num, max_size=num))
    budgets = draw(st.sampled_from([(100, None), (600, None), (None, 35), (100, 35), (600, 100), (1, 1), (10**12, 10**12)]))
    return Case(np.array(edges), np.array(atoms), *budgets)


def edges_only(num_edges: Iterable[int], max_edges: int) -> Case:
    edges = np.array(list(num_edges))
    return Case(edges, np.ones_like(edges), max_edges, None)


def epoch_lists(order: PackedOrder, epoch: int = 0) -> list[list[int]]:
    batches = order.epoch(epoch)
    assert all(batch.dtype == torch.int64 for batch in batches)
    return [batch.tolist() for batch in batches]


def shared_pairs(one: list[list[int]], other: list[list[int]]) -> float:
    """The part of the pairs that share a batch in one epoch which share a batch in the other too."""
    pairs, again = ({pair for batch in epoch for pair in combinations(sorted(batch), 2)} for epoch in (one, other))
    return len(pairs & again) / len(pairs)


def unrelated(num_structures: int) -> Case:
    """Edges and atoms that have nothing to do with each other, in numbers for which few of the fullest packings fit."""
    random = np.random.default_rng(3)
    edges, atoms = (random.lognormal(mean, 0.7, num_structures).astype(int) for mean in (5, 3))
    return Case(edges, atoms + 1, 8000, 1000)


SMALL_BUDGET = edges_only(RANDOM.lognormal(5, 1, 2000).astype(int) + 1, 20_000)
ALIKE = edges_only([100] * 700, 700)
NARROW = edges_only(RANDOM.integers(80, 120, 1000), 1000)  # ten in a batch, hard to fit at random
PAIRS = edges_only(RANDOM.integers(1, 1000, 400), 1000)  # about two in a batch
DENSE = RANDOM.random(1000) < 0.5
OPPOSED = Case(np.where(DENSE, 100, 50), np.where(DENSE, 5, 10), 4000, 400)


@varied
@given(cases(), st.integers(0, 3))
def test_every_structure_comes_once_an_epoch(case: Case, epoch: int):
    order = case.order()
    assert sorted(chain.from_iterable(epoch_lists(order, epoch))) == list(range(len(case.num_edges)))
    assert order.num_structures == len(case.num_edges)


@varied
@given(cases())
def test_a_batch_is_within_budget_or_a_single_structure(case: Case):
    order = case.order()
    assert order.oversized.tolist() == case.alone_too_large()
    for batch in chain(epoch_lists(order, 0), epoch_lists(order, 1)):
        assert case.is_within_budget(batch) or (len(batch) == 1 and batch[0] in order.oversized)


@varied
@given(cases(), st.integers(0, 1000))
def test_every_epoch_has_as_many_batches_none_empty(case: Case, seed: int):
    order, steps = case.order(), case.order(seed=seed).steps_per_epoch
    assert order.steps_per_epoch == steps
    for epoch in range(3):
        batches = order.epoch(epoch)
        assert len(batches) == steps
        assert all(len(batch) for batch in batches)


def test_there_are_never_more_batches_than_structures():
    """No two fit together, which no bound says; and of more than 100 batches not every number is tried."""
    first = np.arange(301) < 150
    order = Case(np.where(first, 60, 45), np.where(first, 50, 60), 100, 100).order()
    assert order.steps_per_epoch == 301
    assert all(len(batch) == 1 for batch in epoch_lists(order))


@varied
@given(cases(), st.integers(0, 1000), st.integers(0, 50))
def test_the_order_is_a_function_of_seed_and_epoch(case: Case, seed: int, epoch: int):
    one, other = (case.order(seed=seed) for _ in range(2))
    other.epoch(epoch + 1)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert epoch_lists(one, epoch) == epoch_lists(other, epoch)


@varied
@given(cases(largest_set=7))
def test_fewest_batches_is_never_more_than_the_best_packing_needs(case: Case):
    inside = np.setdiff1d(np.arange(len(case.num_edges)), case.alone_too_large())
    fitting = Case(case.num_edges[inside], case.num_atoms[inside], case.max_edges, case.max_atoms)
    shares = budget_shares(*fitting[:2], max_edges=case.max_edges, max_atoms=case.max_atoms)
    assert fewest_batches(shares.taken, shares.full) <= best_number_of_batches(fitting)


def best_number_of_batches(case: Case) -> int:
    """The fewest batches within budget, of all partitions."""
    return min(
        len(partition)
        for partition in partitions(list(range(len(case.num_edges))))
        if all(case.is_within_budget(batch) for batch in partition)
    )


def partitions(structures: list[int]) -> Iterator[list[list[int]]]:
    if not structures:
        yield []
        return
    first, rest = structures[0], structures[1:]
    for partition in partitions(rest):
        yield [[first], *partition]
        for place, batch in enumerate(partition):
            yield [*partition[:place], [first, *batch], *partition[place + 1 :]]


@pytest.mark.parametrize("case", [SMALL_BUDGET, ALIKE, NARROW, PAIRS, OPPOSED])
def test_epochs_and_seeds_differ_and_most_mates_part(case: Case):
    order = case.order()
    one, next_epoch, other_seed = epoch_lists(order, 0), epoch_lists(order, 1), epoch_lists(case.order(seed=1), 0)
    assert shared_pairs(one, next_epoch) < 0.3
    assert shared_pairs(one, other_seed) < 0.3


@pytest.mark.parametrize("case", [SMALL_BUDGET, ALIKE, NARROW, unrelated(400), unrelated(3000)])
def test_with_many_structures_to_a_batch_mates_are_as_good_as_random(case: Case):
    epochs = [epoch_lists(case.order(), epoch) for epoch in range(4)]
    shared = np.mean([shared_pairs(one, other) for one, other in combinations(epochs, 2)])
    assert shared == pytest.approx(1 / len(epochs[0]), rel=0.25)


@pytest.mark.parametrize("case", [NARROW, PAIRS, OPPOSED, unrelated(400)])
def test_where_random_packing_overflows_every_epoch_is_repaired(case: Case):
    order = case.order()
    for epoch in range(20):
        assert all(case.is_within_budget(batch) for batch in epoch_lists(order, epoch))


@pytest.mark.parametrize("place", [0, 999])
def test_the_steps_come_in_random_order(place: int):
    """A structure that is alone in its batch, at either end of the file, comes at any step."""
    sizes = [10] * 1000
    sizes[place] = 1000
    order = edges_only(sizes, 500).order()
    steps = [epoch_lists(order, epoch).index([place]) for epoch in range(40)]
    assert len(set(steps)) > 10
    assert abs(np.mean(steps) / (order.steps_per_epoch - 1) - 0.5) < 0.15


@pytest.mark.parametrize("case", [NARROW, PAIRS])
def test_the_number_of_steps_does_not_depend_on_the_seed(case: Case):
    assert len({case.order(seed=seed).steps_per_epoch for seed in range(10)}) == 1


@pytest.mark.parametrize("spread", [0.3, 1.0, 1.5])
def test_batches_of_many_structures_are_nearly_full(spread: float):
    sizes = np.random.default_rng(3).lognormal(4, spread, 5000).astype(int) + 1
    case = Case(sizes, sizes // 20 + 1, int(50 * sizes.mean()), int(60 * sizes.mean() / 20))
    order = case.order()
    batches = epoch_lists(order, 2)
    assert order.efficiency(2) > 0.95
    assert order.efficiency(2) == pytest.approx(np.mean([min(1.0, case.load(batch)) for batch in batches]))


def test_efficiency_counts_an_oversized_batch_as_full():
    assert edges_only([30, 10, 10], 20).order().efficiency() == 1.0
    assert edges_only([30, 15], 20).order().efficiency() == 0.875


def test_structures_of_equal_size_fill_the_budget_to_the_last_edge():
    order = ALIKE.order()
    assert order.steps_per_epoch == 100
    assert order.efficiency() == 1.0


def test_a_structure_that_nearly_fills_a_batch_costs_no_more_than_its_share():
    sizes = [950] + [1] * 4000
    case = edges_only(sizes, 1000)
    assert case.order().steps_per_epoch == 5
    batch_of_large = next(batch for batch in epoch_lists(case.order()) if 0 in batch)
    assert len(batch_of_large) <= 51


def test_structures_rich_in_edges_share_batches_with_structures_rich_in_atoms():
    sum_of_larger_shares = sum(OPPOSED.load([structure]) for structure in range(1000))
    sum_of_shares = OPPOSED.load(range(1000))
    assert OPPOSED.order().steps_per_epoch < 1.08 * sum_of_shares < 0.85 * sum_of_larger_shares


def test_structures_without_edges_are_spread_over_the_batches():
    case = edges_only([0] * 500 + [10] * 500, 100)
    counts = [sum(structure < 500 for structure in batch) for batch in epoch_lists(case.order())]
    assert len(counts) == 50
    assert max(counts) - min(counts) <= 1


@varied
@given(cases())
def test_evaluation_sees_every_structure_once_in_file_order_within_budget(case: Case):
    batches = [batch.tolist() for batch in evaluation_batches(**case._asdict())]
    assert all(case.is_within_budget(batch) or len(batch) == 1 for batch in batches)
    assert not any(case.is_within_budget([*batch, follower[0]]) for batch, follower in pairwise(batches))
    assert list(chain.from_iterable(batches)) == list(range(len(case.num_edges)))
