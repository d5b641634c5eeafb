"""Edges against reference lists and against a comparison of all images."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule

from modelforge.atoms.neighbors import ALL_PAIRS_LIMIT, PAIRS_AT_ONCE, Edges, find_edges

POSITION_ROUNDING = 1e-12  # angstrom; vectors as sums in another order
GOLDEN = ("molecule", "skewed_tiny_cell", "slab", "unwrapped", "cutoff_longer_than_cell")


def edges_of(*all_atoms: Atoms, cutoff: float) -> Edges:
    return find_edges(
        np.array([len(atoms) for atoms in all_atoms]),
        np.concatenate([atoms.positions for atoms in all_atoms]),
        np.array([np.asarray(atoms.cell) for atoms in all_atoms]),
        np.array([atoms.pbc for atoms in all_atoms]),
        cutoff=cutoff,
    )


def by_comparing_all_images(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Receiver, sender and shift (E, 5), and vectors (E, 3), both in the order of the former; slow and plain."""
    cell = np.where(atoms.pbc[:, None], np.asarray(atoms.cell), 0.0)
    spread = np.ptp(atoms.positions, axis=0).sum() + cutoff
    reach = [int(np.ceil(spread / height)) + 1 if is_on else 0 for height, is_on in zip(heights(cell), atoms.pbc, strict=True)]
    keys, vectors = [], []
    for shift in product(*(range(-n, n + 1) for n in reach)):
        images = atoms.positions + np.array(shift) @ cell
        between = images[None, :, :] - atoms.positions[:, None, :]  # receiver, sender
        near = np.linalg.norm(between, axis=2) < cutoff
        if shift == (0, 0, 0):
            np.fill_diagonal(near, False)
        for receiver, sender in np.argwhere(near):
            keys.append((receiver, sender, *shift))
            vectors.append(between[receiver, sender])
    found = np.array(keys, dtype=int).reshape(-1, 5)
    order = np.lexsort(found.T[::-1])
    return found[order], np.array(vectors).reshape(-1, 3)[order]


def heights(cell: np.ndarray) -> list[float]:
    """Distance between the lattice planes of each vector that is there."""
    found = []
    for place in range(3):
        others = [row for index, row in enumerate(cell) if index != place and row.any()]
        rest = cell[place].copy()
        if others:
            basis = np.linalg.qr(np.array(others).T)[0]
            rest -= basis @ (basis.T @ rest)
        found.append(float(np.linalg.norm(rest)) or 1.0)
    return found


def assert_same(found: Edges, keys: np.ndarray, vectors: np.ndarray) -> None:
    assert found.num_edges.tolist() == [len(keys)]
    np.testing.assert_array_equal(np.stack([found.receivers, found.senders], axis=1), keys[:, :2])
    np.testing.assert_allclose(found.vectors, vectors, rtol=0, atol=POSITION_ROUNDING)


def assert_reverses(found: Edges) -> None:
    starts = np.cumsum(found.num_edges) - found.num_edges
    mirror = found.reverse + np.repeat(starts, found.num_edges)
    np.testing.assert_array_equal(found.receivers[mirror], found.senders)
    np.testing.assert_array_equal(found.senders[mirror], found.receivers)
    np.testing.assert_array_equal(mirror[mirror], np.arange(len(mirror)))
    assert (mirror != np.arange(len(mirror))).all()
    np.testing.assert_allclose(found.vectors[mirror], -found.vectors, rtol=0, atol=POSITION_ROUNDING)


@pytest.mark.parametrize("case", GOLDEN)
def test_edges_are_those_of_the_reference(case: str, shared_data: Path):
    with np.load(shared_data / "golden" / f"neighbors_{case}.npz", allow_pickle=False) as golden:
        atoms = Atoms(golden["atomic_numbers"], golden["positions"], cell=golden["cell"], pbc=golden["pbc"])
        keys = np.column_stack([golden["edge_i"], golden["edge_j"], golden["edge_S"]])
        order = np.lexsort(keys.T[::-1])
        found = edges_of(atoms, cutoff=float(golden["cutoff"]))
        assert_same(found, keys[order], golden["edge_vector"][order])
        assert_reverses(found)


def random_atoms(seed: int) -> Atoms:
    """A few atoms in and out of a skewed cell, periodic along some of its vectors."""
    rng = np.random.default_rng(seed)
    periodic = [bool(seed >> axis & 1) for axis in range(3)]
    cell = np.diag(rng.uniform(1.5, 4.0, size=3)) + rng.uniform(-1.0, 1.0, size=(3, 3))
    num_atoms = int(rng.integers(1, 6))
    return Atoms(f"H{num_atoms}", rng.uniform(-3.0, 6.0, size=(num_atoms, 3)), cell=cell, pbc=periodic)


@pytest.mark.parametrize("seed", range(24))
def test_edges_of_random_cells_are_those_of_all_images(seed: int):
    atoms = random_atoms(seed)
    keys, vectors = by_comparing_all_images(atoms, cutoff=3.3)
    found = edges_of(atoms, cutoff=3.3)
    assert_same(found, keys, vectors)
    assert_reverses(found)


def slab_without_third_vector() -> Atoms:
    slab = graphene(size=(2, 2, 1), vacuum=None)
    slab.cell[2] = 0
    slab.pbc = (True, True, False)
    slab.positions[:, 2] = np.linspace(-4, 4, len(slab))
    return slab


