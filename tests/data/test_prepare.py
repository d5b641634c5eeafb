"""From files to sets: everything that is read is accounted for, and labels that cannot be right stop."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from toy_experiment import water, waters

from modelforge.data.filter import FilterSection
from modelforge.data.prepare import PreparedData, prepare
from modelforge.data.reference import SelfEnergiesSection
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.hdf5 import HDF5
from modelforge.data.sources.npz import Npz
from modelforge.data.split import SplitSection
from modelforge.errors import UserError
from modelforge.report import data_report, data_summary

WEIGHTS = {"energy": 1.0, "forces": 100.0}
SULFIDE = water(8, symbols="SHH", energy="energy=-10858")
ATOMS = "".join(f"1\nenergy={energy}\n{symbol} 0 0 0\n" for symbol, energy in (("H", -13.6), ("O", -2041.8)))


@pytest.fixture(autouse=True)
def _work_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("water.xyz").write_text(waters(8))


def prepared(
    *, text: str = "", weights: dict[str, float] = WEIGHTS, split: SplitSection | None = None, **keys: object
) -> PreparedData:
    if text:
        Path("water.xyz").write_text(text)
    source = ExtendedXYZ(path="water.xyz", cache_folder="cache", split=split or SplitSection(counts=(4, 2, 0)), **keys)
    return prepare(source, weights=weights)


def message_of(**keys: object) -> str:
    with pytest.raises(UserError) as caught:
        prepared(**keys)
    return str(caught.value)


def line_that_begins(lines: Iterable[str], words: str) -> str:
    (line,) = [line for line in lines if line.startswith(words)]
    return line


# What is read is used or left out


def test_structures_read_are_structures_used_and_removals() -> None:
    cold = waters(6, header="config_type=cold")
    hot = "".join(water(number, header="config_type=hot") for number in range(6, 9))
    data = prepared(
        text=cold + hot + SULFIDE + ATOMS, filter=FilterSection(without_elements=("S",), min_atoms=2, subsets=("cold", ""))
    )
    assert data_summary(data)[3:8] == [
        "read 12 = 6 used, 3 left out (not in filter.subsets), 2 left out (fewer than 2 atoms), "
        "1 left out (elements in filter.without_elements)",
        "  3 of water.xyz: not in filter.subsets",
        "  2 of water.xyz: fewer than 2 atoms",
        "  1 of water.xyz: elements in filter.without_elements",
        "sets: train 4, validation 2",
    ]
    report = data_report(data)
    assert report["structures_read"] == 12
    assert report["removed"] == {
        "not in filter.subsets": 3,
        "fewer than 2 atoms": 2,
        "elements in filter.without_elements": 1,
    }
    assert report["unused"] == 0
    assert {name: counts["structures"] for name, counts in report["labels"].items()} == {"train": 4, "validation": 2}
    used = np.concatenate(list(data.split.sets().values()))
    assert len(used) + sum(report["removed"].values()) + report["unused"] == report["structures_read"]


def test_what_is_in_no_set_is_told() -> None:
    data = prepared()
    assert line_that_begins(data_summary(data), "read") == "read 8 = 6 used, 2 left out (in none of the sets)"
    assert data_report(data)["unused"] == 2


def test_nothing_is_said_where_everything_is_used() -> None:
    data = prepared(split=SplitSection(counts=(6, 1, 1)))
    assert not [line for line in data_summary(data) if line.startswith("read")]
    assert "sets: train 6, validation 1, test 1" in data_summary(data)


def test_coverage_counts_the_structures_that_have_a_label() -> None:
    data = prepared(text=waters(5) + water(5, energy="energy=nan") + water(6, energy="x=1"))
    assert "  energy: 5 of 7 structures, from 'energy' in the header keys, unit eV" in data_summary(data)
    assert "1 structures have NaN for 'energy': taken as missing" in data.notes


def test_only_structures_that_pass_the_filter_are_split() -> None:
    texts = [
        water(number, symbols="SHH" if number % 2 else "OHH", energy=f"energy={-10858 if number % 2 else -2079}")
        for number in range(12)
    ]
    data = prepared(
        text="".join(texts), filter=FilterSection(elements=("H", "O")), split=SplitSection(fractions=(0.5, 0.5, 0.0))
    )
    used = np.concatenate(list(data.split.sets().values()))
    assert sorted(used.tolist()) == [0, 2, 4, 6, 8, 10]
    assert (len(data.split.train), len(data.split.validation)) == (3, 3)
    assert data.elements == (1, 8)


def test_test_files_are_not_filtered() -> None:
    Path("hot.xyz").write_text(waters(3, header="config_type=hot"))
    data = prepared(test_paths={"hot": "hot.xyz"}, filter=FilterSection(subsets=("",)))
    assert {name: len(members) for name, (_, members) in data.evaluated_sets().items()} == {"validation": 2, "hot": 3}


# Subsets and isolated atoms


def test_a_weight_of_a_subset_that_is_not_there_is_an_error() -> None:
    text = waters(4, header="config_type=liquid") + waters(4, header="config_type=ice")
    assert prepared(text=text, subset_weights={"ice": 2.0}).subset_weights == {"ice": 2.0}
    assert message_of(text=text, subset_weights={"ices": 2.0}) == (
        "dataset.subset_weights: 'ices' is no subset of the data (did you mean 'ice'?); there are 'liquid', 'ice'"
    )


def test_isolated_atoms_give_self_energies_and_are_in_no_set() -> None:
    data = prepared(text=waters(8) + ATOMS, self_energies=SelfEnergiesSection(source="isolated_atoms"))
    assert data.reference.self_energies.by_element == {1: -13.6, 8: -2041.8}
    assert not {8, 9} & set(np.concatenate(list(data.split.sets().values())).tolist())
    assert "2 isolated atoms give the self-energies and are in none of the sets" in data.notes
    assert line_that_begins(data_summary(data), "read") == "read 10 = 6 used, 4 left out (in none of the sets)"


def test_isolated_atoms_in_a_file_of_their_own_leave_single_atoms_in_the_data() -> None:
    Path("atoms.xyz").write_text(ATOMS)
    section = SelfEnergiesSection(source="isolated_atoms", isolated_atoms_path="atoms.xyz")
    data = prepared(text=waters(8) + ATOMS, self_energies=section, split=SplitSection(counts=(8, 2, 0)))
    assert data.reference.self_energies.by_element == {1: -13.6, 8: -2041.8}
    assert len(np.concatenate(list(data.split.sets().values()))) == 10


def test_isolated_atoms_that_the_filter_leaves_out_still_give_their_energies() -> None:
    section = SelfEnergiesSection(source="isolated_atoms")
    data = prepared(text=waters(8) + ATOMS, self_energies=section, filter=FilterSection(min_atoms=2))
    assert data.reference.self_energies.by_element == {1: -13.6, 8: -2041.8}
    assert data_report(data)["removed"] == {"fewer than 2 atoms": 2}
    assert data_report(data)["unused"] == 2


# Tests


def test_a_test_set_with_the_content_of_the_data_is_refused_whatever_its_name() -> None:
    Path("other.xyz").write_text(waters(8, header="comment=again"))
    assert message_of(test_paths={"other": "other.xyz"}) == (
        "dataset.test_paths.other: holds the same structures as dataset.path, so its errors would say nothing; "
        "name another file, or cut a test set out of the data with dataset.split.fractions"
    )


def test_two_sets_of_the_name_test_are_refused() -> None:
    Path("hot.xyz").write_text(waters(3))
    message = message_of(test_paths={"test": "hot.xyz"}, split=SplitSection(counts=(4, 2, 2)))
    assert message == 'dataset.test_paths.test: the name "test" is taken by the set that dataset.split cuts out; choose another'
    assert set(prepared(test_paths={"test": "hot.xyz"}).evaluated_sets()) == {"validation", "test"}


# The audit


def ethanol(shared_data: Path, **keys: object) -> ExtendedXYZ:
    return ExtendedXYZ(path=str(shared_data / "formats/ethanol_reduced_100.xyz"), cache_folder="cache", **keys)


def test_energies_in_kcal_per_mol_that_nobody_declared_stop_and_are_named(shared_data: Path) -> None:
    with pytest.raises(UserError) as caught:
        prepare(ethanol(shared_data), weights=WEIGHTS)
    *findings, remedy = str(caught.value).splitlines()
    assert remedy == 'if the data are right as they are, set dataset.audit = "report"'
    (finding,) = findings
    assert finding.startswith("dataset.energy_unit: ")
    assert 'set dataset.energy_unit = "kcal/mol"' in finding


def test_a_report_goes_on_with_a_note_where_a_stop_would_stop(shared_data: Path) -> None:
    data = prepare(ethanol(shared_data, audit="report"), weights=WEIGHTS)
    note = line_that_begins(data_summary(data), "note: dataset.energy_unit: ")
    assert 'set dataset.energy_unit = "kcal/mol"' in note
    (finding,) = [finding for finding in data_report(data)["audit"]["findings"] if finding["severity"] == "stop"]
    assert finding["key"] == "dataset.energy_unit"


def test_the_declared_unit_is_not_complained_about(shared_data: Path) -> None:
    data = prepare(ethanol(shared_data, energy_unit="kcal/mol"), weights=WEIGHTS)
    assert not [finding for finding in data.audit.findings() if finding.severity == "stop"]


def test_gradients_for_forces_stop_and_the_sign_is_named(shared_data: Path) -> None:
    source = HDF5(
        name="hdf5",
        path=str(shared_data / "formats/SPICE-1.1.4_n2.hdf5"),
        forces_key="dft_total_gradient",
        cache_folder="cache",
    )
    with pytest.raises(UserError) as caught:
        prepare(source, weights=WEIGHTS)
    assert "dataset.forces_key: energies rise where the forces say that they fall" in str(caught.value)
    remedy = "these are gradients, not forces: name them in dataset.gradient_key instead of dataset.forces_key"
    assert remedy in str(caught.value)


def test_good_data_pass_in_silence(shared_data: Path) -> None:
    source = ExtendedXYZ(
        path=str(shared_data / "acac/train_300K.xyz"),
        test_paths={"hot": str(shared_data / "acac/test_MD_300K.xyz")},
        cache_folder="cache",
    )
    data = prepare(source, weights=WEIGHTS)
    assert [finding for finding in data.audit.findings() if finding.severity == "stop"] == []


def test_a_start_that_a_check_stops_leaves_no_split(tmp_path: Path) -> None:
    Path("x.xyz").write_text(waters(20))
    split_file = tmp_path / "split.npz"
    wrong = SelfEnergiesSection(source="values", values={"H": 0.0, "O": 0.0})
    with pytest.raises(UserError, match="eV per atom; expected"):
        prepare(ExtendedXYZ(path=("x.xyz",), self_energies=wrong, audit="report"), weights=WEIGHTS, split_file=split_file)
    assert not split_file.exists()
    prepare(ExtendedXYZ(path=("x.xyz",), audit="report"), weights=WEIGHTS, split_file=split_file)
    assert split_file.exists()


def test_a_split_of_an_earlier_start_is_not_used_with_another_filter(tmp_path: Path) -> None:
    Path("x.xyz").write_text(waters(10) + waters(10, header="config_type=bad"))
    split_file = tmp_path / "split.npz"
    prepare(ExtendedXYZ(path=("x.xyz",)), weights=WEIGHTS, split_file=split_file)
    filtered = ExtendedXYZ(path=("x.xyz",), filter=FilterSection(without_subsets=("bad",)))
    with pytest.raises(UserError, match="have changed since this run drew its split"):
        prepare(filtered, weights=WEIGHTS, split_file=split_file)


@pytest.mark.parametrize("key", ["group_key", "weight_key", "subset_key", "dipole_key"])
def test_a_key_that_is_named_and_nowhere_is_an_error(key: str) -> None:
    Path("x.xyz").write_text(waters(20, header="molecule=a"))
    with pytest.raises(UserError, match=rf"^dataset\.{key}: 'molecul' is in no structure of x\.xyz; .*did you mean 'molecule'"):
        prepare(ExtendedXYZ(path=("x.xyz",), **{key: "molecul"}), weights=WEIGHTS)


def test_weights_that_are_all_zero_train_nothing_and_are_refused() -> None:
    Path("x.xyz").write_text(waters(20, header="config_type=a"))
    with pytest.raises(UserError, match=r"^dataset\.subset_weights: all training structures have the weight 0"):
        prepare(ExtendedXYZ(path=("x.xyz",), subset_weights={"a": 0.0}), weights=WEIGHTS)


def test_groups_that_a_random_split_takes_apart_are_told() -> None:
    Path("x.xyz").write_text(waters(10, header="molecule=a") + waters(10, header="molecule=b"))
    (note,) = [
        note for note in prepare(ExtendedXYZ(path=("x.xyz",), group_key="molecule"), weights=WEIGHTS).notes if "groups" in note
    ]
    assert "belong to 2 groups" in note
    assert 'set it to "group"' in note
    together = ExtendedXYZ(path=("x.xyz",), group_key="molecule", split=SplitSection(strategy="group", fractions=(0.5, 0.5, 0)))
    assert not [note for note in prepare(together, weights=WEIGHTS).notes if "groups" in note]


def test_isolated_atoms_may_have_another_format_than_the_data() -> None:
    count = 20
    positions = np.random.default_rng(0).normal(scale=0.02, size=(count, 3, 3))
    positions += [[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]]
    energies = -2079.0 + 0.01 * np.arange(count)
    np.savez("w.npz", z=np.array([8, 1, 1]), R=positions, E=energies, F=np.zeros((count, 3, 3)))
    Path("atoms.xyz").write_text(ATOMS)
    section = SelfEnergiesSection(source="isolated_atoms", isolated_atoms_path="atoms.xyz")
    units = {"energy_unit": "eV", "length_unit": "angstrom"}
    data = prepare(Npz(name="npz", path=("w.npz",), self_energies=section, **units), weights={"energy": 1.0})
    assert data.reference.self_energies.by_element == {1: -13.6, 8: -2041.8}
