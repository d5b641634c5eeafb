"""Extended XYZ: the structures and labels that ASE finds, to the last bit, and errors with their place."""

import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict
from pydantic import ValidationError

from modelforge.data.sources.extxyz import ExtendedXYZ, read_extxyz, read_parts
from modelforge.data.sources.extxyz.header import numbers, split_header, truths, unquoted
from modelforge.data.sources.gather import read
from modelforge.data.sources.paths import expand_paths
from modelforge.data.sources.read_report import Reading
from modelforge.data.structures import COLUMNS, Structures, concatenate
from modelforge.errors import UserError

HYDROXYL = """2
Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5
H 0 0 0 1 2 3
O 0 0 1 4 5 6
"""
SHARED_FILES = {
    "acac/train_300K.xyz": {},
    "acac/test_MD_300K.xyz": {},
    "acac/isolated_atoms.xyz": {},
    "periodic/alexandria-random-1k.xyz": {"stress_key": "stress"},
    "periodic/water_64_molecules.xyz": {},
    "formats/ethanol_reduced_100.xyz": {},
    "formats/carbon_reduced_100.xyz": {"forces_key": "force", "group_key": "castep_file_name"},
    "formats/qm9_reduced_100.xyz": {"energy_key": "U0"},
    "formats/qm7x_reduced_100.xyz": {},
    "formats/small_aspirin_with_charge_spin.xyz": {},
    "formats/spice_small_with_charges.xyz": {"subset_key": "data_id"},
}


def read_text(folder: Path, text: str, **options: str) -> Structures:
    return read_text_with_report(folder, text, **options).structures


def read_text_with_report(folder: Path, text: str, **options: str) -> Reading:
    path = folder / "x.xyz"
    path.write_text(text, newline="")
    return read([ExtendedXYZ(path="x.xyz", **options).files([path])])


def message_for(folder: Path, text: str, **options: str) -> str:
    """The error that reading a text gives, without the folder."""
    with pytest.raises(UserError) as caught:
        read_text(folder, text, **options)
    return str(caught.value).replace(f"{folder}/", "")


def with_header(header: str) -> str:
    return HYDROXYL.replace("energy=-1.5", header)


def found_by_ase(atoms: Atoms, key: str) -> np.ndarray | float | None:
    """A label, wherever this version of ASE puts it."""
    results = atoms.calc.results if atoms.calc else {}
    for home in (results, atoms.info, atoms.arrays):
        if key in home:
            return home[key]
    return None


def assert_same(ours: np.ndarray, theirs: np.ndarray | float | None) -> None:
    """Equal bits, or NaN where ASE finds nothing."""
    if theirs is None:
        assert np.isnan(ours).all()
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", SHARED_FILES)
def test_reads_what_ase_reads(shared_data: Path, name: str) -> None:
    section = ExtendedXYZ(path=name, **SHARED_FILES[name])
    structures = read_extxyz(shared_data / name, section)
    frames = ase.io.read(shared_data / name, ":")
    assert len(structures) == len(frames)
    for index, atoms in enumerate(frames):
        own = slice(*structures.offsets[index : index + 2])
        np.testing.assert_array_equal(structures.atomic_numbers[own], atoms.numbers)
        np.testing.assert_array_equal(structures.positions[own], atoms.positions)
        np.testing.assert_array_equal(structures.cell[index], atoms.cell.array)
        np.testing.assert_array_equal(structures.periodic[index], atoms.pbc)
        assert_same(structures.energy[index], found_by_ase(atoms, section.energy_key))
        assert_same(structures.forces[own], found_by_ase(atoms, section.forces_key))
        if section.stress_key:
            voigt = structures.stress[index].ravel()[[0, 4, 8, 5, 2, 1]]
            assert_same(voigt, found_by_ase(atoms, section.stress_key))
        assert structures.subset_names[structures.subset[index]] == atoms.info.get(section.subset_key, "")
        assert structures.place(index) == f"{shared_data / name}:{index}"


