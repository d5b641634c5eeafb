"""Edges on disk: found once per structures and cutoff, and never trusted when damaged."""

from pathlib import Path

import numpy as np
import pytest
from made_structures import cluster, structures_of

from modelforge.atoms.neighbors import Edges
from modelforge.data import edge_cache
from modelforge.data.edge_cache import NAMES, cache_folder, edges_of

STRUCTURES = structures_of([cluster(6, (1, 8), seed=seed) for seed in range(3)])


@pytest.fixture
def searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """An empty cache that keeps everything, and the cutoffs for which edges were really searched."""
    found: list[float] = []
    search = edge_cache.find_edges

    def counted(*columns: np.ndarray, cutoff: float) -> Edges:
        found.append(cutoff)
        return search(*columns, cutoff=cutoff)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(edge_cache, "WORTH_KEEPING", 0.0)
    monkeypatch.setattr(edge_cache, "find_edges", counted)
    return found


def assert_equal(one: Edges, other: Edges) -> None:
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_edges_are_searched_once_and_come_back_the_same(searches: list[float]):
    first, second = (edges_of(STRUCTURES, cutoff=2.5) for _ in range(2))
    assert searches == [2.5]
    assert first.num_edges.sum() > 0
    assert_equal(first, second)


def test_another_cutoff_or_other_positions_are_searched_anew(searches: list[float]):
    edges_of(STRUCTURES, cutoff=2.5)
    edges_of(STRUCTURES, cutoff=2.6)
    edges_of(STRUCTURES.take(np.array([0, 1])), cutoff=2.5)
    assert searches == [2.5, 2.6, 2.5]


def test_a_damaged_file_is_replaced(searches: list[float]):
    first = edges_of(STRUCTURES, cutoff=2.5)
    (file,) = cache_folder().iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert_equal(edges_of(STRUCTURES, cutoff=2.5), first)
    edges_of(STRUCTURES, cutoff=2.5)
    assert searches == [2.5, 2.5]


def test_quick_searches_leave_no_file(searches: list[float], monkeypatch):
    monkeypatch.setattr(edge_cache, "WORTH_KEEPING", 60.0)
    edges_of(STRUCTURES, cutoff=2.5)
    assert not cache_folder().exists()
