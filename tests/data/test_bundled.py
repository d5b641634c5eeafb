"""The bundled data are what their README says, and the offset of total energies is in them."""

import numpy as np
import pytest

from modelforge.data.prepare import prepare
from modelforge.data.sources.bundled import FOLDER, Quickstart
from modelforge.data.sources.gather import read

WEIGHTS = {"energy": 1.0, "forces": 1.0}


def test_the_bundled_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000


def test_the_sets_have_their_sizes_elements_and_temperatures():
    source = Quickstart(name="quickstart")
    structures = read(source.training_files()).structures
    tests = {name: read(files).structures for name, files in source.test_files().items()}
    assert len(structures) == 480
    assert structures.elements == (1, 6, 7, 8)
    assert {structures.subset_names[s] for s in structures.subset} == {"300K", "600K"}
    assert {name: len(test) for name, test in tests.items()} == {"test_300K": 100, "test_600K": 100}
    assert structures.has_force.all()
    assert structures.has_energy.all()


def test_total_energies_keep_their_offset_and_forces_sum_to_zero():
    structures = read(Quickstart(name="quickstart").training_files()).structures
    assert structures.energy.max() < -400.0
    net = np.add.reduceat(structures.forces, structures.offsets[:-1])
    assert np.abs(net).max() < 1e-5


def test_own_self_energies_give_the_same_labels_as_a_fit():
    fitted = prepare(Quickstart(name="quickstart"), weights=WEIGHTS)
    own = prepare(Quickstart(name="quickstart", self_energies={"source": "dataset"}), weights=WEIGHTS)
    assert own.reference.self_energies.by_element[8] == pytest.approx(-102.5218, abs=1e-4)
    counts = np.array([[7, 2, 1, 1], [5, 2, 1, 2]])  # H, C, N, O of ethanolamine and glycine
    elements = [1, 6, 7, 8]
    np.testing.assert_allclose(
        counts @ own.reference.table()[elements], counts @ fitted.reference.table()[elements], rtol=0, atol=1e-8
    )
