"""Several sources as one: each with its own keys and units, together one data set."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from toy_experiment import TOML, water, waters

from modelforge.atoms.units import KJ_PER_MOL
from modelforge.data.prepare import prepare
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.gather import read
from modelforge.data.sources.mixed import Mixed
from modelforge.data.sources.read_report import Reading
from modelforge.data.structures import Structures, subset_factors
from modelforge.describe import describe
from modelforge.errors import UserError
from modelforge.evaluate import evaluate_files
from modelforge.experiment import LoadedExperiment, load, resolved_toml
from modelforge.train import train

KCAL = 4.184 * KJ_PER_MOL
BEFORE, AFTER = TOML.split("[dataset]")[0], "[training]" + TOML.split("[training]")[1]
OTHER_KEYS = "Properties=species:S:1:pos:R:3:f:R:3"
DATASET = """\
[dataset]
name = "mixed"
[dataset.split]
counts = [5, 2, 0]
[dataset.sources.ours]
name = "extxyz"
path = "ours.xyz"
group_key = "run"
[dataset.sources.theirs]
name = "extxyz"
path = "theirs.xyz"
energy_key = "E"
forces_key = "f"
energy_unit = "kcal/mol"
group_key = "molecule"
"""
Load = Callable[..., LoadedExperiment]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads an experiment on the data of two groups, who share no key, no unit, but names of groups."""
    monkeypatch.chdir(tmp_path)
    ours = [water(number, header=f"run=a{number % 2} config_type={'cold' if number else 'hot'}") for number in range(4)]
    theirs = [
        water(number, energy=f"E={-47941.0 - number}", header=f"molecule=a{number % 3}", properties=OTHER_KEYS)
        for number in range(10, 13)
    ]
    Path("ours.xyz").write_text("".join(ours))
    Path("theirs.xyz").write_text("".join(theirs))

    def load_with(*changes: tuple[str, str], overrides: tuple[str, ...] = ()) -> LoadedExperiment:
        dataset = DATASET
        for old, new in changes:
            assert old in dataset
            dataset = dataset.replace(old, new, 1)
        Path("x.toml").write_text(BEFORE + dataset + AFTER)
        return load(Path("x.toml"), overrides)

    return load_with


def reading(loaded: LoadedExperiment) -> Reading:
    return read(loaded.experiment.dataset.training_files())


def message_of(loaded: Load, *changes: tuple[str, str]) -> str:
    with pytest.raises(UserError) as caught:
        loaded(*changes)
    return str(caught.value)


def names_of(structures: Structures) -> list[str]:
    return [structures.subset_names[number] for number in structures.subset]


def test_each_source_is_read_with_its_own_keys_and_units(loaded: Load) -> None:
    structures = reading(loaded()).structures
    expected = [-2079.0, -2078.99, -2078.98, -2078.97, *(KCAL * energy for energy in (-47951.0, -47952.0, -47953.0))]
    np.testing.assert_allclose(structures.energy, expected, rtol=1e-12)
    last = [float(number) for number in Path("theirs.xyz").read_text().splitlines()[-1].split()[4:]]
    np.testing.assert_allclose(structures.forces[-1], np.array(last) * KCAL, rtol=1e-12)
    assert [structures.place(number) for number in (3, 4)] == [f"{Path.cwd()}/ours.xyz:3", f"{Path.cwd()}/theirs.xyz:0"]


def test_subsets_bear_the_name_of_their_source(loaded: Load) -> None:
    assert names_of(reading(loaded()).structures) == ["ours/hot", *["ours/cold"] * 3, *["theirs"] * 3]


def test_a_source_counts_as_much_as_its_subset_weight_says(loaded: Load) -> None:
    data = prepare(
        loaded(("[dataset.split]", "subset_weights = { theirs = 0.5 }\n[dataset.split]")).experiment.dataset, weights={}
    )
    assert data.subset_weights == {"theirs": 0.5}


def test_groups_of_the_same_name_in_different_sources_are_different_groups(loaded: Load) -> None:
    """Both have groups a0 and a1."""
    groups = reading(loaded()).structures.group.tolist()
    assert groups[0] == groups[2] != groups[1] == groups[3]
    assert len(set(groups[4:])) == 3
    assert not set(groups[:4]) & set(groups[4:])


