"""Inspection of the reference files: what is found, what is guessed, and TOML that reads them as they were read."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from modelforge.convert import convert
from modelforge.data.detection import load_data
from modelforge.data.prepare import prepare
from modelforge.experiment import load
from modelforge.inspection.content import content
from modelforge.inspection.inspecting import inspect_files
from modelforge.inspection.inspection import Inspection
from modelforge.inspection.page import page
from modelforge.training.loss import weights_of

FILES = (
    "acac/train_300K.xyz",
    "formats/SPICE-1.1.4_n2.hdf5",
    "formats/ani2x_minimal.hdf5",
    "formats/carbon_reduced_100.xyz",
    "formats/ethanol_reduced_100.xyz",
    "formats/qm9_dataset_v1.1_ntc_10.hdf5",
    "formats/qm9_reduced_100.xyz",
    "formats/schnetpack_data.db",
    "formats/spice_small_with_charges.xyz",
    "formats/test_dataset_grouped.hdf5",
    "periodic/alexandria-random-1k.xyz",
)
POTENTIAL = '[potential]\nname = "schnet"\ncutoff = 4.0\n'


@cache
def inspected(path: str) -> Inspection:
    return inspect_files([path])


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("name", FILES)
def test_the_advised_toml_reads_the_same_structures_and_prepares_them(shared_data: Path, tmp_path: Path, name: str) -> None:
    prepares(inspected(str(shared_data / name)), tmp_path)


def test_the_advised_toml_reads_a_system_of_deepmd(shared_data: Path, tmp_path: Path) -> None:
    """Eight frames of it: crystals of 192 atoms take their time."""
    system = tmp_path / "system"
    shutil.copytree(shared_data / "formats/deepmd_npy", system, copy_function=shutil.copyfile)
    for array in system.glob("set.*/*.npy"):
        np.save(array, np.load(array)[:8])
    found = inspect_files([str(system)])
    assert (found.format, found.num_structures) == ("deepmd", 8)
    assert found.labels[0].unit.startswith("eV (float32 in the file")
    prepares(found, tmp_path)


def test_the_advised_toml_reads_a_store(shared_data: Path, tmp_path: Path) -> None:
    source = load_data([str(shared_data / "formats/carbon_reduced_100.xyz")], ["forces_key=force"]).section.dataset
    assert list(convert(source, tmp_path / "store"))
    found = inspect_files([str(tmp_path / "store")])
    assert (found.format, found.num_structures, found.how_read) == ("store", 100, ())
    assert not {"energy", "force"}.intersection(key.key for key in found.other_keys)
    assert not any(key.toml for key in found.other_keys)
    prepares(found, tmp_path)


def prepares(found: Inspection, tmp_path: Path) -> None:
    """The advised TOML reads what was inspected, with all its labels, and passes all checks of the data."""
    toml = "\n".join(found.toml) + "\n"
    if any(finding.severity == "stop" for finding in found.audit.findings):
        assert '# audit = "report"' in toml
        toml = toml.replace('# audit = "report"', 'audit = "report"')
    (tmp_path / "x.toml").write_text(POTENTIAL + toml)
    experiment = load(tmp_path / "x.toml").experiment
    data = prepare(experiment.dataset, weights=weights_of(experiment.training.loss))
    assert len(data.structures) == found.num_structures
    counts = {label.label: label.num_structures for label in found.labels if label.num_structures}
    assert {label: int(data.structures.has(label).sum()) for label in counts} == counts


def test_molecular_dynamics_is_as_it_says(shared_data: Path) -> None:
    found = inspected(str(shared_data / "acac/train_300K.xyz"))
    assert (found.num_structures, found.num_atoms, found.format) == (500, 7500, "extxyz")
    assert {some.symbol: (some.num_structures, some.num_atoms) for some in found.elements} == {
        "H": (500, 4000),
        "C": (500, 2500),
        "O": (500, 1000),
    }
    assert [(some.name, some.num_structures) for some in found.subsets] == [("300K_MD", 500)]
    assert [key.key for key in found.other_keys] == ["dihedral_angle"]
    assert found.how_read == ()
    assert found.first_audit is None
    assert not found.audit.findings


def test_energies_in_kcal_per_mol_are_found_out(shared_data: Path) -> None:
    found = inspected(str(shared_data / "formats/ethanol_reduced_100.xyz"))
    assert {label.label: (label.unit, label.unit_from) for label in found.labels} == {
        "energy": ("kcal/mol", "guess"),
        "forces": ("kcal/mol/angstrom", "guess"),
    }
    assert 'energy_unit = "kcal/mol" fits (slope of the energy against the forces 0.99, energies 1.000' in found.how_read[0]
    assert found.first_audit is not None
    assert found.first_audit.findings[0].severity == "stop"
    assert not found.audit.findings
    assert found.forces is not None
    assert found.forces.largest[0] == "ethanol_reduced_100.xyz:30 atom 6 (C): 8.093 eV/angstrom"
    assert 'energy_unit = "kcal/mol"  # guessed: it fits the numbers' in found.toml


def test_a_unit_that_the_user_sets_is_left_alone(shared_data: Path) -> None:
    found = inspect_files([str(shared_data / "formats/ethanol_reduced_100.xyz")], ['energy_unit="kJ/mol"'])
    assert [label.unit for label in found.labels] == ["kJ/mol", "kJ/mol/angstrom"]
    assert [label.unit_from for label in found.labels] == ["set", "set"]
    assert found.audit.findings[0].severity == "stop"
    assert 'energy_unit = "kJ/mol"' in found.toml
    assert any(line.startswith('# audit = "report"') for line in found.toml)


def test_the_energy_of_qm9_is_guessed_with_its_unit(shared_data: Path) -> None:
    found = inspected(str(shared_data / "formats/qm9_reduced_100.xyz"))
    assert found.how_read[0] == "energy is read from 'U0', the only key that looks like it"
    assert found.how_read[1].startswith('a guess from the numbers: energy_unit = "hartree" fits (energies 1.001 times')
    assert found.how_read[2] == "no structure has forces, and no key looks like it"
    assert found.forces is None
    assert "forces_weight = 0.0  # no structure has forces" in found.toml
    assert found.energies is not None
    assert found.energies.self_energies["C"] == pytest.approx(-1036, abs=1)


def test_force_and_virial_are_found_under_their_names(shared_data: Path) -> None:
    found = inspected(str(shared_data / "formats/carbon_reduced_100.xyz"))
    assert {label.option: (label.key, label.num_structures) for label in found.labels} == {
        "energy_key": ("energy", 100),
        "forces_key": ("force", 100),
        "virial_key": ("virial", 100),
    }
    assert found.periodicity.num_fully == 100
    assert found.periodicity.volume_per_atom is not None
    assert found.periodicity.volume_per_atom.median == pytest.approx(7.51, abs=0.01)
    assert found.stresses is not None
    assert sum(found.stresses.mean.counts) == 100


def test_several_candidates_are_listed_and_none_is_used(shared_data: Path) -> None:
    found = inspected(str(shared_data / "formats/spice_small_with_charges.xyz"))
    assert found.how_read[-1] == (
        "partial_charges is not read: 'mulliken_charges' or 'lowdin_charges' or 'nbo_charges' may be it; choose with "
        "--set partial_charges_key=..."
    )
    assert {key.key: key.toml for key in found.other_keys if key.toml} == {
        f"{kind}_charges": f'partial_charges_key = "{kind}_charges"' for kind in ("mulliken", "lowdin", "nbo")
    }
    chosen = inspect_files(
        [str(shared_data / "formats/spice_small_with_charges.xyz")], ['partial_charges_key="nbo_charges"', "group_key='smiles'"]
    )
    assert 'partial_charges_key = "nbo_charges"' in chosen.toml
    assert [label.num_structures for label in chosen.labels if label.label == "partial_charges"] == [5]


def test_units_that_files_state_are_named_as_theirs(shared_data: Path) -> None:
    for name in ("formats/SPICE-1.1.4_n2.hdf5", "formats/schnetpack_data.db", "periodic/alexandria-random-1k.xyz"):
        labels = inspected(str(shared_data / name)).labels
        assert {label.unit_from for label in labels if label.label in ("energy", "forces", "stress")} == {"file"}
    assert {label.unit_from for label in inspected(str(shared_data / "formats/ani2x_minimal.hdf5")).labels} == {"default"}


def test_structures_without_labels_are_shown_all_the_same(shared_data: Path) -> None:
    found = inspected(str(shared_data / "formats/qm7x_reduced_100.xyz"))
    assert (found.energies, found.forces, found.stresses) == (None, None, None)
    assert found.toml[-1].startswith("# neither energies nor forces were found")
    assert "Energies" not in [part.title for part in content(found)]


def test_isolated_atoms_are_counted(shared_data: Path) -> None:
    found = inspect_files([str(shared_data / "acac/*.xyz")])
    assert found.energies is not None
    assert found.energies.num_isolated_atoms == 3
    assert [file.name for file in found.files] == ["isolated_atoms.xyz", "test_MD_300K.xyz", "train_300K.xyz"]


def test_repeated_structures_are_named_with_what_they_repeat(shared_data: Path) -> None:
    found = inspected(str(shared_data / "formats/test_dataset.hdf5"))
    exact = next(oddity for oddity in found.oddities if oddity.name == "exact duplicates")
    assert (exact.num_structures, exact.examples[0]) == (4, "test_dataset.hdf5:2 is test_dataset.hdf5:0")


def test_a_page_of_many_elements_has_all_plots(shared_data: Path) -> None:
    pytest.importorskip("matplotlib")
    text = page(content(inspected(str(shared_data / "periodic/alexandria-random-1k.xyz"))), title="x")
    assert text.count("<svg") == 3
