"""Systems of DeePMD: the numbers that numpy reads from their arrays, and errors with their place."""

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from modelforge.data.sources.deepmd import DeePMD, read_parts
from modelforge.data.sources.gather import read
from modelforge.data.sources.read_report import Reading
from modelforge.data.structures import Structures, concatenate
from modelforge.errors import UserError

RNG = np.random.default_rng(0)
NO_SYSTEM = "must name a DeePMD system, a folder with type.raw, or folders of them"
BOX = np.array([4.0, 0, 0, 0.5, 5, 0, 0, 0, 6])


def reading(path: Path, **options: object) -> Reading:
    return read(DeePMD(path=str(path), **options).training_files())


def message_for(path: Path, **options: object) -> str:
    """The error that reading a system gives, without the folder."""
    with pytest.raises(UserError) as caught:
        reading(path, **options)
    return str(caught.value).replace(f"{path.parent}/", "")


def write_set(
    system: Path, name: str, num_frames: int, *, num_atoms: int = 3, leave: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """One set of random frames, and its arrays."""
    half = RNG.normal(size=(num_frames, 3, 3))
    arrays = {
        "coord": RNG.normal(size=(num_frames, 3 * num_atoms)),
        "box": np.tile(BOX, (num_frames, 1)),
        "energy": RNG.normal(size=num_frames),
        "force": RNG.normal(size=(num_frames, 3 * num_atoms)),
        "virial": (half + half.swapaxes(1, 2)).reshape(-1, 9),
    }
    folder = system / name
    folder.mkdir(parents=True)
    arrays = {key: array for key, array in arrays.items() if key not in leave}
    for key, array in arrays.items():
        np.save(folder / f"{key}.npy", array)
    return arrays


def write_system(path: Path, *, nums_frames: tuple[int, ...] = (4, 2), **options: object) -> list[dict[str, np.ndarray]]:
    """A system of water molecules, and the arrays of its sets."""
    sets = [write_set(path, f"set.{number:03}", count, **options) for number, count in enumerate(nums_frames)]
    (path / "type.raw").write_text("1\n0\n0\n")
    (path / "type_map.raw").write_text("H\nO\n")
    return sets


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """Six frames of water in two sets."""
    write_system(tmp_path / "water")
    return tmp_path / "water"


def test_the_example(shared_data: Path) -> None:
    path = shared_data / "formats/deepmd_npy"
    found = reading(path)
    structures = found.structures
    arrays = {name: np.load(path / f"set.000/{name}.npy").astype(np.float64) for name in ("coord", "energy", "force", "box")}
    numbers = np.array([8, 1])[np.loadtxt(path / "type.raw", dtype=int)]
    np.testing.assert_array_equal(structures.atomic_numbers, np.tile(numbers, 80))
    np.testing.assert_array_equal(structures.positions, arrays["coord"].reshape(-1, 3))
    np.testing.assert_array_equal(structures.energy, arrays["energy"])
    np.testing.assert_array_equal(structures.forces, arrays["force"].reshape(-1, 3))
    np.testing.assert_array_equal(structures.cell, arrays["box"].reshape(-1, 3, 3))
    assert structures.periodic.all()
    assert np.isnan(structures.stress).all()
    assert structures.place(7) == f"{path}:7"
    assert found.report.origin("energy_key").unit == "eV (float32 in the file: steps of 0.002 eV)"
    assert found.report.origin("virial_key") is None


def test_sets_follow_each_other(tmp_path: Path) -> None:
    sets = write_system(tmp_path / "water", nums_frames=(3, 1, 2))
    found = reading(tmp_path / "water")
    structures = found.structures
    for key, ours in (("coord", structures.positions), ("force", structures.forces), ("energy", structures.energy)):
        np.testing.assert_array_equal(ours.ravel(), np.concatenate([some[key].ravel() for some in sets]))
    assert structures.index_in_file.tolist() == list(range(6))
    assert structures.num_atoms.tolist() == [3] * 6
    assert structures.atomic_numbers.tolist() == [8, 1, 1] * 6
    assert structures.group.tolist() == list(range(6))
    assert found.report.keys == {"energy": 6, "virial": 6}
    assert found.report.columns == {"force": 6}
    assert found.report.origin("energy_key").unit == "eV"


def test_a_virial_is_minus_the_stress_times_the_volume(tmp_path: Path) -> None:
    sets = write_system(tmp_path / "water", nums_frames=(2,))
    found = reading(tmp_path / "water")
    virial = sets[0]["virial"].reshape(-1, 3, 3)
    np.testing.assert_allclose(found.structures.stress, -virial / (4 * 5 * 6), rtol=1e-14)
    assert found.report.origin("virial_key").num_carriers == 2
    assert found.report.origin("virial_key").unit == "eV"


def test_units_are_ev_and_angstrom_unless_given(system: Path) -> None:
    plain, given = reading(system).structures, reading(system, energy_unit="hartree", length_unit="bohr").structures
    np.testing.assert_allclose(given.energy, plain.energy * 27.211386245988)
    np.testing.assert_allclose(given.positions, plain.positions * 0.529177210903)
    np.testing.assert_allclose(given.forces, plain.forces * 51.4220674763)
    np.testing.assert_allclose(given.stress, plain.stress * 27.211386245988 / 0.529177210903**3)


def test_labels_that_some_sets_lack_are_missing_there(tmp_path: Path) -> None:
    write_set(tmp_path / "a", "set.001", 2, leave=("force", "virial"))
    write_system(tmp_path / "a", nums_frames=(3,))
    found = reading(tmp_path / "a")
    assert found.structures.has("forces").tolist() == [True] * 3 + [False] * 2
    assert found.structures.has("stress").tolist() == [True] * 3 + [False] * 2
    assert found.report.origin("forces_key").num_carriers == 3


def test_a_system_without_a_box_needs_the_file_nopbc(system: Path) -> None:
    for box in system.glob("set.*/box.npy"):
        box.unlink()
    assert message_for(system) == (
        "water/set.000/box.npy: missing; add the boxes, or an empty file water/nopbc if there are none"
    )
    (system / "nopbc").touch()
    assert message_for(system) == (
        "water/set.000/virial.npy: must not be there, as water/nopbc says that there is no volume; remove one"
    )
    structures = reading(system, virial_key="other").structures
    assert not structures.periodic.any()
    assert not structures.cell.any()


def test_mixed_types_and_their_padding(tmp_path: Path) -> None:
    path = tmp_path / "mixed"
    some = write_system(path, nums_frames=(3,))[0]
    (path / "type.raw").write_text("0\n0\n0\n")
    np.save(path / "set.000/real_atom_types.npy", np.array([[1, 0, 0], [1, 1, -1], [-1, 0, -1]]))
    structures = reading(path).structures
    assert structures.num_atoms.tolist() == [3, 2, 1]
    assert structures.atomic_numbers.tolist() == [8, 1, 1, 8, 8, 1]
    kept = [0, 1, 2, 3, 4, 7]
    np.testing.assert_array_equal(structures.positions, some["coord"].reshape(-1, 3)[kept])
    np.testing.assert_array_equal(structures.forces, some["force"].reshape(-1, 3)[kept])


def test_types_without_names_take_those_of_the_experiment(system: Path) -> None:
    expected = reading(system).structures.atomic_numbers
    (system / "type_map.raw").unlink()
    assert message_for(system) == (
        "water/type_map.raw: missing or empty, so that the elements are unknown; name them in dataset.type_map, as in "
        'type_map = ["O", "H"] for the types 0 and 1'
    )
    np.testing.assert_array_equal(reading(system, type_map=["H", "O"]).structures.atomic_numbers, expected)
    assert message_for(system, type_map=["H", "Water"]) == (
        "dataset.type_map: must name elements, like O and H (got 'Water' for type 1)"
    )


@pytest.mark.parametrize("part_atoms", [1, 7, 10_000])
def test_the_size_of_parts_changes_nothing(system: Path, part_atoms: int) -> None:
    section = DeePMD(path=str(system), virial_key="virial")
    whole = concatenate([part.structures for part in section.read_file(system)])
    parts = [part.structures for part in read_parts(system, section, part_atoms=part_atoms)]
    assert len(parts) == {1: 6, 7: 3, 10_000: 2}[part_atoms]
    for field in fields(Structures):
        if field.name != "group":
            np.testing.assert_array_equal(getattr(concatenate(parts), field.name), getattr(whole, field.name))


def test_other_shapes_orders_and_types_of_the_same_numbers(system: Path) -> None:
    expected = reading(system).structures
    folder = system / "set.000"
    for name, shape in (("coord", (4, 3, 3)), ("box", (4, 3, 3)), ("energy", (4, 1)), ("virial", (4, 3, 3))):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy").reshape(shape))
    np.save(folder / "force.npy", np.asfortranarray(np.load(folder / "force.npy")).astype(">f8"))
    for field in fields(Structures):
        np.testing.assert_array_equal(getattr(reading(system).structures, field.name), getattr(expected, field.name))


def test_a_single_frame_may_have_no_dimension_for_frames(tmp_path: Path) -> None:
    some = write_system(tmp_path / "a", nums_frames=(1,))[0]
    for name in ("coord", "box", "force", "virial"):
        np.save(tmp_path / f"a/set.000/{name}.npy", some[name][0])
    structures = reading(tmp_path / "a").structures
    np.testing.assert_array_equal(structures.positions.ravel(), some["coord"][0])
    np.testing.assert_array_equal(structures.cell.ravel(), BOX)


def test_systems_are_found_below_folders_and_by_globs(tmp_path: Path) -> None:
    for name in ("b/deep", "a", "b/c"):
        write_system(tmp_path / name, nums_frames=(1,))
    (tmp_path / "readme.txt").touch()
    everything = [tmp_path / name for name in ("a", "b/c", "b/deep")]
    section = DeePMD(path="unused")
    assert section.expand([str(tmp_path)], key="dataset.path") == everything
    assert section.expand([f"{tmp_path}/*"], key="dataset.path") == everything
    assert section.expand([f"{tmp_path}/b/*", str(tmp_path)], key="dataset.path") == [*everything[1:], everything[0]]
    structures = reading(tmp_path).structures
    assert structures.files == tuple(map(str, everything))
    assert structures.file.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b", f"dataset.path: 'FOLDER/b' {NO_SYSTEM} (got a folder without)"),
        ("x.npy", f"dataset.path: 'FOLDER/x.npy' {NO_SYSTEM} (got a file)"),
        ("wate", "dataset.path: 'FOLDER/wate' matches no folder (did you mean 'water'?)"),
        ("*.no", "dataset.path: 'FOLDER/*.no' matches no folder"),
    ],
)
def test_a_path_without_systems_is_told(system: Path, name: str, message: str) -> None:
    folder = system.parent
    (folder / "b").mkdir()
    (folder / "x.npy").touch()
    with pytest.raises(UserError) as caught:
        DeePMD(path=str(folder / name)).training_files()
    assert str(caught.value).replace(str(folder), "FOLDER") == message


