"""How a batch is shared out to processes: each structure to one of them, in balance, the same on every process.

S structures, P processes.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelforge.data.batching.shares import costs_of, processes_of, share_of

varied = settings(max_examples=100, deadline=None, derandomize=True, database=None)
COSTS = st.lists(st.integers(1, 30) | st.integers(1, 5000), min_size=1, max_size=40).map(np.array)
PROCESSES = st.integers(1, 9)


def shares(costs: np.ndarray, num_processes: int) -> list[list[int]]:
    """The shares of all processes; those that have stand-ins are empty."""
    found = [share_of(costs, rank=rank, num_processes=num_processes) for rank in range(num_processes)]
    return [[] if share.is_stand_in else share.places.tolist() for share in found]


@varied
@given(COSTS, PROCESSES)
def test_each_structure_is_in_one_share_in_the_order_of_the_batch(costs: np.ndarray, num_processes: int) -> None:
    found = shares(costs, num_processes)
    assert sorted(place for share in found for place in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in found)


@varied
@given(COSTS, PROCESSES)
def test_no_share_is_larger_than_the_mean_and_a_structure_that_had_to_be_added(costs: np.ndarray, num_processes: int) -> None:
    """What came last onto the largest share came to the process that had the least; it is alone, or no larger than P + 1st."""
    largest = max(costs[share].sum() for share in shares(costs, num_processes))
    descending = [*sorted(costs.tolist(), reverse=True), *[0] * (num_processes + 1)]
    limit = costs.sum() / num_processes + (1 - 1 / num_processes) * descending[num_processes]
    assert largest <= max(descending[0], limit + 1e-9)


@settings(varied, max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7).map(np.array), st.integers(1, 3))
def test_the_largest_share_is_within_grahams_bound_of_the_best_there_is(costs: np.ndarray, num_processes: int) -> None:
    assignments = map(np.array, product(range(num_processes), repeat=len(costs)))
    best = min(max(costs[to == process].sum() for process in range(num_processes)) for to in assignments)
    largest = max(costs[share].sum() for share in shares(costs, num_processes))
    assert largest <= (4 / 3 - 1 / (3 * num_processes)) * best + 1e-9


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_shares_of_many_structures_are_nearly_equal(num_processes: int) -> None:
    costs = np.random.default_rng(0).lognormal(6, 0.5, 200).astype(int)
    loads = [costs[share].sum() for share in shares(costs, num_processes)]
    assert max(loads) < 1.01 * np.mean(loads)


@varied
@given(COSTS, PROCESSES)
def test_a_process_without_a_structure_has_the_cheapest_as_a_stand_in(costs: np.ndarray, num_processes: int) -> None:
    for rank in range(num_processes):
        share = share_of(costs, rank=rank, num_processes=num_processes)
        assert len(share.places) >= 1
        assert share.is_stand_in == (rank >= len(costs))
        if share.is_stand_in:
            assert costs[share.places].tolist() == [costs.min()]


def test_one_process_has_the_batch_as_it_is() -> None:
    assert share_of(np.array([3, 9, 1, 9]), rank=0, num_processes=1).places.tolist() == [0, 1, 2, 3]


def test_shares_are_those_worked_out_by_hand() -> None:
    """9 to the first, 7 to the second, 6 to the second (13), 5 to the first (14), 1 to the second."""
    assert processes_of(np.array([5, 9, 1, 7, 6]), num_processes=2).tolist() == [0, 0, 1, 1, 1]


def test_structures_without_edges_are_work_too() -> None:
    costs = costs_of(np.zeros(4, dtype=np.int64), np.array([1, 1, 2, 2]))
    assert sorted(costs[share].sum() for share in shares(costs, 2)) == [costs.sum() / 2] * 2
    assert (costs > 0).all()