def test_structures_without_a_group_get_none_of_another_source(loaded: Load) -> None:
    groups = reading(loaded(('group_key = "run"\n', ""))).structures.group
    assert len(np.unique(groups)) == 7


def test_test_sets_of_the_same_name_are_one_set(loaded: Load) -> None:
    for name, text in {"a": waters(2), "b": waters(3)}.items():
        Path(f"{name}.xyz").write_text(text)
    tests = loaded(
        ('path = "ours.xyz"', 'path = "ours.xyz"\ntest_paths = { hot = "a.xyz" }'),
        ('path = "theirs.xyz"', 'path = "theirs.xyz"\ntest_paths = { hot = "b.xyz", cold = "b.xyz" }'),
    ).experiment.dataset.test_files()
    assert {name: [path.name for some in files for path in some.paths] for name, files in tests.items()} == {
        "hot": ["a.xyz", "b.xyz"],
        "cold": ["b.xyz"],
    }
    structures = read(tests["hot"]).structures
    assert np.isfinite(structures.energy).tolist() == [True, True, False, False, False]  # the second has the keys of ours


def test_sources_of_different_formats_mix(loaded: Load) -> None:
    system = Path("system/set.000")
    system.mkdir(parents=True)
    Path("system/type.raw").write_text("0\n1\n1\n")
    Path("system/type_map.raw").write_text("O\nH\n")
    for name, array in {"coord": np.arange(18.0).reshape(2, 9), "energy": np.array([-5.0, -6.0])}.items():
        np.save(system / f"{name}.npy", array)
    Path("system/nopbc").touch()
    found = reading(
        loaded(("[dataset.sources.ours]", '[dataset.sources.deep]\nname = "deepmd"\npath = "system"\n[dataset.sources.ours]'))
    )
    assert found.structures.energy[:2].tolist() == [-5.0, -6.0]
    assert names_of(found.structures)[:3] == ["deep", "deep", "ours/hot"]
    assert found.report.homes == ("keys", "per-atom keys")  # neither "arrays" nor "header keys" of both


def test_keys_of_the_whole_are_refused_inside_a_source_at_their_place(loaded: Load) -> None:
    message = message_of(loaded, ('path = "theirs.xyz"', 'path = "theirs.xyz"\nsplit.seed = 3\naudit = "report"'))
    remedy = "has no effect in one of several sources; set"
    assert message.splitlines() == [
        f"x.toml:18: dataset.sources.theirs.split: {remedy} dataset.split",
        f"x.toml:19: dataset.sources.theirs.audit: {remedy} dataset.audit",
    ]


def test_a_split_by_files_is_refused(loaded: Load) -> None:
    message = message_of(loaded, ("counts = [5, 2, 0]", 'strategy = "files"\nvalidation_files = ["ours.xyz"]'))
    assert message == 'x.toml:10: dataset.split.strategy: must not be "files" where sources are mixed; use "random" or "group"'


def test_a_mistake_in_a_source_has_the_place_of_that_source(loaded: Load) -> None:
    there = "dataset.sources.theirs"
    assert message_of(loaded, ('"kcal/mol"', '"kcal"')).startswith(f"x.toml:20: {there}.energy_unit: unknown choice 'kcal'")
    assert message_of(loaded, ('name = "extxyz"\npath = "theirs', 'name = "mixed"\npath = "theirs')).startswith(
        f"x.toml:16: {there}.name: unknown choice 'mixed'"
    )
    absent = loaded(("theirs.xyz", "other.xyz"))
    with pytest.raises(UserError, match=r"^dataset\.sources\.theirs\.path: '.*other\.xyz' matches no file"):
        absent.experiment.dataset.training_files()


def test_no_source_with_the_labels_is_an_error_at_the_first_key(loaded: Load) -> None:
    mistaken = loaded(('"E"', '"Q"'), ('path = "ours.xyz"', 'path = "ours.xyz"\nenergy_key = "P"'))
    with pytest.raises(
        UserError, match=r"^dataset\.sources\.ours\.energy_key: 'P' is in no structure of .*ours\.xyz, .*theirs"
    ):
        prepare(mistaken.experiment.dataset, weights={"energy": 1.0})


