"""Edges on disk and in memory, and the batches that are gathered from them in any order.

The edges of a batch are compared with those of a plain loop over all images of all atoms.
"""

import resource
from dataclasses import dataclass, fields
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from made_structures import NO_CONSTANTS, cluster, crystal, labelled, structures_of

from modelforge.atoms.graph import Batch, Reach
from modelforge.data.batching import edges as edges_module
from modelforge.data.batching.batches import StructureTable, structure_table
from modelforge.data.batching.edges import NAMES, EdgeTable, edges_of
from modelforge.data.batching.order import BatchOrder, EvaluationBatches, TrainingBatches
from modelforge.data.sources.read_report import ReadReport
from modelforge.data.store.columns import INDEX
from modelforge.data.store.content_hash import content_hash
from modelforge.data.store.store import open_store, write_structures
from modelforge.data.structures import Structures
from modelforge.errors import UserError

PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)
CUTOFF = 3.2
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6}  # angstrom; vectors of a few angstrom as sums in another order
ALL_ATOMS = [
    labelled(cluster(6, (1, 6, 8), seed=0), seed=0),
    Atoms("O"),
    bulk("Cu", "fcc", a=3.6),  # one atom, smaller than the cutoff
    labelled(crystal(5, (1, 6), seed=2), seed=2),
    Atoms("H2", positions=[[0, 0, 0], [0, 0, 50.0]]),
    Atoms("CH", positions=[[0, 0, 0], [0.5, 0, 3.0]], cell=[2.9, 4, 0], pbc=(True, True, False)),
    labelled(Atoms("He", cell=[9, 9, 9], pbc=True), seed=5),
    labelled(cluster(3, (8,), seed=4), seed=4),
]
STRUCTURES = structures_of(ALL_ATOMS)
LONELY = structures_of([Atoms("H"), Atoms("OH", positions=[[0, 0, 0], [0, 0, 9.0]]), Atoms("He", cell=[9, 9, 9], pbc=True)])


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which the edges of the smallest data are kept, a few atoms at a time."""
    monkeypatch.setattr(edges_module, "KEPT_FROM_ATOMS", 0)
    monkeypatch.setattr(edges_module, "ATOMS_AT_A_TIME", 7)
    return tmp_path


def kept(cache: Path, structures: Structures, *, cutoff: float = CUTOFF, dtype: str = "float32", **options: Any) -> EdgeTable:
    edges = edges_of(structures, cutoff=cutoff, dtype=dtype, key=content_hash(structures), cache=cache, **options)
    assert edges.columns is not None
    return edges


def assert_same_edges(first: EdgeTable, second: EdgeTable) -> None:
    for name in NAMES:
        one, other = getattr(first, name), getattr(second, name)
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        assert one.tobytes() == other.tobytes(), name


def table_of(structures: Structures, dtype: torch.dtype, edges: EdgeTable | None = None) -> StructureTable:
    reach = Reach(CUTOFF, far_cutoff=CUTOFF + 2.0, positions=True)
    return structure_table(structures, reach=reach, self_energies=NO_CONSTANTS, dtype=dtype, edges=edges)


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """All tensors of a batch by their names."""
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    parts = (found.pop("graph"), found.pop("labels"))
    return found | {field.name: getattr(part, field.name) for part in parts for field in fields(part)}


@dataclass(frozen=True)
class Pair:
    receiver: int
    sender: int
    shift: tuple[int, int, int]
    vector: np.ndarray


def pairs_of(atoms: Atoms, cutoff: float) -> list[Pair]:
    """The edges of atoms by a loop over all images, by receiver, sender and shift."""
    reach = [3 if periodic else 0 for periodic in atoms.pbc]
    shifts = list(product(*(range(-n, n + 1) for n in reach)))
    found = []
    for i, j in product(range(len(atoms)), repeat=2):
        for shift in shifts:
            vector = atoms.positions[j] - atoms.positions[i] + np.array(shift) @ np.asarray(atoms.cell)
            if np.linalg.norm(vector) < cutoff and (i != j or shift != (0, 0, 0)):
                found.append(Pair(i, j, shift, vector))
    return found


def expected_batch(chosen: list[int]) -> dict[str, np.ndarray]:
    """What the batch of some structures holds of edges, put together structure by structure."""
    receivers, senders, vectors, reverse = [], [], [], []
    first_atom, owners = [], []
    for place, structure in enumerate(chosen):
        atoms, base, first_edge = ALL_ATOMS[structure], len(owners), len(receivers)
        pairs = pairs_of(atoms, CUTOFF)
        number = {(pair.receiver, pair.sender, pair.shift): count for count, pair in enumerate(pairs)}
        mirrors = [(pair.sender, pair.receiver, tuple(-n for n in pair.shift)) for pair in pairs]
        receivers += [base + pair.receiver for pair in pairs]
        senders += [base + pair.sender for pair in pairs]
        vectors += [pair.vector for pair in pairs]
        reverse += [first_edge + number[mirror] for mirror in mirrors]
        first_atom.append(base)
        owners += [place] * len(atoms)
    return {
        "atomic_numbers": np.concatenate([ALL_ATOMS[structure].numbers for structure in chosen]),
        "edge_index": np.array([receivers, senders]),
        "edge_vectors": np.array(vectors).reshape(-1, 3),
        "reverse_edge": np.array(reverse),
        "first_edge": np.searchsorted(receivers, np.arange(len(owners))),
        "structure_index": np.array(owners),
        "first_atom": np.array(first_atom),
    }


CHOICES = [[0], [1], [2], [4], [6], [1, 4, 6], [*range(8)], [5, 3, 2, 2, 0], [7, 6, 5, 4, 3, 2, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_batches_from_disk_and_memory_are_those_of_a_loop_over_all_images(disk: Path, chosen: list[int], dtype: torch.dtype):
    of_disk = kept(disk, STRUCTURES, dtype=str(dtype).removeprefix("torch."))
    from_disk = tensors(table_of(STRUCTURES, dtype, of_disk).batch(torch.tensor(chosen)))
    from_memory = tensors(table_of(STRUCTURES, dtype).batch(torch.tensor(chosen)))
    expected = expected_batch(chosen)
    for name, tensor in from_disk.items():
        assert (tensor.dtype, tensor.shape) == (from_memory[name].dtype, from_memory[name].shape), name
        assert torch.equal(tensor.nan_to_num(-7.0), from_memory[name].nan_to_num(-7.0)), name
        if name == "edge_vectors":
            assert tensor.dtype == dtype
            np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=ROUNDING[dtype])
        elif name in expected:
            assert tensor.dtype == torch.int64
            np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_edges_on_disk_are_those_in_memory(disk: Path, dtype: str):
    in_memory = edges_of(STRUCTURES, cutoff=CUTOFF, dtype=dtype)
    assert in_memory.columns is None
    assert in_memory.vectors.dtype == dtype
    assert in_memory.sender_shift.dtype == np.int16
    assert_same_edges(kept(disk, STRUCTURES, dtype=dtype), in_memory)


def test_double_precision_is_kept_to_the_last_bit(disk: Path):
    apart = np.nextafter(1.0, 2.0)
    structures = structures_of([Atoms("H2", positions=[[0, 0, 0], [0, 0, apart]])])
    assert kept(disk, structures, dtype="float64").vectors[:, 2].tolist() == [apart, -apart]
    batch = table_of(structures, torch.float64, kept(disk, structures, dtype="float64")).batch(torch.tensor([0]))
    assert batch.graph.edge_vectors[:, 2].tolist() == [apart, -apart]


@pytest.mark.parametrize("structures", [LONELY, structures_of([Atoms("H")])], ids=["some", "one atom"])
def test_data_without_any_edge_can_be_kept(disk: Path, structures: Structures):
    edges = kept(disk, structures)
    assert_same_edges(edges, edges_of(structures, cutoff=CUTOFF))
    batch = table_of(structures, torch.float32, edges).batch(torch.arange(len(structures)))
    assert batch.graph.num_edges == 0
    assert batch.graph.num_structures == len(structures)


def test_edges_are_found_once_for_a_content_and_a_cutoff_and_a_precision(disk: Path):
    said: list[str] = []
    for _ in range(2):
        kept(disk, STRUCTURES, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("finding the edges of 8 structures once, kept in ")
    kept(disk, STRUCTURES, cutoff=2.0, say=said.append)
    kept(disk, STRUCTURES, dtype="float64", say=said.append)
    kept(disk, STRUCTURES.slice(0, 7), say=said.append)
    assert len(said) == 4


def test_small_data_and_data_without_a_cache_leave_no_files(tmp_path: Path):
    assert edges_of(STRUCTURES, cutoff=CUTOFF, key="x", cache=tmp_path).columns is None
    assert list(tmp_path.iterdir()) == []


def test_damaged_edges_are_found_again(disk: Path):
    expected = edges_of(STRUCTURES, cutoff=CUTOFF)
    kept(disk, STRUCTURES)
    (folder,) = (path for path in (disk / "edges").iterdir() if path.is_dir())
    for damage in (lambda: (folder / "vectors.bin").write_bytes(b"1234"), lambda: (folder / INDEX).write_text("{")):
        damage()
        said: list[str] = []
        assert_same_edges(kept(disk, STRUCTURES, say=said.append), expected)
        assert "damaged; finding them again" in said[0]


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_key(disk: Path):
    (disk / "file").write_text("")
    with pytest.raises(UserError, match=r"^dataset\.cache_folder: .*Not a directory"):
        kept(disk / "file", STRUCTURES)


def line(num_atoms: int) -> Atoms:
    """Atoms a bond apart, the last of which sits at the first."""
    positions = np.zeros((num_atoms, 3))
    positions[:, 0] = np.arange(num_atoms)
    positions[-1] = (0.0, 0.9, 0.0)
    return Atoms(f"H{num_atoms}", positions=positions)


@pytest.mark.parametrize(("num_atoms", "dtype"), [(32767, np.int16), (32768, np.int32)])
def test_partners_that_are_many_places_apart_are_found(disk: Path, num_atoms: int, dtype: type):
    structures = structures_of([Atoms("H2", positions=[[0, 0, 0], [0, 0, 1.0]]), line(num_atoms), Atoms("O")])
    in_memory, on_disk = edges_of(structures, cutoff=1.1), kept(disk, structures, cutoff=1.1)
    assert in_memory.sender_shift.dtype == dtype
    assert_same_edges(on_disk, in_memory)
    assert in_memory.sender_shift.max() == -in_memory.sender_shift.min() == num_atoms - 1
    graph = table_of(structures, torch.float32, on_disk).batch(torch.tensor([1])).graph
    assert graph.edge_index[:, graph.senders == num_atoms - 1].tolist() == [[0], [num_atoms - 1]]
    assert torch.equal(graph.senders[graph.reverse_edge], graph.receivers)
    assert torch.equal(graph.edge_vectors[graph.reverse_edge], -graph.edge_vectors)


def test_a_table_on_disk_takes_no_memory_and_its_batches_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(edges_module, "KEPT_FROM_ATOMS", 0)
    once = structures_of([labelled(crystal(120, (6, 14), seed=0), seed=0)])
    write_structures(tmp_path / "store", once.take(np.zeros(800, dtype=np.int64)), ReadReport(("x",), 800, (), {}, {}))
    store = open_store(tmp_path / "store")
    structures = store.reading.structures
    edges = kept(tmp_path, structures, cutoff=4.0, mapped=store.columns)
    columns = {"edges": edges, "mapped": store.columns, "self_energies": NO_CONSTANTS, "dtype": torch.float32}
    table = structure_table(structures, reach=Reach(4.0), **columns)
    before, chosen = resident(), torch.arange(0, 800, 8)
    first = sum(float(table.batch(part).graph.edge_vectors.sum()) for part in torch.arange(800).split(50))
    assert resident() - before < edges.vectors.nbytes / 4
    batch, alone = (
        table.batch(chosen[:2]),
        table_of(once, torch.float32, edges_of(once, cutoff=4.0)).batch(torch.tensor([0, 0])),
    )
    assert all(torch.equal(tensors(batch)[name], tensors(alone)[name]) for name in ("edge_index", "edge_vectors", "forces"))
    assert first == pytest.approx(float(edges.vectors.sum(dtype=np.float64)), abs=1.0)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


TABLE = table_of(STRUCTURES, torch.float64)


@PROPERTY
@given(st.lists(st.integers(0, len(ALL_ATOMS) - 1), min_size=1, max_size=12))
def test_a_batch_is_its_structures_one_by_one(chosen: list[int]):
    together = tensors(TABLE.batch(torch.tensor(chosen)))
    singles = [tensors(TABLE.batch(torch.tensor([structure]))) for structure in chosen]
    num_atoms = np.array([len(single["atomic_numbers"]) for single in singles])
    num_edges = np.array([len(single["edge_vectors"]) for single in singles])
    before = {"atoms": np.cumsum(num_atoms) - num_atoms, "edges": np.cumsum(num_edges) - num_edges}
    before["structures"] = np.arange(len(chosen))
    num_far_edges = np.array([len(single["far_edge_vectors"]) for single in singles])
    before["far edges"] = np.cumsum(num_far_edges) - num_far_edges
    counted = {
        "edge_index": "atoms",
        "first_atom": "atoms",
        "reverse_edge": "edges",
        "first_edge": "edges",
        "structure_index": "structures",
        "triples": "edges",
        "far_edge_index": "atoms",
        "far_reverse_edge": "far edges",
        "far_first_edge": "far edges",
    }
    of_two_rows = ("edge_index", "triples", "far_edge_index")
    for name, tensor in together.items():
        shifts = before[counted[name]] if name in counted else np.zeros(len(chosen), dtype=np.int64)
        parts = [single[name] + int(shift) if shift else single[name] for single, shift in zip(singles, shifts, strict=True)]
        expected = sum(parts) if name == "label_counts" else torch.cat(parts, dim=1 if name in of_two_rows else 0)
        assert tensor.dtype == expected.dtype, name
        assert torch.equal(tensor.nan_to_num(-7.0), expected.nan_to_num(-7.0)), name


SHAPES = {"num": st.integers(1, 60), "batch_size": st.integers(1, 70), "epoch": st.integers(0, 5)}


@PROPERTY
@given(seed=st.integers(0, 2**31), **SHAPES)
def test_the_batches_of_an_epoch_hold_each_structure_once(num: int, batch_size: int, epoch: int, seed: int):
    order = BatchOrder(num, batch_size, seed=seed)
    batches = [batch.tolist() for batch in order.epoch(epoch)]
    assert len(batches) == order.steps_per_epoch
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert sorted(place for batch in batches for place in batch) == list(range(num))


@PROPERTY
@given(st.integers(1, 20), st.integers(1, 6), st.lists(st.integers(0, len(ALL_ATOMS) - 1), min_size=1, unique=True))
def test_evaluation_sees_each_member_once(batch_size: int, ranks: int, members: list[int]):
    seen = []
    for rank in range(ranks):
        share = {"rank": rank, "num_processes": ranks, "members": torch.tensor(members)}
        batches = EvaluationBatches(TABLE, batch_size, **share)
        found = [batch.indices.tolist() for batch in batches]
        assert len(batches) == len(found) >= 1
        assert all(1 <= len(batch) <= batch_size for batch in found)
        seen += [place for batch in found for place in batch if place >= 0]
    assert sorted(seen) == sorted(members)


@PROPERTY
@given(
    st.lists(st.integers(0, len(ALL_ATOMS) - 1), min_size=1, unique=True),
    st.integers(1, 9),
    st.lists(st.integers(0, 20), min_size=1, max_size=4),
)
def test_training_that_is_interrupted_sees_the_same_members(members: list[int], batch_size: int, pauses: list[int]):
    order = BatchOrder(len(members), batch_size, seed=3)
    stops = [0, *sorted(pauses)]

    def seen(first: int, last: int) -> list[list[int]]:
        stretch = TrainingBatches(TABLE, order, first_step=first, last_step=last, members=torch.tensor(members))
        return [batch.indices.tolist() for batch in stretch]

    whole = seen(0, stops[-1])
    assert [batch for first, last in pairwise(stops) for batch in seen(first, last)] == whole
    steps = order.steps_per_epoch
    for epoch in range(len(whole) // steps):
        of_epoch = [place for batch in whole[epoch * steps : (epoch + 1) * steps] for place in batch]
        assert sorted(of_epoch) == sorted(members)