def test_groups_and_subsets_may_be_the_systems_or_arrays(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_system(tmp_path / name)
    np.save(tmp_path / "a/set.000/run.npy", np.array([3, 3, 1, 1]))
    np.save(tmp_path / "b/set.000/run.npy", np.array(["x", "y", "x", "3"]))
    found = reading(tmp_path, group_key="system", subset_key="system")
    assert found.structures.group.tolist() == [0] * 6 + [6] * 6
    assert found.structures.subset_names == ("a", "b")
    assert found.report.origin("group_key").num_carriers == 12
    runs = reading(tmp_path, group_key="run", subset_key="run").structures
    assert runs.group.tolist() == [0, 0, 2, 2, 4, 5, 6, 7, 6, 0, 10, 11]
    assert [runs.subset_names[index] for index in runs.subset] == ["3", "3", "1", "1", "", "", "x", "y", "x", "3", "", ""]


def test_other_labels_and_weights(system: Path) -> None:
    for folder, count in ((system / "set.000", 4), (system / "set.001", 2)):
        np.save(folder / "dipole.npy", np.ones((count, 3)))
        np.save(folder / "charge.npy", np.full((count, 3), 0.5))
        np.save(folder / "w.npy", np.arange(count))
        np.save(folder / "fparam.npy", np.ones((count, 2)))
    found = reading(system, dipole_key="dipole", partial_charges_key="charge", weight_key="w")
    assert (found.structures.dipole == 1).all()
    assert (found.structures.partial_charges == 0.5).all()
    assert found.structures.weight.tolist() == [0, 1, 2, 3, 0, 1]
    assert found.report.keys == {"dipole": 6, "energy": 6, "fparam": 6, "virial": 6, "w": 6}
    assert found.report.columns == {"charge": 6, "force": 6}


def test_the_bytes_of_a_system_are_its_arrays_and_texts(system: Path) -> None:
    (system / "nopbc").touch()
    (system / "notes.txt").touch()
    arrays = [f"set.00{number}/{name}.npy" for number in (0, 1) for name in ("box", "coord", "energy", "force", "virial")]
    expected = sorted(system / name for name in ["nopbc", *arrays, "type.raw", "type_map.raw"])
    assert list(DeePMD(path="unused").bytes_of(system)) == expected


def save(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    """A damage that changes an array of the first set."""
    return lambda system: np.save(system / f"set.000/{name}.npy", change(np.load(system / f"set.000/{name}.npy")))


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[2] = value
        return array

    return change


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda system: (system / name).write_bytes(content)


def truncate(system: Path) -> None:
    path = system / "set.000/force.npy"
    path.write_bytes(path.read_bytes()[:200])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "frames": (
        save("energy", lambda array: array[:3]),
        "water/set.000/energy.npy: must have 4 frames, as coord.npy has, with one number each (got shape (3,))",
    ),
    "atoms": (
        save("force", lambda array: array[:, :6]),
        "water/set.000/force.npy: must have 4 frames, as coord.npy has, with 9 numbers each (got shape (4, 6))",
    ),
    "coordinates": (
        save("coord", lambda array: array[:, :6]),
        "water/set.000/coord.npy: must have 4 frames, as coord.npy has, with 9 numbers each (got shape (4, 6))",
    ),
    "virial": (
        save("virial", lambda array: array[:, :5]),
        "water/set.000/virial.npy: must have 4 frames, as coord.npy has, with 9 or 6 numbers each (got shape (4, 5))",
    ),
    "nan": (save("coord", with_value(np.nan)), "water/set.000/coord.npy: frame 2: must be finite (got nan)"),
    "huge": (
        save("force", with_value(-1e300)),
        "water/set.000/force.npy: frame 2: must be finite, or nan where it is missing (got 1e+300)",
    ),
    "inf": (
        save("energy", with_value(np.inf)),
        "water/set.000/energy.npy: frame 2: must be finite, or nan where it is missing (got inf)",
    ),
    "box": (
        save("box", with_value(0.0)),
        "water/set.000/box.npy: frame 2: must be three independent vectors (got 0 0 0 0 0 0 0 0 0)",
    ),
    "texts": (save("energy", lambda array: array.astype("U5")), "water/set.000/energy.npy: must be numbers (got texts)"),
    "truth values": (
        save("energy", lambda array: array > 0),
        "water/set.000/energy.npy: must be a npy file with an array of numbers (got something else)",
    ),
    "truncated": (truncate, "water/set.000/force.npy: must have 416 bytes, as its header says (got 200); is it truncated?"),
    "empty": (
        save("coord", lambda array: array[:0]),
        "water/set.000/coord.npy: must hold at least one frame (got an array of shape (0, 9))",
    ),
    "no array": (
        write("set.000/energy.npy", b"PK\3\4 zip"),
        "water/set.000/energy.npy: must be a npy file with an array of numbers (got something else)",
    ),
    "no coordinates": (
        lambda system: (system / "set.001/coord.npy").unlink(),
        "water/set.001/coord.npy: missing; each set needs the coordinates of its frames",
    ),
    "types": (write("type.raw", b"0 1 x"), "water/type.raw: must be one number from 0 for each atom (got 'x')"),
    "no types": (write("type.raw", b""), "water/type.raw: must be one number from 0 for each atom (got 'nothing')"),
    "type": (
        write("type.raw", b"0 1 2"),
        "water/type.raw: must be types from 0 to 1, as there are 2 names (got 2)",
    ),
    "element": (
        write("type_map.raw", b"H OW"),
        "water/type_map.raw: must name elements, like O and H (got 'OW' for type 1)",
    ),
    "weights": (
        lambda system: np.save(system / "set.000/w.npy", [0.0, -1, 0, 0]),
        "water/set.000/w.npy: frame 1: must be 0 or more (got -1)",
    ),
    "no sets": (
        lambda system: [shutil.rmtree(folder) for folder in system.glob("set.*")],
        "water: must hold a folder set.* with coord.npy (got none)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_with_file_and_array(system: Path, name: str) -> None:
    fault, message = FAULTS[name]
    fault(system)
    assert message_for(system, weight_key="w") == message


def test_pickles_are_not_read(system: Path) -> None:
    np.save(system / "set.000/energy.npy", np.array([None] * 4), allow_pickle=True)
    assert "must be a npy file with an array of numbers" in message_for(system)


def test_raw_files_are_told_how_to_convert(tmp_path: Path) -> None:
    path = tmp_path / "water"
    path.mkdir()
    for name, text in (("type", "0\n"), ("type_map", "H\n"), ("coord", "0 0 0\n"), ("energy", "1\n")):
        (path / f"{name}.raw").write_text(text)
    assert message_for(path) == (
        "water: must hold a folder set.* with coord.npy (got none); convert its raw files: "
        "dpdata.LabeledSystem('water', fmt='deepmd/raw').to('deepmd/npy', 'water_npy')"
    )
