"""What `modelforge data convert` writes reads back to the same bits, and is complete or not there at all."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tomli
from rich.console import Console
from toy_experiment import TOML, water, waters

from modelforge.convert import convert
from modelforge.data.detection import DataOnly, load_data
from modelforge.data.sources.gather import read
from modelforge.data.sources.source import DataSource
from modelforge.data.store.store import open_store
from modelforge.data.structures import COLUMNS, LABELS, Structures
from modelforge.errors import UserError
from modelforge.evaluate import evaluate_files
from modelforge.experiment import load
from modelforge.train import train

QM = ["energy_key=U0", "energy_unit=hartree"]
FORMATS: dict[str, list[str]] = {
    "SPICE-1.1.4_n2.hdf5": [],
    "ani2x_minimal.hdf5": [],
    "carbon_reduced_100.xyz": ["forces_key=force", "virial_key=virial"],
    "deepmd_npy": [],
    "ethanol_reduced_100.xyz": ["energy_unit=kcal/mol"],
    "qm7x_reduced_100.xyz": [],
    "qm9_dataset_v1.1_ntc_10.hdf5": [
        "energy_key=internal_energy_at_0K",
        "dipole_key=dipole_moment_per_system",
        "partial_charges_key=partial_charges",
    ],
    "qm9_reduced_100.xyz": QM,
    "schnetpack_data.db": [],
    "small_aspirin_with_charge_spin.xyz": ["total_charge_key=charge", "spin_multiplicity_key=spin"],
    "spice_small_with_charges.xyz": ["total_charge_key=charge"],
    "test_dataset.hdf5": [],
    "test_dataset_grouped.hdf5": ["audit=report"],
}
FIRST_LABELS = {
    "SPICE-1.1.4_n2.hdf5": ("energy", "forces"),
    "carbon_reduced_100.xyz": ("energy", "forces", "stress"),
    "qm9_dataset_v1.1_ntc_10.hdf5": ("energy", "dipole", "partial_charges"),
    "qm9_reduced_100.xyz": ("energy",),
    "qm7x_reduced_100.xyz": (),
    "small_aspirin_with_charge_spin.xyz": ("energy", "forces", "total_charge", "spin_multiplicity"),
}


def source_of(path: Path, settings: list[str]) -> DataSource:
    return load_data([str(path)], settings).section.dataset


def structures_of(source: DataSource) -> Structures:
    return read(source.training_files()).structures


def written(source: DataSource, out: Path) -> DataSource:
    """Convert, and the source that the printed lines describe."""
    lines = list(convert(source, out))
    toml = "\n".join(lines[lines.index("[dataset]") :])
    return DataOnly.model_validate(tuples(tomli.loads(toml)), strict=True).dataset


def tuples(value: object) -> object:
    return {key: tuples(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def assert_equal(found: Structures, expected: Structures) -> None:
    """To the last bit; groups may bear other numbers, subsets and files other places in their lists."""
    for name in COLUMNS:
        if name not in ("group", "subset", "file", "index_in_file"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert names_of(found) == names_of(expected)
    assert partition(found.group) == partition(expected.group)


def names_of(structures: Structures) -> list[str]:
    return [structures.subset_names[number] for number in structures.subset]


def partition(groups: np.ndarray) -> list[int]:
    """For each structure the first one of its group."""
    first: dict[int, int] = {}
    return [first.setdefault(group, place) for place, group in enumerate(groups.tolist())]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_comes_back_from_text_and_from_a_store_to_the_last_bit(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    source = source_of(shared_data / "formats" / name, FORMATS[name])
    expected = structures_of(source)
    present = tuple(label for label in LABELS if expected.has(label).any())
    assert present == FIRST_LABELS.get(name, present)
    store = written(source, tmp_path / "kept")
    assert_equal(structures_of(store), expected)
    text = written(store.model_copy(update={"audit": source.audit}), tmp_path / "kept.xyz")
    assert_equal(structures_of(text), expected)


def everything(number: int) -> str:
    """A molecule with a label of every kind, in a group and a subset, with a weight."""
    random = np.random.default_rng(number)
    stress = " ".join(map(repr, (0.1 * np.diag(random.random(3))).ravel().tolist()))
    header = (
        f'Lattice="5 0 0 0 5 0 0 0 5" stress="{stress}" charge={number - 1} spin={number % 2 + 1} mol=m{number // 2} '
        f'config_type="kind {number % 2}" dipole="{random.random()!r} 0.1 -0.3" Q="{stress}" charges="0.25 -0.5 0.25" '
        f"config_weight={1 + 0.1 * number!r}"
    )
    return water(number, header=header)


EVERYTHING = [
    *(f"{label}_key={label}" for label in ("stress", "dipole")),
    "total_charge_key=charge",
    "spin_multiplicity_key=spin",
    "quadrupole_key=Q",
    "partial_charges_key=charges",
    "group_key=mol",
    "weight_key=config_weight",
]


@pytest.fixture
def whole(tmp_path: Path) -> DataSource:
    """Five structures with all labels."""
    (tmp_path / "all.xyz").write_text("".join(map(everything, range(5))))
    return source_of(tmp_path / "all.xyz", EVERYTHING)


def test_all_labels_groups_subsets_and_weights_are_kept(whole: DataSource, tmp_path: Path) -> None:
    expected = structures_of(whole)
    assert all(expected.has(label).all() for label in LABELS)
    assert len(set(expected.group.tolist())) == 3
    assert expected.weight.tolist() == [1 + 0.1 * number for number in range(5)]
    for name in ("a.xyz", "a"):
        assert_equal(structures_of(written(whole, tmp_path / name)), expected)


def test_what_is_said_is_what_was_written(whole: DataSource, tmp_path: Path) -> None:
    lines = list(convert(whole, tmp_path / "a.xyz"))
    labels = ", ".join(f"{label} of 5" for label in LABELS)
    assert lines[:2] == [f"5 structures written to {tmp_path}/a.xyz, with {labels}, in eV and angstrom", "read it with:"]
    assert lines[-2:] == ['group_key = "group"', 'weight_key = "config_weight"']


def test_two_stores_are_read_as_one_and_keep_their_groups_apart(whole: DataSource, tmp_path: Path) -> None:
    """Groups have the same numbers in both stores."""
    paths = []
    for name in ("a", "b"):
        list(convert(whole, tmp_path / name))
        paths.append(str(tmp_path / name))
    both = structures_of(load_data(paths).section.dataset)
    alone = structures_of(whole)
    assert partition(both.group) == [*partition(alone.group), *(5 + place for place in partition(alone.group))]
    assert both.place(6) == f"{tmp_path}/b:1"
    assert_equal(structures_of(written(load_data(paths).section.dataset, tmp_path / "c")), both)


@pytest.mark.parametrize("name", ["there.xyz", "there"])
def test_what_exists_is_not_overwritten(whole: DataSource, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError) as caught:
        list(convert(whole, tmp_path / name))
    assert str(caught.value) == f"--out: must not exist yet (got {tmp_path}/{name}); remove it, or choose another name"
    assert (tmp_path / name).read_text() == "mine"


def test_a_missing_parent_folder_is_told(whole: DataSource, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        list(convert(whole, tmp_path / "no" / "there.xyz"))
    assert str(caught.value) == f"--out: there is no folder {tmp_path}/no; make it, or choose another"


def test_a_relative_path_needs_no_folder(whole: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_equal(structures_of(written(whole, Path("here"))), structures_of(whole))


@pytest.mark.parametrize("name", ["out.xyz", "out"])
def test_a_source_that_breaks_near_its_end_leaves_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read in several parts, of which the first are written when the last one breaks."""
    monkeypatch.setattr("modelforge.data.sources.extxyz.read_parts.__kwdefaults__", {"text_size": 500})
    lines = waters(40).splitlines()
    (tmp_path / "broken.xyz").write_text("\n".join(lines[:-1]) + "\n")
    source = source_of(tmp_path / "broken.xyz", [])
    with pytest.raises(UserError, match=r"broken\.xyz:196: structure 39 announces 3 atoms, but the file ends after 2 of them"):
        list(convert(source, tmp_path / name))
    assert os.listdir(tmp_path) == ["broken.xyz"]