@pytest.mark.parametrize("text_size", [1, 5_000, 100_000])
def test_the_size_of_the_pieces_changes_nothing(shared_data: Path, text_size: int) -> None:
    section = ExtendedXYZ(path="*", stress_key="stress", group_key="alexandria_id")
    for path in (shared_data / "periodic/alexandria-random-1k.xyz", shared_data / "acac/train_300K.xyz"):
        (whole,) = read_parts(path, section)
        parts = list(read_parts(path, section, text_size=text_size))
        assert len(parts) > 1
        assert [name for part in parts for name in part.groups] == whole.groups
        together = concatenate([part.structures for part in parts])
        for name in set(COLUMNS) - {"group", "file"}:
            np.testing.assert_array_equal(getattr(whole.structures, name), getattr(together, name), err_msg=name)


def test_numbers_are_exact_to_the_last_bit(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**63, size=3000, dtype=np.uint64).view(np.float64)
    bits = bits[np.isfinite(bits)]
    words = [repr(value) for value in bits.tolist()]
    words += [
        "9007199254740993",
        "0.1000000000000000055511151231257827021181583404541015625",
        "5e-324",
        "-0.0",
        "+1.5E+3",
    ]
    words += ["1.7976931348623157e308", "2.2250738585072011e-308", ".5", "5.", "0.30000000000000004440892098500626"]
    words = words[: len(words) // 3 * 3]
    lines = [f"H {' '.join(words[first : first + 3])}" for first in range(0, len(words), 3)]
    structures = read_text(tmp_path, "\n".join([str(len(lines)), "", *lines]))
    expected = np.array([float(word) for word in words])
    np.testing.assert_array_equal(structures.positions.ravel().view(np.int64), expected.view(np.int64))


HEADERS = [
    'Lattice="1 0 0 0 2 0 0 0 3" Properties=species:S:1:pos:R:3 energy=-1.5 pbc="T F T"',
    "energy = -1.5 name= x other =y",
    "Cubic bulk silicon cell",
    "pbc config={a b} list=[1, 2, 3] single='it is \"quoted\"'",
    r'json="_JSON [[1.0, 2.0], [3.0, 4.5]]" text="a \"quoted\" word" back=a\ b',
    r'warnings="_JSON [\"first, [x]\", \"second=2\"]" after=1',
    'a=b=c d="x"y "key with blank"=5 e="open quote',
    "energy=1e-3,2e-3 count=7 truth=T untruth=false",
    "energy=1 energy=2",
    "\t energy=1\t\tpbc=[T, T, F]   ",
    'unicode=Ångström "x"=1',
    "",
]


@pytest.mark.parametrize("line", HEADERS)
def test_headers_are_split_as_in_ase(line: str) -> None:
    ours = split_header(line)
    theirs = key_val_str_to_dict(line) if line else {}
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        is_list = isinstance(value, list)
        if isinstance(value, bool) or (is_list and isinstance(value[0], bool)):
            assert truths(ours[key]) == np.ravel(value).tolist()
        elif isinstance(value, str):
            assert unquoted(ours[key]) == value
        elif not is_list:
            np.testing.assert_array_equal(numbers(ours[key]), np.ravel(value, order="F" if key == "Lattice" else "C"))


def test_headers_of_shared_files_are_split_as_in_ase(shared_data: Path) -> None:
    for line in (shared_data / "formats/spice_small_with_charges.xyz").read_text().splitlines()[1::26]:
        assert list(split_header(line)) == list(key_val_str_to_dict(line))


@pytest.mark.parametrize(
    "text",
    [
        HYDROXYL.replace("\n", "\r\n"),
        HYDROXYL.replace("\n", " \t \n"),
        HYDROXYL + "\n \n\n",
        HYDROXYL.removesuffix("\n"),
        HYDROXYL.replace("H ", " h\t").replace("O ", "     o "),
        HYDROXYL.replace("species:S:1", "Z:I:1").replace("H ", "1 ").replace("O ", "8 "),
        HYDROXYL.replace("energy=-1.5", 'energy = "-1.5"'),
        """2
Properties=forces:R:3:id:I:1:tag:S:2:pos:R:3:frozen:L:1:symbols:S:1 energy=-1.5
1 2 3 77 a é 0 0 0 T H
4 5 6 78 à b 0 0 1 F O
""",
    ],
    ids=[
        "CRLF",
        "trailing blanks",
        "blank end",
        "no last newline",
        "case",
        "numbers",
        "quoted",
        "order and unknown columns",
    ],
)
def test_the_same_structure_in_other_words(tmp_path: Path, text: str) -> None:
    structures = read_text(tmp_path, text)
    assert structures.atomic_numbers.tolist() == [1, 8]
    assert structures.positions.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert structures.forces.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert structures.energy.tolist() == [-1.5]
    assert not structures.periodic.any()


def test_blank_lines_between_structures_lose_nothing(tmp_path: Path) -> None:
    assert len(read_text(tmp_path, f"\n{HYDROXYL}\n\n{HYDROXYL}")) == 2


def test_structures_with_different_columns_mix(tmp_path: Path) -> None:
    bare = "1\n\nHe 7 8 9\n"
    reading = read_text_with_report(tmp_path, HYDROXYL + bare + HYDROXYL.replace("forces:R:3", "force:R:3") + HYDROXYL)
    structures = reading.structures
    assert structures.num_atoms.tolist() == [2, 1, 2, 2]
    assert structures.atomic_numbers.tolist() == [1, 8, 2, 1, 8, 1, 8]
    assert structures.positions[2].tolist() == [7, 8, 9]
    assert structures.has_force.tolist() == [True, True, False, False, False, True, True]
    np.testing.assert_array_equal(structures.energy, [-1.5, np.nan, -1.5, -1.5])
    assert reading.report.keys == {"energy": 3}
    assert reading.report.columns == {"forces": 2, "force": 1}
    assert reading.report.origin("forces_key").num_carriers == 2


def test_columns_are_the_same_with_and_without_quotes(tmp_path: Path) -> None:
    quoted = HYDROXYL.replace("species:S:1:pos:R:3:forces:R:3", '"species:S:1:pos:R:3:forces:R:3"')
    structures = read_text(tmp_path, HYDROXYL + quoted + HYDROXYL)
    assert structures.atomic_numbers.tolist() == [1, 8, 1, 8, 1, 8]
    assert structures.has_force.all()


def test_positions_are_no_forces(tmp_path: Path) -> None:
    assert message_for(tmp_path, HYDROXYL, forces_key="pos") == (
        "x.xyz:2: Properties: the forces must be other columns than the positions (got 'pos' for both)"
    )


def test_nan_is_missing_and_counted(tmp_path: Path) -> None:
    text = HYDROXYL + HYDROXYL.replace("-1.5", "nan").replace("4 5 6", "4 NaN 6")
    reading = read_text_with_report(tmp_path, text)
    assert reading.structures.has_energy.tolist() == [True, False]
    assert reading.structures.has_force.tolist() == [True, True, True, False]
    for option in ("energy_key", "forces_key"):
        origin = reading.report.origin(option)
        assert (origin.num_carriers, origin.num_incomplete) == (2, 1)


def test_a_missing_label_is_told_with_what_is_there(tmp_path: Path) -> None:
    report = read_text_with_report(tmp_path, HYDROXYL, forces_key="force", energy_key="Energies").report
    place = tmp_path / "x.xyz"
    assert report.absence(report.origin("forces_key")) == (
        f"'force' is in no structure of {place}; per-atom columns there: forces (did you mean 'forces'?)"
    )
    assert report.absence(report.origin("energy_key")) == (
        f"'Energies' is in no structure of {place}; header keys there: energy (did you mean 'energy'?)"
    )


def test_a_key_in_the_wrong_home_is_told(tmp_path: Path) -> None:
    report = read_text_with_report(tmp_path, HYDROXYL, energy_key="forces").report
    assert report.absence(report.origin("energy_key")).endswith(
        "header keys there: energy ('forces' is not one of the header keys, as energy_key must be)"
    )


def test_periodicity_follows_ase(tmp_path: Path) -> None:
    lattice = 'Lattice="5 0 0 0 6 0 1 0 7"'
    headers = [
        "",
        lattice,
        f'{lattice} pbc="F F F"',
        f"{lattice} pbc",
        f'{lattice} pbc="T F T"',
        f"{lattice} pbc=[0, 1, 1]",
    ]
    structures = read_text(tmp_path, "".join(map(with_header, headers)))
    expected = ["FFF", "TTT", "FFF", "TTT", "TFT", "FTT"]
    assert ["".join("FT"[repeats] for repeats in row) for row in structures.periodic.tolist()] == expected
    assert structures.cell[0].tolist() == [[0, 0, 0]] * 3
    for cell in structures.cell[1:]:
        assert cell.tolist() == [[5, 0, 0], [0, 6, 0], [1, 0, 7]]
    for index, atoms in enumerate(ase.io.read(tmp_path / "x.xyz", ":5")):
        np.testing.assert_array_equal(structures.periodic[index], atoms.pbc)


def test_a_slab_needs_no_third_vector(tmp_path: Path) -> None:
    structures = read_text(tmp_path, with_header('Lattice="5 0 0 0 6 0 0 0 0" pbc="T T F"'))
    assert structures.periodic.tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    "stress", ['"1 2 3 4 5 6"', '"1 6 5 6 2 4 5 4 3"', '"_JSON [[1, 6, 5], [6, 2, 4], [5, 4, 3]]"', "[1,2,3,4,5,6]"]
)
def test_a_stress_has_six_or_nine_numbers(tmp_path: Path, stress: str) -> None:
    structures = read_text(tmp_path, with_header(f"REF_stress={stress}"), stress_key="REF_stress")
    assert structures.stress.tolist() == [[[1, 6, 5], [6, 2, 4], [5, 4, 3]]]