def test_one_source_without_the_labels_of_the_others_is_noted(loaded: Load) -> None:
    data = prepare(loaded(('energy_key = "E"\n', "")).experiment.dataset, weights={"energy": 1.0})
    (note,) = [note for note in data.notes if note.startswith("dataset.sources")]
    assert note.startswith("dataset.sources.theirs.energy_key: 'energy' is in no structure of ")
    whole = prepare(loaded().experiment.dataset, weights={"energy": 1.0})
    assert not [note for note in whole.notes if note.startswith("dataset.sources")]


def test_a_key_that_a_source_names_must_be_there(loaded: Load) -> None:
    with pytest.raises(UserError, match=r"dataset\.sources\.theirs\.energy_key: 'e' is in no structure of .*did you mean"):
        prepare(loaded(('"E"', '"e"')).experiment.dataset, weights={"energy": 1.0})


def test_the_resolved_experiment_reads_again_to_an_equal_one(loaded: Load) -> None:
    first = loaded(overrides=('dataset.sources.ours.energy_unit="eV"',))
    text = resolved_toml(first.experiment, first.origins)
    lines = text.splitlines()
    table = lines[lines.index("[dataset.sources.theirs]") :]
    assert 'energy_key = "E"  # x.toml:18' in table
    assert 'energy_unit = "kcal/mol"  # x.toml:20' in table
    assert any(line.startswith('subset_key = "config_type"') and line.endswith("default") for line in table)
    assert 'energy_unit = "eV"  # --set' in lines
    Path("resolved").mkdir()
    Path("resolved/experiment.toml").write_text(text)
    assert load(Path("resolved/experiment.toml")).experiment == first.experiment


def test_other_files_are_evaluated_with_the_keys_of_the_first_source_and_that_is_said(loaded: Load) -> None:
    train(loaded(overrides=("runtime.run_folder=run",)), Console(file=io.StringIO()))
    results = evaluate_files(Path("run"), ["ours.xyz"])
    assert results["metrics"]["ours"]["num_energy_labels"] == 4
    assert "the files were read with the keys and units of dataset.sources.ours" in results["notes"]


def test_the_reference_tells_of_mixing() -> None:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(describe("dataset.mixed"))
    told = console.file.getvalue()
    assert told.startswith('[dataset] name = "mixed"\nSeveral data sources mixed;')
    assert "sources" in told
    assert "`<name>/<subset>`" in told


def test_a_source_in_the_wrong_unit_is_found_among_others_that_are_right(shared_data: Path, tmp_path: Path) -> None:
    sources = {
        "acac": {"name": "extxyz", "path": (str(shared_data / "acac/train_300K.xyz"),)},
        "ethanol": {"name": "extxyz", "path": (str(shared_data / "formats/ethanol_reduced_100.xyz"),)},
    }
    with pytest.raises(UserError) as caught:
        prepare(Mixed(name="mixed", sources=sources), weights={"energy": 1.0, "forces": 1.0})
    first = str(caught.value).splitlines()[0]
    assert first.startswith("dataset.sources.ethanol.energy_unit: in ")
    assert 'set dataset.sources.ethanol.energy_unit = "kcal/mol"' in first
    sources["ethanol"]["energy_unit"] = "kcal/mol"
    assert not prepare(Mixed(name="mixed", sources=sources), weights={"energy": 1.0, "forces": 1.0}).audit.findings()


def test_a_file_in_the_wrong_unit_is_found_among_others_that_are_right(shared_data: Path) -> None:
    paths = (str(shared_data / "acac/train_300K.xyz"), str(shared_data / "formats/ethanol_reduced_100.xyz"))
    with pytest.raises(UserError, match=r'^dataset\.energy_unit: in .*ethanol_reduced_100\.xyz: .*"kcal/mol"'):
        prepare(ExtendedXYZ(path=paths), weights={"energy": 1.0, "forces": 1.0})


def test_a_whole_source_can_be_weighted_by_its_name(loaded: Load) -> None:
    data = prepare(
        loaded(("[dataset.split]", "subset_weights = { ours = 3.0 }\n[dataset.split]")).experiment.dataset, weights={}
    )
    factors = subset_factors(data.structures, data.subset_weights)
    assert dict(zip(data.structures.subset_names, factors.tolist(), strict=True)) == {
        "ours/hot": 3.0,
        "ours/cold": 3.0,
        "theirs": 1.0,
    }