def test_a_broken_second_file_leaves_nothing(shared_data: Path, tmp_path: Path) -> None:
    whole = shared_data / "formats" / "test_dataset.hdf5"
    for name in ("a.hdf5", "b.hdf5"):
        shutil.copyfile(whole, tmp_path / name)
    content = (tmp_path / "b.hdf5").read_bytes()
    (tmp_path / "b.hdf5").write_bytes(content[: len(content) // 2])
    source = load_data([str(tmp_path / "a.hdf5"), str(tmp_path / "b.hdf5")]).section.dataset
    with pytest.raises(UserError, match=r"b\.hdf5"):
        list(convert(source, tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["a.hdf5", "b.hdf5"]


def test_a_disk_that_is_full_leaves_no_half_of_a_store(
    whole: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("modelforge.data.store.store.ColumnWriter.finish", full)
    with pytest.raises(UserError, match=r"^--out: the disk of .* is full"):
        list(convert(whole, tmp_path / "out"))
    assert os.listdir(tmp_path) == ["all.xyz"]


def test_a_store_opens_as_what_it_was_made_of(whole: DataSource, tmp_path: Path) -> None:
    list(convert(whole, tmp_path / "kept"))
    report = open_store(tmp_path / "kept").reading.report
    assert report.num_structures == 5
    assert {origin.label for origin in report.origins if origin.num_carriers == 5 and origin.label} == set(LABELS)


def test_a_potential_trained_on_a_store_is_evaluated_on_stores_and_on_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("water.xyz").write_text(waters(8))
    list(convert(source_of(Path("water.xyz"), []), Path("kept")))
    Path("x.toml").write_text(TOML.replace('"extxyz"', '"store"').replace("water.xyz", "kept"))
    train(load(Path("x.toml")), Console(file=io.StringIO()))
    of_text, of_store = (evaluate_files(Path("runs/x"), [name]) for name in ("water.xyz", "kept"))
    assert of_text["metrics"]["water"] == of_store["metrics"]["kept"]
    assert of_text["metrics"]["water"]["num_energy_labels"] == 8
    note = "the files were read with the usual keys and units of their format, extxyz"
    assert note in of_text["notes"]
    assert note not in of_store["notes"]


def test_wrong_units_stop_a_conversion_as_they_stop_a_run(shared_data: Path, tmp_path: Path) -> None:
    source = load_data([str(shared_data / "formats/ethanol_reduced_100.xyz")]).section.dataset
    with pytest.raises(UserError, match=r'set dataset\.energy_unit = "kcal/mol"'):
        list(convert(source, tmp_path / "x.xyz"))
    assert not list(tmp_path.iterdir())


def test_keys_that_look_like_labels_and_are_not_read_are_told(shared_data: Path, tmp_path: Path) -> None:
    carbon = load_data([str(shared_data / "formats/carbon_reduced_100.xyz")]).section.dataset
    lines = list(convert(carbon, tmp_path / "carbon.xyz"))
    assert "not read, though it looks like a label: 'force' (--set forces_key=\"force\")" in lines
    qm9 = load_data([str(shared_data / "formats/qm9_reduced_100.xyz")]).section.dataset
    with pytest.raises(UserError, match=r'no label was read, but there are keys that look like some: .*energy_key="U0"'):
        list(convert(qm9, tmp_path / "qm9.xyz"))
    assert not (tmp_path / "qm9.xyz").exists()
