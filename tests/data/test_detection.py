"""Files that are named on the command line: which format they have, and the section that reads them."""

from pathlib import Path

import pytest
from toy_experiment import waters

from modelforge.convert import convert
from modelforge.data.detection import format_of, load_data
from modelforge.data.sources.deepmd import DeePMD
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.stored import Stored
from modelforge.errors import UserError


@pytest.fixture(autouse=True)
def _work_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("water.xyz").write_text(waters(3))


def message_of(paths: list[str], settings: list[str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_data(paths, settings or [])
    return str(caught.value).replace(str(Path.cwd()), "DIR")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.xyz", "extxyz"),
        ("a.extxyz", "extxyz"),
        ("A.XYZ", "extxyz"),
        ("a.h5", "hdf5"),
        ("a.hdf5", "hdf5"),
        ("a.hdf", "hdf5"),
        ("a.npz", "npz"),
        ("a.db", "ase"),
        ("a.aselmdb", "ase"),
    ],
)
def test_the_ending_tells_the_format(name: str, expected: str) -> None:
    Path(name).touch()
    assert format_of([name]) == expected


def test_a_folder_is_a_store_or_systems_of_deepmd() -> None:
    list(convert(load_data(["water.xyz"]).section.dataset, Path("kept")))
    Path("systems/water").mkdir(parents=True)
    assert (format_of(["kept"]), format_of(["systems"]), format_of(["systems/water"])) == ("store", "deepmd", "deepmd")
    assert isinstance(load_data(["kept"]).section.dataset, Stored)
    assert isinstance(load_data(["systems"]).section.dataset, DeePMD)


def test_globs_and_several_files_are_read_together() -> None:
    Path("more.xyz").write_text(waters(2))
    section = load_data(["water.xyz", "m*.xyz"]).section.dataset
    assert isinstance(section, ExtendedXYZ)
    assert [path.name for some in section.training_files() for path in some.paths] == ["water.xyz", "more.xyz"]


def test_settings_are_keys_of_the_data_set_with_or_without_its_name() -> None:
    section = load_data(["water.xyz"], ['energy_unit="kcal/mol"', "dataset.energy_key=E"]).section.dataset
    assert isinstance(section, ExtendedXYZ)
    assert (section.energy_unit, section.energy_key) == ("kcal/mol", "E")


@pytest.mark.parametrize("setting", ["name=extxyz", 'name="extxyz"', "dataset.name = extxyz"])
def test_a_format_may_be_named_where_the_ending_says_nothing(setting: str) -> None:
    Path("water.txt").write_text(waters(3))
    assert isinstance(load_data(["water.txt"], [setting]).section.dataset, ExtendedXYZ)


def test_files_of_no_format_or_of_two_are_refused() -> None:
    Path("water.txt").touch()
    Path("water.npz").touch()
    assert message_of(["water.txt"]) == (
        "FILE: water.txt: no known format; known are .xyz, .extxyz, .h5, .hdf5, .hdf, .npz, .db, .aselmdb; "
        "name it with --set name=extxyz"
    )
    assert message_of(["water.xyz", "water.npz"]) == (
        "FILE: must all have one format (got extxyz, npz); name those of one format only"
    )


def test_a_missing_file_and_a_misspelt_setting_are_told_with_what_is_near() -> None:
    assert message_of(["watr.xyz"]) == "FILE: 'watr.xyz' matches no file: looked for DIR/watr.xyz (did you mean 'water.xyz'?)"
    assert message_of(["water.xyz"], ["energi_unit=eV"]) == (
        "--set dataset.energi_unit=eV: dataset.energi_unit: unknown key (did you mean energy_unit?)"
    )