SHAPES = {
    "slab whose third vector is zero": slab_without_third_vector(),
    "chain whose other vectors are zero": Atoms(
        "CH", [[0, 0, 0], [0.7, 0.9, 0.1]], cell=[[1.3, 0.2, 0], [0, 0, 0], [0, 0, 0]], pbc=(1, 0, 0)
    ),
    "chain along the second vector": Atoms(
        "CH", [[0, 0, 0], [9, 7, 5]], cell=[[0, 0, 0], [0, 2.1, 1], [0, 0, 0]], pbc=(0, 1, 0)
    ),
    "chain with a vector that is not periodic": Atoms(
        "C", [[0, 0, 0]], cell=[[1.5, 0, 0], [0.2, 1, 0], [0, 0, 1]], pbc=(1, 0, 0)
    ),
    "cell shorter than the cutoff": bulk("Cu", "fcc", a=3.0),
    "thin and long cell": Atoms("He2", [[0, 0, 0], [0, 0, 11.0]], cell=[1.1, 6, 24], pbc=True),
    "left-handed cell": Atoms("He2", [[0, 0, 0], [1, 2, 1.0]], cell=[[0, 3, 0], [3, 0, 0.5], [0, 0.4, 3]], pbc=True),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_of_special_shapes_are_those_of_all_images(shape: str):
    atoms = SHAPES[shape]
    keys, vectors = by_comparing_all_images(atoms, cutoff=5.0)
    assert len(keys) > 1
    found = edges_of(atoms, cutoff=5.0)
    assert_same(found, keys, vectors)
    assert_reverses(found)


def test_a_cell_without_periodicity_means_nothing():
    alone = molecule("CH3CH2OH")
    boxed = alone.copy()
    boxed.cell = [[0.1, 0, 0], [0, 0.2, 0], [0.3, 0, 0.1]]
    assert_same(edges_of(boxed, cutoff=3.0), *by_comparing_all_images(alone, cutoff=3.0))


def test_many_molecules_and_crystals_at_once_give_what_each_gives_alone():
    names = ("CH4", "H", "CH3CH2OH", "H2O", "C6H6", "O2")
    molecules = [molecule(name) for name in names]
    mixed = [*molecules[:2], bulk("Si", "diamond", a=5.4), Atoms("H"), *molecules[2:], SHAPES["left-handed cell"], Atoms("C")]
    together = edges_of(*mixed, cutoff=3.0)
    alone = [edges_of(atoms, cutoff=3.0) for atoms in mixed]
    for name in ("num_edges", "receivers", "senders", "vectors", "reverse"):
        np.testing.assert_array_equal(getattr(together, name), np.concatenate([getattr(one, name) for one in alone]))
    assert_reverses(together)


def test_the_portions_of_a_long_list_do_not_show(monkeypatch):
    molecules = [molecule(name) for name in ("C6H6", "H2O", "CH3CH2OH")] * 5
    whole = edges_of(*molecules, cutoff=3.0)
    assert sum(len(atoms) ** 2 for atoms in molecules) < PAIRS_AT_ONCE
    monkeypatch.setattr("modelforge.atoms.neighbors.PAIRS_AT_ONCE", 150)
    parts = edges_of(*molecules, cutoff=3.0)
    for name in ("num_edges", "receivers", "senders", "vectors", "reverse"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


@pytest.mark.parametrize("more", [0, 1])
def test_large_molecules_take_the_other_way_to_the_same_edges(more: int):
    rng = np.random.default_rng(2)
    num_atoms = ALL_PAIRS_LIMIT + more
    atoms = Atoms(f"C{num_atoms}", rng.uniform(0, 12, size=(num_atoms, 3)))
    found = edges_of(atoms, cutoff=3.0)
    assert_same(found, *by_comparing_all_images(atoms, cutoff=3.0))
    assert_reverses(found)


def test_the_number_of_edges_has_no_cap():
    """Every atom of a molecule sees all others, however many; so does every image."""
    rng = np.random.default_rng(3)
    dense = Atoms(f"C{ALL_PAIRS_LIMIT + 50}", rng.uniform(0, 4, size=(ALL_PAIRS_LIMIT + 50, 3)))
    assert edges_of(dense, cutoff=10.0).num_edges.tolist() == [len(dense) * (len(dense) - 1)]
    crowd = Atoms("He", cell=[1.0, 1.0, 1.0], pbc=True)
    inside = sum(1 for shift in product(range(-8, 9), repeat=3) if 0 < np.dot(shift, shift) < 7.99**2)
    assert edges_of(crowd, cutoff=7.99).num_edges.tolist() == [inside]


def test_an_atom_exactly_at_the_cutoff_is_outside():
    dimer = Atoms("H2", [[0, 0, 0], [0, 0, 3.0]])
    assert edges_of(dimer, cutoff=3.0).num_edges.tolist() == [0]
    assert edges_of(dimer, cutoff=np.nextafter(3.0, 4)).num_edges.tolist() == [2]
    chain = Atoms("H", cell=[3.0, 0, 0], pbc=(1, 0, 0))
    assert edges_of(chain, cutoff=3.0).num_edges.tolist() == [0]