def test_the_noise_of_a_stress_is_averaged_out(tmp_path: Path) -> None:
    structures = read_text(tmp_path, with_header('stress="1 0.5 0 0.504 2 0 0 0 3"'), stress_key="stress")
    np.testing.assert_allclose(structures.stress[0], [[1, 0.502, 0], [0.502, 2, 0], [0, 0, 3]], rtol=1e-15)


def test_units_are_converted_at_the_door(tmp_path: Path) -> None:
    header = 'energy=-1 stress="1 2 3 0 0 0" Lattice="1 0 0 0 1 0 0 0 1"'
    structures = read_text(
        tmp_path, with_header(header), energy_unit="hartree", length_unit="bohr", stress_key="stress", stress_unit="GPa"
    )
    assert structures.energy[0] == pytest.approx(-27.211386245988)
    assert structures.positions[1, 2] == pytest.approx(0.529177210903)
    assert structures.cell[0, 0, 0] == pytest.approx(0.529177210903)
    assert structures.forces[0, 0] == pytest.approx(51.4220674763)
    assert structures.stress[0, 0, 0] == pytest.approx(6.241509074e-3)


def test_units_of_forces_and_stress_follow_from_energy_and_length_unless_given(tmp_path: Path) -> None:
    text = with_header('stress="1 2 3 0 0 0"')
    structures = read_text(tmp_path, text, energy_unit="kcal/mol", length_unit="nm", stress_key="stress")
    assert structures.forces[0, 0] == pytest.approx(0.0433641042 / 10)
    assert structures.stress[0, 0, 0] == pytest.approx(0.0433641042 / 1000)
    structures = read_text(tmp_path, text, energy_unit="kcal/mol", forces_unit="hartree/bohr")
    assert structures.forces[0, 0] == pytest.approx(51.4220674763)


