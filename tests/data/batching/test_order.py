"""The order of batches: every structure once an epoch, a function of seed and step alone, shared out to processes."""

from collections.abc import Iterable
from itertools import chain
from typing import TypeVar

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import structures_of

from modelforge.atoms.graph import Reach
from modelforge.data.batching.batches import structure_table
from modelforge.data.batching.order import BatchOrder, EvaluationBatches, TrainingBatches

T = TypeVar("T")
NUM = 23
TABLE = structure_table(structures_of([Atoms("H")] * NUM), reach=Reach(1.0), self_energies=np.zeros(119), dtype=torch.float32)


def chained(parts: Iterable[list[T]]) -> list[T]:
    return list(chain.from_iterable(parts))


def indices(order: BatchOrder, first_step: int, last_step: int, **process: int) -> list[list[int]]:
    batches = TrainingBatches(TABLE, order, first_step=first_step, last_step=last_step, **process)
    found = [batch.indices.tolist() for batch in batches]
    assert len(found) == len(batches) == last_step - first_step
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 23, 50])
def test_every_structure_comes_once_an_epoch(batch_size: int):
    order = BatchOrder(NUM, batch_size, seed=0)
    for epoch in range(3):
        steps = order.steps_per_epoch
        batches = indices(order, epoch * steps, (epoch + 1) * steps)
        assert sorted(chained(batches)) == list(range(NUM))
        assert all(len(batch) == min(batch_size, NUM) for batch in batches[:-1])


def test_the_order_is_a_function_of_seed_and_epoch():
    one, other = BatchOrder(NUM, 4, seed=0), BatchOrder(NUM, 4, seed=1)
    torch.manual_seed(5)
    assert indices(one, 0, 12) == indices(BatchOrder(NUM, 4, seed=0), 0, 12)
    assert indices(one, 0, 6) != indices(other, 0, 6)
    assert indices(one, 0, 6) != indices(one, 6, 12)


@pytest.mark.parametrize("pause", range(18))
def test_a_run_that_goes_on_at_any_step_sees_the_same_batches(pause: int):
    order = BatchOrder(NUM, 4, seed=0)
    assert indices(order, 0, pause) + indices(order, pause, 18) == indices(order, 0, 18)


def test_a_stretch_may_span_several_epochs():
    order = BatchOrder(NUM, 4, seed=0)
    steps = order.steps_per_epoch
    whole = indices(order, 0, 3 * steps)
    assert sorted(chained(whole)) == sorted([*range(NUM)] * 3)
    assert whole == chained(indices(order, epoch * steps, (epoch + 1) * steps) for epoch in range(3))


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_processes_share_each_batch_without_overlap(num_processes: int):
    order = BatchOrder(NUM, 4, seed=0)
    steps = order.steps_per_epoch
    shares = [indices(order, 0, steps, rank=rank, num_processes=num_processes) for rank in range(num_processes)]
    for step, whole in enumerate(indices(order, 0, steps)):
        parts = [share[step] for share in shares]
        own = [part for part in parts if part != [-1]]
        assert all(parts), "a process without a batch would leave the others waiting"
        assert sorted(chained(own)) == sorted(whole)
        assert len(own) == min(num_processes, len(whole))
        assert all(part == [place for place in whole if place in part] for part in own), "in the order of the batch"


@pytest.mark.parametrize(("batch_size", "num_processes"), [(1, 1), (4, 1), (64, 1), (2, 3), (64, 30)])
def test_evaluation_sees_every_structure_exactly_once(batch_size: int, num_processes: int):
    seen: list[int] = []
    for rank in range(num_processes):
        batches = EvaluationBatches(TABLE, batch_size, rank=rank, num_processes=num_processes)
        found = [batch.indices.tolist() for batch in batches]
        assert len(found) == len(batches) > 0
        assert all(0 < len(batch) <= -(-batch_size // num_processes) for batch in found)
        assert batches.is_stand_in == (rank >= min(batch_size, NUM)) == (found == [[-1]])
        seen += [] if batches.is_stand_in else chained(found)
    assert sorted(seen) == list(range(NUM))


def test_one_process_evaluates_in_the_order_of_the_set():
    assert chained([batch.indices.tolist() for batch in EvaluationBatches(TABLE, 4)]) == list(range(NUM))
