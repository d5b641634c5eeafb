"""How the structures of a batch are shared out to processes, so that all of them have about the same work.

Each structure goes to the process that has least to do, the costliest first (longest processing time first: R. L. Graham,
SIAM J. Appl. Math. 17, 416, 1969). The shares are a function of the costs alone, so each process finds its own without asking.

S structures of a batch.
"""

from heapq import heapreplace
from typing import NamedTuple

import numpy as np

from modelforge.data.structures import Integers

EDGES_PER_ATOM = 3
"""Edges that take as long as an atom in a training step (measured: 1.7 for SchNet, 4.3 for PaiNN); without any, atoms count."""


class Share(NamedTuple):
    """What one process does of a batch."""

    places: Integers
    """Its structures as places in the batch, ascending."""
    is_stand_in: bool
    """Whether they are there only so that the process has something to do; another process has them, too."""


TRIPLES_PER_EDGE = 5
"""Triples that take as long as an edge (measured for ANI); far edges, of which 70 do (PaiNN), hardly count."""


def costs_of(num_edges: Integers, num_atoms: Integers, num_triples: Integers | int = 0) -> Integers:
    """The work for structures of these sizes, in edges, (S,)."""
    costs: Integers = num_edges + EDGES_PER_ATOM * num_atoms + num_triples // TRIPLES_PER_EDGE
    return costs


def share_of(costs: Integers, *, rank: int, num_processes: int) -> Share:
    """The share of one process of structures with these costs (S,), all above 0.

    With fewer structures than processes, the last ones get the cheapest structure as a stand-in.
    """
    if rank >= len(costs):
        return Share(np.array([np.argmin(costs)]), is_stand_in=True)
    return Share(np.flatnonzero(processes_of(costs, num_processes=num_processes) == rank), is_stand_in=False)


def processes_of(costs: Integers, *, num_processes: int) -> Integers:
    """The process of each structure, (S,); the first S processes have at least one."""
    costliest_first = np.argsort(-costs, kind="stable")
    heap = list(range(num_processes))  # the work of each process so far, times the number of processes, plus its number
    chosen = []
    for cost in (num_processes * costs[costliest_first]).tolist():
        chosen.append(heap[0] % num_processes)
        heapreplace(heap, heap[0] + cost)
    processes = np.empty(len(costs), dtype=np.int64)
    processes[costliest_first] = chosen
    return processes