def test_groups_have_the_names_of_the_files_across_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.xyz", tmp_path / "b.xyz"
    first.write_text(with_header("molecule=x") + with_header("") + with_header("molecule=y"))
    second.write_text(with_header("molecule=y") + with_header('molecule="x"') + with_header(""))
    reading = read([ExtendedXYZ(path="*", group_key="molecule").files([first, second])])
    assert reading.structures.group.tolist() == [0, 1, 2, 2, 0, 5]
    assert reading.structures.file.tolist() == [0, 0, 0, 1, 1, 1]
    assert reading.structures.index_in_file.tolist() == [0, 1, 2, 0, 1, 2]
    assert reading.report.origin("group_key").num_carriers == 4
    assert read_extxyz([first, second]).group.tolist() == [0, 1, 2, 3, 4, 5]


def test_subsets_are_named_by_the_config_type(tmp_path: Path) -> None:
    text = "".join(map(with_header, ["config_type=bulk", "", 'config_type="a b"', "config_type=bulk"]))
    structures = read_text(tmp_path, text)
    assert [structures.subset_names[index] for index in structures.subset] == ["bulk", "", "a b", "bulk"]


TWO_CHARGES = """2
Properties=species:S:1:pos:R:3:charge:R:1 charge=-1
H 0 0 0 0.25
O 0 0 1 -1.25
"""
ION = "1\ncharge=-1\nH 0 0 0\n"  # one atom: the header may be either


