"""Labels less the fixed energies: what is taken off, where it is kept, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import NO_CONSTANTS, cluster, crystal, labelled, structures_of
from tolerances import EXACT_SUM

from modelforge.atoms.graph import Reach
from modelforge.data.batching.batches import structure_table
from modelforge.data.reduced_labels import ReducedLabels, reduced_labels
from modelforge.data.sources.read_report import Reading, ReadReport
from modelforge.data.store.columns import Columns, ColumnWriter
from modelforge.data.store.content_hash import content_hash
from modelforge.data.store.opening import OpenedData
from modelforge.data.store.prepared_once import silent
from modelforge.data.structures import COLUMNS, Structures
from modelforge.errors import UserError
from modelforge.physics.dispersion import D3BJ
from modelforge.physics.fixed_energy import FixedTerms
from modelforge.physics.repulsion import ZBL

TERMS = FixedTerms(repulsion=ZBL(cutoff=3.0))
USED = np.array([4, 0, 1, 3])


def all_atoms() -> list[Atoms]:
    """Molecules and a crystal with labels; the last molecule without forces."""
    made = [labelled(cluster(5 + seed, [1, 6], seed=seed), seed=seed, energy=-3.0 * seed) for seed in range(4)]
    made.insert(1, labelled(crystal(4, [6], seed=9), seed=9, energy=-7.0))
    del made[-1].arrays["forces"]
    return made


def opened_data(structures: Structures, columns: Columns | None = None) -> OpenedData:
    return OpenedData(Reading(structures, ReadReport((), len(structures), (), {}, {})), content_hash(structures), columns)


def mapped(folder: Path, structures: Structures) -> OpenedData:
    """The same structures, mapped from files."""
    writer = ColumnWriter(folder)
    for name in COLUMNS:
        writer.add(name, getattr(structures, name))
    writer.finish({})
    columns = Columns(folder)
    return opened_data(structures.with_columns(lambda name, _: columns.arrays[name]), columns)


def reduced(
    opened: OpenedData, cache: Path, *, terms: FixedTerms = TERMS, used: np.ndarray = USED, say=silent
) -> ReducedLabels:
    return reduced_labels(opened, terms, used, cache=cache, say=say)


def assert_reduced(found: ReducedLabels, structures: Structures) -> None:
    """Labels of the used structures are less by their fixed energy, and all others are missing."""
    fixed = TERMS.of(structures)
    energy, forces, stress = (
        structures.energy - fixed.energy,
        structures.forces - fixed.forces,
        structures.stress - fixed.stress,
    )
    unused = np.setdiff1d(np.arange(len(structures)), USED)
    energy[unused] = stress[unused] = forces[structures.atoms_of(unused)] = fixed.energy[unused] = np.nan
    assert np.isfinite(forces).any()
    for name, expected in {"energy": energy, "forces": forces, "stress": stress}.items():
        np.testing.assert_allclose(getattr(found.structures, name), expected, rtol=EXACT_SUM)
    np.testing.assert_allclose(found.fixed_energy, fixed.energy, rtol=EXACT_SUM)
    np.testing.assert_array_equal(found.structures.positions, structures.positions)


def test_labels_of_the_used_structures_are_less_by_the_fixed_energy(tmp_path: Path) -> None:
    structures = structures_of(all_atoms())
    assert_reduced(reduced(opened_data(structures), tmp_path), structures)
    assert not list(tmp_path.iterdir())


def test_without_fixed_energies_nothing_is_touched(tmp_path: Path) -> None:
    opened = mapped(tmp_path / "store", structures_of(all_atoms()))
    found = reduced(opened, tmp_path, terms=FixedTerms())
    assert found.structures is opened.structures
    assert found.columns is opened.columns


def test_those_of_large_data_are_computed_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelforge.data.reduced_labels.KEPT_FROM_ATOMS", 10)
    monkeypatch.setattr("modelforge.data.reduced_labels.ATOMS_AT_A_TIME", 12)
    structures, said = structures_of(all_atoms()), []
    opened = mapped(tmp_path / "store", structures)
    for _ in range(2):
        found = reduced(opened, tmp_path, say=said.append)
        assert_reduced(found, structures)
    assert len(said) == 1
    assert said[0].startswith("computing zbl (cutoff 3) of 4 structures once")
    table = structure_table(
        found.structures,
        reach=Reach(3.0),
        self_energies=NO_CONSTANTS,
        dtype=torch.float64,
        mapped=opened.columns,
        forces_mapped=found.columns,
    )
    assert table.forces.path.parent.parent.name == "fixed_energies"
    batch = table.batch(torch.tensor([3, 0]))
    taken = found.structures.take(np.array([3, 0]))
    np.testing.assert_array_equal(batch.labels.forces, taken.forces)
    np.testing.assert_array_equal(batch.labels.energy, taken.energy)


def test_they_are_computed_anew_for_other_terms_and_other_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelforge.data.reduced_labels.KEPT_FROM_ATOMS", 10)
    opened, said = opened_data(structures_of(all_atoms())), []
    reduced(opened, tmp_path, say=said.append)
    other = reduced(opened, tmp_path, terms=FixedTerms(repulsion=ZBL(cutoff=2.9)), say=said.append)
    all_used = reduced(opened, tmp_path, used=np.arange(5), say=said.append)
    assert len(said) == 3
    assert (other.fixed_energy[USED] != all_used.fixed_energy[USED]).all()
    assert np.isfinite(all_used.fixed_energy).all()


def test_damaged_ones_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelforge.data.reduced_labels.KEPT_FROM_ATOMS", 10)
    structures, said = structures_of(all_atoms()), []
    opened = opened_data(structures)
    reduced(opened, tmp_path)
    (file,) = tmp_path.glob("fixed_energies/*/forces.bin")
    file.write_bytes(file.read_bytes()[:-8])
    assert_reduced(reduced(opened, tmp_path, say=said.append), structures)
    assert "damaged; computing them again" in said[0]


@pytest.mark.parametrize("terms", [TERMS, FixedTerms(dispersion=D3BJ(method="pbe"))], ids=["repulsion", "dispersion"])
def test_atoms_upon_each_other_are_refused_where_they_are_used(tmp_path: Path, terms: FixedTerms) -> None:
    """Their dispersion energy is finite, its derivative is not."""
    atoms = all_atoms()
    atoms[2].positions[1] = atoms[2].positions[0]
    opened = opened_data(structures_of(atoms))
    assert np.isfinite(reduced(opened, tmp_path, terms=terms).fixed_energy[USED]).all()
    with pytest.raises(
        UserError, match=r"made\.xyz:2: must have a finite energy and finite forces of (zbl|d3bj) \(.*upon each"
    ):
        reduced(opened, tmp_path, terms=terms, used=np.arange(5))
