"""Batches by a budget of edges and atoms: packed anew each epoch, in a number of steps that never changes.

Each structure goes to the batch that is least full, large ones first and in random order among those of similar size
(longest processing time first: R. L. Graham, SIAM J. Appl. Math. 17, 416, 1969). A batch is as full as the fuller of its two
budgets, so structures rich in edges share batches with structures rich in atoms.

S structures, N of them within the budgets (the others are batches of their own), B batches, M members of some batches.
"""

from heapq import heapreplace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]

SPREADS = (0.1, 0.03, 0.01, 0.003, 0.001)
"""Random factors on the sizes, from 1 to 1 + spread, by which the order of packing departs from that of the sizes."""


class Shares(NamedTuple):
    """Edges and atoms of structures in one integer unit, so that sums are exact and both budgets are the same number."""

    taken: Integers
    """What each structure takes of the edges (row 0) and of the atoms (row 1), (2, S)."""
    full: int
    """The budget of a batch, of either row."""


class Packing(NamedTuple):
    """Which batch each structure is in, and how full that makes the batches."""

    batch_of: Integers
    """Batch of each structure, (N,)."""
    filled: Integers
    """What the structures of each batch take together: of the edges or of the atoms, whichever is more, (B,)."""


class PackedOrder:
    """Which structures make up the batch of each step, within budgets; epoch after epoch every structure comes once.

    A pure function of the seed and the step, with the same interface as `BatchOrder`. The number of steps follows from the
    sizes and the budgets alone. A structure that alone exceeds a budget is a batch of its own, and only in such a batch is a
    budget exceeded.

    A budget of None does not limit; then structures that take nothing of the other are dealt to all batches in turn.
    """

    def __init__(
        self, num_edges: Integers, num_atoms: Integers, *, max_edges: int | None, max_atoms: int | None, seed: int
    ) -> None:
        self.seed = seed
        self._shares = budget_shares(num_edges, num_atoms, max_edges=max_edges, max_atoms=max_atoms)
        fits = self._shares.taken.max(axis=0) <= self._shares.full  # (S,)
        self._packed, self._oversized = np.flatnonzero(fits), np.flatnonzero(~fits)  # (N,), (S - N,)
        self._taken = self._shares.taken[:, self._packed]  # (2, N)
        self._exact, self._coarse = exact_priority(self._taken), coarse_priority(self._taken, self._shares.full)
        self._num_batches = self._smallest_number_of_batches()
        self._last: tuple[int, list[Tensor]] | None = None

    @property
    def num_structures(self) -> int:
        """Structures in an epoch, each counted once."""
        return len(self._packed) + len(self._oversized)

    @property
    def oversized(self) -> Tensor:
        """Indices of the structures that alone exceed a budget, in file order."""
        return torch.from_numpy(self._oversized)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._num_batches + len(self._oversized)

    def epoch(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch, in order: int64 indices of structures."""
        if self._last is None or self._last[0] != epoch:  # a long epoch is asked for again after each validation in it
            self._last = epoch, self._epoch(epoch)
        return self._last[1]

    def _epoch(self, epoch: int) -> list[Tensor]:
        random = self._random(epoch)
        batch_of = np.empty(self.num_structures, dtype=np.int64)
        batch_of[self._packed] = self._packing(random).batch_of
        batch_of[self._oversized] = self._num_batches + np.arange(len(self._oversized))
        steps = random.permutation(self.steps_per_epoch)[batch_of]
        return list(torch.split(torch.from_numpy(np.argsort(steps, kind="stable")), np.bincount(steps).tolist()))

    def efficiency(self, epoch: int = 0) -> float:
        """Mean over the batches of the part of the tighter budget that is used; 1 for an oversized one."""
        used = self._packing(self._random(epoch)).filled / self._shares.full
        return float((used.sum() + len(self._oversized)) / self.steps_per_epoch)

    def _random(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0x0C, epoch])

    def _packing(self, random: np.random.Generator) -> Packing:
        """A random packing within the budgets: repaired in part, else anew in ever stricter order of size.

        The strictest is the packing that `_smallest_number_of_batches` found to fit, random only among equal structures.
        """
        packing = self._repaired(packed(self._taken, shuffled(self._coarse, random), self._num_batches), random)
        sizes = self._taken.max(axis=0)  # (N,)
        for spread in SPREADS:
            if not self._is_over(packing).any():
                return packing
            order = np.argsort(-sizes * random.uniform(1.0, 1.0 + spread, len(sizes)))
            packing = packed(self._taken, order, self._num_batches)
        if not self._is_over(packing).any():
            return packing
        return packed(self._taken, shuffled(self._exact, random), self._num_batches)

    def _is_over(self, packing: Packing) -> NDArray[np.bool_]:
        return packing.filled > self._shares.full

    def _repaired(self, packing: Packing, random: np.random.Generator) -> Packing:
        """Pack the batches over budget and as many of the emptiest again, tightly; then more and more of the emptiest."""
        by_room = np.argsort(packing.filled)[::-1]
        num_over = int(self._is_over(packing).sum())
        num_again = 2 * num_over
        while self._is_over(packing).any() and num_again < self._num_batches:
            emptiest = by_room[self._num_batches - num_again + num_over :]
            packing = self._packed_again(packing, np.concatenate([by_room[:num_over], emptiest]), random)
            num_again *= 2
        return packing

    def _packed_again(self, packing: Packing, batches: Integers, random: np.random.Generator) -> Packing:
        """The packing with the structures of some batches packed again among themselves, as tightly as we can."""
        members = np.flatnonzero(np.isin(packing.batch_of, batches))  # (M,)
        again = packed(self._taken[:, members], shuffled(self._exact[members], random), len(batches))
        batch_of, filled = packing.batch_of.copy(), packing.filled.copy()
        batch_of[members], filled[batches] = batches[again.batch_of], again.filled
        return Packing(batch_of, filled)

    def _smallest_number_of_batches(self) -> int:
        """The fewest for which the tight packing fits, or up to 5 % more where random packings would hardly ever fit."""
        candidate, fewest = fewest_batches(self._taken, self._shares.full), None
        while fewest is None or candidate <= fewest + fewest // 20:
            if self._fits(candidate):
                if self._mostly_fits_at_random(candidate):
                    return candidate
                fewest = fewest or candidate
            candidate = min(candidate + 1 + candidate // 100, len(self._packed))  # with as many all fit, and none is empty
        return fewest

    def _fits(self, num_batches: int) -> bool:
        """Whether the tight packing is within the budgets: structures by exact size, the largest first."""
        if num_batches >= len(self._packed):
            return True
        order = np.argsort(self._exact, kind="stable")
        return bool(packed(self._taken, order, num_batches).filled.max() <= self._shares.full)

    def _mostly_fits_at_random(self, num_batches: int) -> bool:
        """Whether a random packing leaves enough batches within the budgets that repairs do not touch all of them."""
        order = shuffled(self._coarse, np.random.default_rng(0))  # not the seed of the run: the steps shall not depend on it
        return bool(self._is_over(packed(self._taken, order, num_batches)).sum() <= num_batches // 4)


def evaluation_batches(
    num_edges: Integers, num_atoms: Integers, *, max_edges: int | None, max_atoms: int | None
) -> list[Tensor]:
    """All structures, in file order, in batches within the budgets; one that alone exceeds a budget is a batch of its own."""
    shares = budget_shares(num_edges, num_atoms, max_edges=max_edges, max_atoms=max_atoms)
    num_structures = shares.taken.shape[1]
    before = np.pad(np.cumsum(shares.taken, axis=1), [(0, 0), (1, 0)])  # (2, S + 1)
    batches, start = [], 0
    while start < num_structures:
        ends = [np.searchsorted(row, row[start] + shares.full, side="right") - 1 for row in before]
        end = max(start + 1, int(min(ends)))
        batches.append(torch.arange(start, end))
        start = end
    return batches


def budget_shares(num_edges: Integers, num_atoms: Integers, *, max_edges: int | None, max_atoms: int | None) -> Shares:
    """What structures take of the budgets: edges times the budget of atoms, and the reverse; without a budget nothing."""
    assert max_edges is not None or max_atoms is not None, "batches need a budget"
    edges, edge_budget = _limited(num_edges, max_edges)
    atoms, atom_budget = _limited(num_atoms, max_atoms)
    return Shares(np.stack([edges * atom_budget, atoms * edge_budget]), full=edge_budget * atom_budget)


def _limited(sizes: Integers, budget: int | None) -> tuple[Integers, int]:
    sizes = np.asarray(sizes, dtype=np.int64)
    if budget is None:
        return np.zeros_like(sizes), 1
    return sizes, min(budget, max(1, int(sizes.sum())))  # a budget of more than all means the same and could overflow


def fewest_batches(taken: Integers, full: int) -> int:
    """A number of batches below which no packing fits.

    Of each budget at least the sum is needed; and of the r structures that take most, where each takes 1 / k of the budget or
    more, at most k share a batch.
    """
    descending = -np.sort(-taken, axis=1)  # (2, N)
    ranks = np.arange(1, taken.shape[1] + 1)
    at_most_together = np.where(descending > 0, full // descending.clip(min=1), len(ranks))  # (2, N)
    return max(int((-(-taken.sum(axis=1) // full)).max()), int((-(-ranks // at_most_together)).max(initial=0)))


def exact_priority(taken: Integers) -> Integers:
    """Place of each structure by size, the largest first; the same place only for the same edges and atoms, (2, N) -> (N,)."""
    order = np.lexsort([*taken, -taken.max(axis=0)])
    differs = (np.diff(taken[:, order], axis=1) != 0).any(axis=0)  # (N - 1,)
    place = np.zeros(taken.shape[1], dtype=np.int64)
    place[order[1:]] = np.cumsum(differs)
    return place


def coarse_priority(taken: Integers, full: int) -> Integers:
    """Size class of each structure, the largest first: a class spans a factor of two, (2, N) -> (N,)."""
    size_class: Integers = -np.frexp(taken.max(axis=0).clip(min=0.5) / full)[1].astype(np.int64)
    return size_class


def shuffled(priority: Integers, random: np.random.Generator) -> Integers:
    """Indices by ascending priority, in random order where it is the same, (N,)."""
    order = random.permutation(len(priority))
    return order[np.argsort(priority[order], kind="stable")]


def packed(taken: Integers, order: Integers, num_batches: int) -> Packing:
    """Give each structure in `order` to the batch that is then least full; those that take nothing to all in turn.

    A plain loop over a heap: 0.4 s for a million structures. Its keys are how full a batch is, times B, plus the batch.
    """
    takes_some = taken[:, order].any(axis=0)
    order_of_some, order_of_none = order[takes_some], order[~takes_some]
    heap, edges, atoms = list(range(num_batches)), [0] * num_batches, [0] * num_batches
    chosen = []
    for more_edges, more_atoms in zip(*taken[:, order_of_some].tolist(), strict=True):
        batch = heap[0] % num_batches
        edges[batch] += more_edges
        atoms[batch] += more_atoms
        heapreplace(heap, max(edges[batch], atoms[batch]) * num_batches + batch)
        chosen.append(batch)
    batch_of = np.empty(len(order), dtype=np.int64)
    batch_of[order_of_some] = chosen
    batch_of[order_of_none] = (len(order_of_some) + np.arange(len(order_of_none))) % max(1, num_batches)
    return Packing(batch_of, np.maximum(edges, atoms).astype(np.int64))