def test_a_total_charge_and_partial_charges_may_have_the_same_name_as_ase_writes_them(tmp_path: Path) -> None:
    atoms = Atoms("OHH", positions=np.eye(3), info={"charge": -1})
    atoms.arrays["charge"] = np.array([-0.8, -0.1, -0.1])
    ase.io.write(tmp_path / "ase.xyz", [atoms, atoms], format="extxyz")
    text, keys = (tmp_path / "ase.xyz").read_text(), {"total_charge_key": "charge", "partial_charges_key": "charge"}
    reading = read_text_with_report(tmp_path, text, **keys)
    assert reading.structures.total_charge.tolist() == [-1, -1]
    assert reading.structures.partial_charges.tolist() == [-0.8, -0.1, -0.1] * 2
    for option in keys:
        origin = reading.report.origin(option)
        assert (origin.num_carriers, origin.num_incomplete) == (2, 0)


def test_a_column_goes_before_the_header_in_each_structure(tmp_path: Path) -> None:
    reading = read_text_with_report(tmp_path, TWO_CHARGES + ION, partial_charges_key="charge")
    assert reading.structures.partial_charges.tolist() == [0.25, -1.25, -1]
    assert reading.report.origin("partial_charges_key").num_carriers == 2
    assert reading.report.keys == {"charge": 1}
    assert reading.report.columns == {"charge": 2}


def test_a_header_that_is_read_for_both_counts_for_both(tmp_path: Path) -> None:
    keys = {"total_charge_key": "charge", "partial_charges_key": "charge"}
    reading = read_text_with_report(tmp_path, TWO_CHARGES + ION, **keys)
    assert reading.structures.total_charge.tolist() == [-1, -1]
    for option in keys:
        origin = reading.report.origin(option)
        assert (origin.num_carriers, origin.num_incomplete) == (2, 0)


BAD_FILES = [
    ("", "x.xyz: must hold at least one structure (got an empty file)"),
    (" \n\n", "x.xyz: must hold at least one structure (got an empty file)"),
    ("ab\0cd", "x.xyz: must be an extended-XYZ text file (got binary data)"),
    (
        HYDROXYL * 2 + "15\nheader\n" + "H 0 0 0\n" * 9,
        "x.xyz:9: structure 2 announces 15 atoms, but the file ends after 9 of them (truncated?)",
    ),
    (
        HYDROXYL + "15\nheader\n",
        "x.xyz:5: structure 1 announces 15 atoms, but the file ends before the first of them (truncated?)",
    ),
    (
        HYDROXYL + "H 0 0 0 1 1 1\n" + HYDROXYL,
        "x.xyz:5: must be the number of atoms, 1 or more, of structure 1 (got 'H 0 0 0 1 1 1'); "
        "does structure 0 have as many atom lines as it announces?",
    ),
    ("0\n\n" + HYDROXYL, "x.xyz:1: must be the number of atoms, 1 or more, of structure 0 (got '0')"),
    ("2.0\n\n" + HYDROXYL, "x.xyz:1: must be the number of atoms, 1 or more, of structure 0 (got '2.0')"),
    (
        HYDROXYL + HYDROXYL.replace("O ", "Ox "),
        "x.xyz:8: must have an element symbol in column 1, has 'Ox' (got 'Ox 0 0 1 4 5 6')",
    ),
    (
        HYDROXYL.replace("O ", "Heliumatom "),
        "x.xyz:4: must have an element symbol in column 1, has 'Heliumatom' (got 'Heliumatom 0 0 1 4 5 6')",
    ),
    (HYDROXYL.replace("O ", "X "), "x.xyz:4: must have an element symbol in column 1, has 'X' (got 'X 0 0 1 4 5 6')"),
    (
        "1\nProperties=Z:I:1:pos:R:3\n119 0 0 0\n",
        "x.xyz:3: must have an atomic number, 1 to 118, in column 1, has '119' (got '119 0 0 0')",
    ),
    (
        HYDROXYL.replace("O 0 0 1", "O 0 ***** 1"),
        "x.xyz:4: must have a finite coordinate in column 3, has '*****' (got 'O 0 ***** 1 4 5 6')",
    ),
    (
        HYDROXYL.replace("O 0 0 1", "O 0 0 nan"),
        "x.xyz:4: must have a finite coordinate in column 4, has 'nan' (got 'O 0 0 nan 4 5 6')",
    ),
    (
        HYDROXYL.replace("O 0 0 1", "O 0 0 1_0"),
        "x.xyz:4: must have a finite coordinate in column 4, has '1_0' (got 'O 0 0 1_0 4 5 6')",
    ),
    (
        HYDROXYL.replace("4 5 6", "4 5 inf"),
        "x.xyz:4: must have a number, or nan where it is missing, in column 7, has 'inf' (got 'O 0 0 1 4 5 inf')",
    ),
    (
        HYDROXYL.replace("1 2 3", "1 2 3 0").replace("4 5 6", "4 5"),
        "x.xyz:3: must have the 7 columns that Properties announces, has 8 (got 'H 0 0 0 1 2 3 0')",
    ),
    (
        "1\nenergy=1\n\n",
        "x.xyz:3: must have the 4 columns that Properties announces, has 0 (got '')",
    ),
    (with_header("energy=abc"), "x.xyz:2: energy: must be one number, or nan where it is missing (got abc)"),
    (with_header("energy=-inf"), "x.xyz:2: energy: must be one number, or nan where it is missing (got -inf)"),
    (with_header('energy="1 2"'), 'x.xyz:2: energy: must be one number, or nan where it is missing (got "1 2")'),
    (with_header("energy"), "x.xyz:2: energy: must be one number, or nan where it is missing (got no value)"),
    (
        with_header("stress=5"),
        "x.xyz:2: stress: must be 9 numbers, or 6 in the order xx yy zz yz xz xy (got 5)",
    ),
    (with_header('stress="1 2 3 4 5 6 7 8 9"'), 'x.xyz:2: stress: must be symmetric (got "1 2 3 4 5 6 7 8 9")'),
    (
        HYDROXYL.replace("forces:R:3", "forces:R:1:q:R:2"),
        "x.xyz:2: Properties: must have 3 columns for 'forces' (got 1)",
    ),
    (
        HYDROXYL.replace("forces:R:3", "forces:Q:3"),
        "x.xyz:2: Properties: must be name:type:width, with types S, R, I, L and each name once "
        "(got 'species:S:1:pos:R:3:forces:Q:3')",
    ),
    (
        HYDROXYL.replace("pos:R:3", "xyz:R:3"),
        "x.xyz:2: Properties: must name the columns species (or Z) and pos (got 'species:S:1:xyz:R:3:forces:R:3')",
    ),
    (with_header('Lattice="1 2 3"'), 'x.xyz:2: Lattice: must be 9 finite numbers (got "1 2 3")'),
    (with_header('pbc="T T"'), 'x.xyz:2: pbc: must be three of T and F, like "T T F" (got "T T")'),
    (
        with_header('pbc="T T F"'),
        "x.xyz:2: a structure that is periodic along a b must have a Lattice with independent vectors there "
        '(got no Lattice); write pbc="F F F" if it is not periodic',
    ),
    (
        HYDROXYL + with_header('Lattice="1 0 0 0 1 0 1 1 0"'),
        "x.xyz:6: a structure that is periodic along a b c must have a Lattice with independent vectors there "
        '(got "1 0 0 0 1 0 1 1 0"); write pbc="F F F" if it is not periodic',
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[message for _, message in BAD_FILES])
def test_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    assert message_for(tmp_path, text, stress_key="stress") == message


def test_errors_name_the_line_beyond_the_first_piece(tmp_path: Path) -> None:
    path = tmp_path / "x.xyz"
    path.write_text(HYDROXYL * 50 + HYDROXYL.replace("O ", "Ox ") + HYDROXYL)
    with pytest.raises(UserError, match=re.escape("x.xyz:204: must have an element symbol")):
        list(read_parts(path, ExtendedXYZ(path="x.xyz"), text_size=100))


def test_compressed_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.xyz.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(UserError, match=re.escape("(got gzip data; unpack it first)")):
        read_extxyz(path)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.xyz"
    path.write_bytes("1\nProperties=tag:S:1:species:S:1:pos:R:3\nà H 0 0 0\n".encode("latin1"))
    with pytest.raises(UserError, match=re.escape("x.xyz:3: must be text in UTF-8")):
        read_extxyz(path)


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be an extended-XYZ file \(got a folder\)"):
        read_extxyz(tmp_path)
    with pytest.raises(UserError, match="there is no such file"):
        read_extxyz(tmp_path / "x.xyz")


def test_a_virial_is_not_taken_for_a_stress() -> None:
    with pytest.raises(ValidationError, match=r"must name a stress .got .REF_virials.*name a virial in virial_key"):
        ExtendedXYZ(path="x.xyz", stress_key="REF_virials")


def test_a_path_may_stand_alone() -> None:
    assert ExtendedXYZ(path="x.xyz").path == ("x.xyz",)
    assert ExtendedXYZ(path=["x.xyz", "y.xyz"]).path == ("x.xyz", "y.xyz")
    with pytest.raises(ValidationError, match="at least 1 item"):
        ExtendedXYZ(path=[])


def test_globs_are_sorted_and_files_come_once(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.xyz", "a.xyz", "odd[1].xyz", "deep/er/c.xyz", "a.txt"):
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in expand_paths(["b.xyz", "*.xyz", "**/c.xyz"], tmp_path)]
    assert names == ["b.xyz", "a.xyz", "odd[1].xyz", "deep/er/c.xyz"]
    assert expand_paths(["odd[1].xyz"], tmp_path) == [tmp_path / "odd[1].xyz"]
    assert expand_paths([str(tmp_path / "a.*")], Path("elsewhere")) == [tmp_path / "a.txt", tmp_path / "a.xyz"]


def test_a_pattern_without_a_file_is_told_with_near_names(tmp_path: Path) -> None:
    (tmp_path / "train_300K.xyz").touch()
    (tmp_path / "folder").mkdir()
    near = "(did you mean 'train_300K.xyz'?)"
    messages = {
        "train_30K.xyz": f"'train_30K.xyz' matches no file: looked for {tmp_path}/train_30K.xyz {near}",
        "trian*.xyz": f"'trian*.xyz' matches no file: looked for {tmp_path}/trian*.xyz {near}",
        "no/x.xyz": f"'no/x.xyz' matches no file: looked for {tmp_path}/no/x.xyz, but there is no folder {tmp_path}/no",
        "folder": "'folder' must name a file (got a folder; 'folder/*.xyz' names files in it)",
    }
    for pattern, message in messages.items():
        with pytest.raises(UserError, match=re.escape(message) + "$"):
            expand_paths([pattern], tmp_path)
