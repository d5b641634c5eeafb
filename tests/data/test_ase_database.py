"""ASE's databases: the structures and labels that ASE itself reads, units that files state, and errors with their place."""

import builtins
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from modelforge.data.sources.ase_database import AseDatabase, read_parts
from modelforge.data.sources.ase_database.values import parse_data
from modelforge.data.sources.gather import read
from modelforge.data.sources.read_report import Reading
from modelforge.data.structures import Structures, concatenate
from modelforge.errors import UserError

HARTREE, BOHR, KCAL = 27.211386245988, 0.529177210903, 0.0433641042
VOIGT = [0, 4, 8, 5, 2, 1]


def reading(path: Path, **options: object) -> Reading:
    section = AseDatabase(path=str(path), **options)
    return read([section.files([path])])


def message_for(path: Path, **options: object) -> str:
    """The error that reading a file gives, without the folder."""
    with pytest.raises(UserError) as caught:
        reading(path, **options)
    return str(caught.value).replace(f"{path.parent}/", "")


def atoms_of(number: int) -> Atoms:
    """Molecules and crystals in turn, with whatever a calculator may have given."""
    rng = np.random.default_rng(number)
    if number % 2:
        atoms = Atoms("OH2", rng.normal(size=(3, 3)))
    else:
        atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=number % 4 == 0)
        atoms.pbc = [True, True, number % 4 == 0]
    results = {"energy": -number / 3, "forces": rng.normal(size=(len(atoms), 3)), "dipole": rng.normal(size=3)}
    if number % 2 == 0:
        results["stress"] = rng.normal(size=6)
    if number % 5 == 0:
        results["charges"] = rng.normal(size=len(atoms))
    if number % 7 != 3:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture(scope="module", params=["db", "aselmdb"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 structures, of which some were deleted; labels of all kinds."""
    if request.param == "aselmdb":
        pytest.importorskip("lmdb")
        pytest.importorskip("ase_db_backends")
    path = tmp_path_factory.mktemp("databases") / f"structures.{request.param}"
    with ase.db.connect(str(path)) as database:
        for number in range(60):
            atoms = atoms_of(number)
            data = {"DFT_forces": np.full((len(atoms), 3), number / 7), "Q": np.eye(3) * number, "q": float(number % 3)}
            pairs = {"DFT_energy": number / 9, "config_type": f"kind {number % 3}", "molecule": number // 2}
            database.write(atoms, data=data if number % 4 else {}, key_value_pairs=pairs if number % 5 else {})
    ase.db.connect(str(path)).delete([1, 17, 18, 60])
    return path


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three structures in SQLite."""
    path = tmp_path_factory.mktemp("intact") / "x.db"
    with ase.db.connect(str(path)) as database:
        for number in (0, 1, 5):
            database.write(atoms_of(number), config_type="a", data={"F": np.ones((len(atoms_of(number)), 3))})
    return path


@pytest.fixture
def example(intact: Path, tmp_path: Path) -> Path:
    """Three structures in SQLite, to be damaged."""
    return Path(shutil.copy(intact, tmp_path))


@pytest.fixture(scope="module")
def intact_lmdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 structures in LMDB."""
    pytest.importorskip("lmdb")
    pytest.importorskip("ase_db_backends")
    path = tmp_path_factory.mktemp("intact") / "x.aselmdb"
    with ase.db.connect(str(path)) as database:
        for number in range(40):
            database.write(atoms_of(number))
    return path


@pytest.fixture
def lmdb_example(intact_lmdb: Path, tmp_path: Path) -> Path:
    """40 structures in LMDB, to be damaged."""
    return Path(shutil.copy(intact_lmdb, tmp_path))


def rows_of_ase(path: Path) -> list[ase.db.row.AtomsRow]:
    return list(ase.db.connect(str(path)).select())


def assert_same(ours: np.ndarray, theirs: np.ndarray | float | None) -> None:
    """Equal bits, or NaN where ASE finds nothing."""
    if theirs is None:
        assert np.isnan(ours).all()
    else:
        np.testing.assert_array_equal(ours, theirs)


def test_reads_what_ase_reads(written: Path) -> None:
    options = {"stress_key": "stress", "dipole_key": "dipole", "partial_charges_key": "charges"}
    structures = reading(written, **options).structures
    rows = rows_of_ase(written)
    assert len(structures) == len(rows) == 56
    for index, row in enumerate(rows):
        own = slice(*structures.offsets[index : index + 2])
        np.testing.assert_array_equal(structures.atomic_numbers[own], row.numbers)
        np.testing.assert_array_equal(structures.positions[own], row.positions)
        np.testing.assert_array_equal(structures.cell[index], row.cell)
        np.testing.assert_array_equal(structures.periodic[index], row.pbc)
        assert_same(structures.energy[index], row.get("energy"))
        assert_same(structures.forces[own], row.get("forces"))
        assert_same(structures.stress[index].ravel()[VOIGT], row.get("stress"))
        assert_same(structures.dipole[index], row.get("dipole"))
        assert_same(structures.partial_charges[own], row.get("charges"))
        assert structures.subset_names[structures.subset[index]] == row.get("config_type", "")
    assert structures.index_in_file.tolist() == list(range(56))
    assert structures.place(3) == f"{written}:3"


def test_reads_labels_from_pairs_and_data(written: Path) -> None:
    options = {"energy_key": "DFT_energy", "forces_key": "DFT_forces", "quadrupole_key": "Q", "total_charge_key": "q"}
    found = reading(written, group_key="molecule", weight_key="q", **options)
    structures = found.structures
    groups: dict[object, int] = {}
    for index, row in enumerate(rows_of_ase(written)):
        own = slice(*structures.offsets[index : index + 2])
        assert_same(structures.energy[index], row.get("DFT_energy"))
        assert_same(structures.forces[own], row.data.get("DFT_forces"))
        assert_same(structures.quadrupole[index], row.data.get("Q"))
        assert_same(structures.total_charge[index], row.data.get("q"))
        assert structures.weight[index] == row.data.get("q", 1.0)
        molecule = row.get("molecule", f"own {index}")
        assert groups.setdefault(molecule, structures.group[index]) == structures.group[index]
    assert len(set(groups.values())) == len(groups)
    rows = rows_of_ase(written)
    assert found.report.origin("energy_key").num_carriers == sum("DFT_energy" in row for row in rows)
    assert found.report.origin("forces_key").num_carriers == sum("DFT_forces" in row.data for row in rows)


def test_the_report_counts_what_rows_hold(written: Path) -> None:
    report = reading(written).report
    rows = rows_of_ase(written)
    for name in ("energy", "stress", "dipole", "config_type", "molecule", "DFT_energy"):
        assert report.keys[name] == sum(name in row for row in rows), name
    for name in ("forces", "charges"):
        assert report.columns[name] == sum(name in row for row in rows), name
    assert report.columns["DFT_forces"] == sum("DFT_forces" in row.data for row in rows)
    assert report.homes == ("keys of rows", "per-atom arrays of rows")


def test_an_absent_key_is_told_with_what_is_there(example: Path) -> None:
    report = reading(example, forces_key="force").report
    assert report.absence(report.origin("forces_key")) == (
        f"'force' is in no structure of {example}; per-atom arrays of rows there: forces, charges, F (did you mean 'forces'?)"
    )


@pytest.mark.parametrize("part_atoms", [1, 9, 60, 10_000])
def test_the_size_of_parts_changes_nothing(written: Path, part_atoms: int) -> None:
    section = AseDatabase(path=str(written), stress_key="stress")
    whole = concatenate([part.structures for part in section.read_file(written)])
    parts = [part.structures for part in read_parts(written, section, part_atoms=part_atoms)]
    assert len(parts) == {1: 56, 9: len(parts), 60: len(parts), 10_000: 1}[part_atoms]
    assert_equal(concatenate(parts), whole, leave=("group", "subset", "subset_names"))
    assert names(concatenate(parts)) == names(whole)


def names(structures: Structures) -> list[str]:
    return [structures.subset_names[index] for index in structures.subset]


def assert_equal(ours: Structures, theirs: Structures, *, leave: tuple[str, ...] = ()) -> None:
    for field in fields(Structures):
        if field.name not in leave:
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name), err_msg=field.name)


def test_units_are_ases_unless_given(example: Path) -> None:
    plain = reading(example, stress_key="stress").structures
    given = reading(example, stress_key="stress", energy_unit="hartree", length_unit="bohr").structures
    np.testing.assert_allclose(given.energy, plain.energy * HARTREE)
    np.testing.assert_allclose(given.positions, plain.positions * BOHR)
    np.testing.assert_allclose(given.forces, plain.forces * HARTREE / BOHR)
    np.testing.assert_allclose(given.stress, plain.stress * HARTREE / BOHR**3)


def test_what_the_calculator_gave_comes_before_data_of_that_name_and_that_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    ase.db.connect(str(path)).write(atoms_of(1), data={"energy": 77.0})
    found = reading(path)
    assert found.structures.energy[0] == pytest.approx(-1 / 3)
    assert found.report.origin("energy_key").unit == "eV (of two in the row, the first)"


def test_the_text_layout_of_older_versions_is_read(example: Path) -> None:
    new = reading(example, forces_key="F").structures
    with closing(sqlite3.connect(example)) as connection:
        for number, data in connection.execute("SELECT id, data FROM systems").fetchall():
            values = {key: {"__ndarray__": [[len(a) // 3, 3], "float64", a]} for key, a in as_lists(data).items()}
            connection.execute("UPDATE systems SET data = ? WHERE id = ?", (json.dumps(values), number))
        connection.execute("UPDATE information SET value = '8' WHERE name = 'version'")
        connection.commit()
    assert_equal(reading(example, forces_key="F").structures, new)


def as_lists(data: bytes) -> dict[str, list[float]]:
    stored = parse_data(data)
    return {
        key: np.frombuffer(stored.block, "<f8", item["__ndarray__"][0][0] * 3, 8).tolist()
        for key, item in stored.values.items()
    }


def schnetpack(path: Path, metadata: dict[str, object], data: dict[str, object]) -> Path:
    """A database as SchNetPack writes it: all labels are data."""
    with ase.db.connect(str(path)) as database:
        database.metadata = metadata
        for _ in range(2):
            database.write(Atoms("OH2", np.eye(3)), data=data)
    return path


WATER = {"energy": np.array([-2.0]), "forces": np.ones((3, 3))}
UNITS = {"_distance_unit": "Bohr", "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Bohr"}, "atomrefs": {}}


def test_the_example_of_schnetpack(shared_data: Path) -> None:
    path = shared_data / "formats/schnetpack_data.db"
    found = reading(path)
    for index, row in enumerate(rows_of_ase(path)):
        own = slice(*found.structures.offsets[index : index + 2])
        np.testing.assert_array_equal(found.structures.positions[own], row.positions)
        np.testing.assert_array_equal(found.structures.forces[own], row.data["forces"])
        assert found.structures.energy[index] == row.data["energy"]
    assert len(found.structures) == 5
    assert found.report.origin("energy_key").unit == "eV (stated in the file)"
    assert found.report.origin("forces_key").unit == "eV/Ang (stated in the file)"


def test_units_that_schnetpack_states_are_converted(tmp_path: Path) -> None:
    structures = reading(schnetpack(tmp_path / "x.db", UNITS, WATER)).structures
    assert structures.energy[0] == pytest.approx(-2 * HARTREE)
    assert structures.positions[0, 0] == pytest.approx(BOHR)
    assert structures.forces[0, 0] == pytest.approx(HARTREE / BOHR)


def test_stated_units_are_those_of_data_and_not_of_the_calculator(tmp_path: Path) -> None:
    path = schnetpack(tmp_path / "x.db", UNITS, WATER)
    ase.db.connect(str(path)).write(atoms_of(1), data=WATER)
    np.testing.assert_allclose(reading(path).structures.energy, -2 * HARTREE)


def test_a_unit_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    path = schnetpack(tmp_path / "x.db", UNITS, WATER)
    assert message_for(path, energy_unit="eV") == (
        "dataset.energy_unit: must be the unit that the file states, 'Hartree' (got 'eV'); remove the key (x.db)"
    )


@pytest.mark.parametrize("metadata", [{}, {"atomrefs": [[0.0]], "atref_labels": ["energy"]}])
def test_a_database_of_schnetpack_without_units_demands_them(tmp_path: Path, metadata: dict[str, object]) -> None:
    path = schnetpack(tmp_path / "x.db", metadata, WATER)
    assert message_for(path) == "dataset.length_unit: missing; x.db does not state it"
    assert message_for(path, length_unit="angstrom") == "dataset.energy_unit: missing; x.db does not state it"
    structures = reading(path, length_unit="angstrom", energy_unit="kcal/mol").structures
    assert structures.energy[0] == pytest.approx(-2 * KCAL)
    assert structures.forces[0, 0] == pytest.approx(KCAL)


def test_a_unit_that_is_stated_for_some_labels_only_is_demanded_for_the_others(tmp_path: Path) -> None:
    metadata = {**UNITS, "_property_unit_dict": {"energy": "Hartree", "forces": None}}
    path = schnetpack(tmp_path / "x.db", metadata, WATER)
    assert message_for(path) == "dataset.forces_unit: missing; x.db states units, but none of 'forces'"
    structures = reading(path, forces_unit="hartree/bohr").structures
    assert structures.forces[0, 0] == pytest.approx(HARTREE / BOHR)


def test_a_label_that_is_not_there_needs_no_unit(tmp_path: Path) -> None:
    path = schnetpack(tmp_path / "x.db", {**UNITS, "_property_unit_dict": {"U0": "Ha"}}, {"U0": np.array([-3.0])})
    assert np.isnan(reading(path).structures.energy).all()
    assert reading(path, energy_key="U0").structures.energy[0] == pytest.approx(-3 * HARTREE)


@pytest.mark.parametrize(
    "metadata",
    [
        {**UNITS, "atomrefs": {"energy": [0.0, -0.5, 0, 0, 0, 0, 0, 0, -75.0], "U": [1.0, 2.0]}},
        {**UNITS, "atomrefs": {"energy": [[0.0], [-0.5], [0], [0], [0], [0], [0], [0], [-75.0]]}},
        {**UNITS, "atomrefs": [[1, z] for z in (0, -0.5, 0, 0, 0, 0, 0, 0, -75.0)], "atref_labels": ["U", "energy"]},
    ],
)
def test_energies_of_atoms_become_self_energies(tmp_path: Path, metadata: dict[str, object]) -> None:
    path = schnetpack(tmp_path / "x.db", metadata, WATER)
    table = AseDatabase(path=str(path)).self_energy_table()
    assert table == pytest.approx({"H": -0.5 * HARTREE, "O": -75 * HARTREE})
    assert AseDatabase(path=str(path), energy_key="other").self_energy_table() == {}


def test_energies_of_atoms_without_a_unit_demand_one(tmp_path: Path) -> None:
    path = schnetpack(tmp_path / "x.db", {"atomrefs": [[0.0], [-0.5]], "atref_labels": ["energy"]}, WATER)
    with pytest.raises(UserError, match=r"dataset\.energy_unit: missing"):
        AseDatabase(path=str(path)).self_energy_table()
    assert AseDatabase(path=str(path), energy_unit="eV").self_energy_table() == {"H": -0.5}


def test_a_plain_database_has_no_self_energies(example: Path) -> None:
    assert AseDatabase(path=str(example)).self_energy_table() == {}


def test_a_file_that_nobody_may_write_or_lock_is_read(example: Path) -> None:
    with closing(sqlite3.connect(example)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    example.chmod(0o444)
    example.parent.chmod(0o555)
    try:
        assert len(reading(example).structures) == 3
        assert [path.name for path in example.parent.iterdir()] == ["x.db"]
    finally:
        example.parent.chmod(0o755)


def test_changes_that_are_not_yet_in_the_file_are_not_overlooked(example: Path) -> None:
    with closing(sqlite3.connect(example)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("DELETE FROM systems WHERE id = 1")
        connection.commit()
        assert message_for(example) == (
            "x.db: must be complete (got x.db-wal beside it, which holds changes that are not yet in the file); close what "
            "writes it, then run: sqlite3 x.db 'PRAGMA wal_checkpoint(TRUNCATE); SELECT count(*) FROM systems;'"
        )
    assert len(reading(example).structures) == 2


def test_a_writer_that_was_killed_is_told_and_the_remedy_works(example: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    with closing(sqlite3.connect(example)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # so that changes reach the file before they are committed
        connection.execute("UPDATE systems SET natoms = 77, data = zeroblob(20000)")
        for path in tmp_path.glob("x.db*"):
            shutil.copy(path, killed)
    copy = killed / "x.db"
    assert "got x.db-journal beside it" in message_for(copy)
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("SELECT count(*) FROM systems").fetchone()
    assert_equal(reading(copy).structures, reading(example).structures, leave=("files",))


def test_a_file_that_changes_meanwhile_is_told(example: Path) -> None:
    parts = read_parts(example, AseDatabase(path=str(example)), part_atoms=1)
    next(parts)
    ase.db.connect(str(example)).write(atoms_of(1))
    with pytest.raises(UserError, match="must not change while it is read"):
        list(parts)


def test_names_with_odd_characters_are_opened(example: Path) -> None:
    odd = example.rename(example.with_name("a b?c#d%20.db"))
    assert len(reading(odd).structures) == 3


DAMAGES: dict[str, tuple[Callable[[sqlite3.Connection], object], str]] = {
    "natoms": (
        lambda c: c.execute("UPDATE systems SET natoms = 4 WHERE id = 2"),
        "x.db:1 (id 2): numbers: must be 16 bytes, as natoms says (got 12 bytes)",
    ),
    "no natoms": (
        lambda c: c.execute("UPDATE systems SET natoms = NULL WHERE id = 2"),
        "x.db:1 (id 2): natoms: must be the number of atoms, 1 or more (got None)",
    ),
    "positions": (
        lambda c: c.execute("UPDATE systems SET positions = zeroblob(71) WHERE id = 2"),
        "x.db:1 (id 2): positions: must be 72 bytes, as natoms says (got 71 bytes)",
    ),
    "text for positions": (
        lambda c: c.execute("UPDATE systems SET positions = 'far away' WHERE id = 2"),
        "x.db:1 (id 2): positions: must be 72 bytes, as natoms says (got 'far away')",
    ),
    "nan": (
        lambda c: c.execute("UPDATE systems SET positions = ? WHERE id = 2", (np.array([0] * 4 + [np.nan] * 5).tobytes(),)),
        "x.db:1 (id 2): positions: must be finite numbers (got [ 0. nan nan])",
    ),
    "element": (
        lambda c: c.execute("UPDATE systems SET numbers = ? WHERE id = 2", (np.array([1, 119, 1], "<i4").tobytes(),)),
        "x.db:1 (id 2): numbers: must be atomic numbers from 1 to 118 (got 119)",
    ),
    "ghost": (
        lambda c: c.execute("UPDATE systems SET numbers = zeroblob(12) WHERE id = 2"),
        "x.db:1 (id 2): numbers: must be atomic numbers from 1 to 118 (got 0)",
    ),
    "cell": (
        lambda c: c.execute("UPDATE systems SET cell = zeroblob(64) WHERE id = 2"),
        "x.db:1 (id 2): cell: must be 9 numbers in 72 bytes (got 64 bytes)",
    ),
    "flat cell": (
        lambda c: c.execute("UPDATE systems SET pbc = 5 WHERE id = 2"),
        "x.db:1 (id 2): cell: must have independent vectors along a c, where the structure is periodic "
        "(got [[0. 0. 0.] [0. 0. 0.] [0. 0. 0.]]); write pbc = False if it is not periodic",
    ),
    "pbc": (
        lambda c: c.execute("UPDATE systems SET pbc = 9 WHERE id = 2"),
        "x.db:1 (id 2): pbc: must be a number from 0 to 7 (got 9)",
    ),
    "text for an energy": (
        lambda c: c.execute("UPDATE systems SET energy = 'low' WHERE id = 2"),
        "x.db:1 (id 2): energy: must be one number, or nan where it is missing (got 'low')",
    ),
    "infinite energy": (
        lambda c: c.execute("UPDATE systems SET energy = 9e999 WHERE id = 2"),
        "x.db:1 (id 2): energy: must be finite numbers, or nan where it is missing (got inf)",
    ),
    "forces": (
        lambda c: c.execute("UPDATE systems SET forces = zeroblob(80) WHERE id = 2"),
        "x.db:1 (id 2): forces: must be 9 numbers, or nan where it is missing (got 10 numbers)",
    ),
    "odd forces": (
        lambda c: c.execute("UPDATE systems SET forces = zeroblob(70) WHERE id = 2"),
        "x.db:1 (id 2): forces: must be 9 numbers, or nan where it is missing (got 70 bytes)",
    ),
    "stress": (
        lambda c: c.execute("UPDATE systems SET stress = zeroblob(40) WHERE id = 1"),
        "x.db:0 (id 1): stress: must be 6 numbers or 9 numbers, or nan where it is missing (got 5 numbers)",
    ),
    "asymmetric stress": (
        lambda c: c.execute("UPDATE systems SET stress = ? WHERE id = 1", (np.arange(9.0).tobytes(),)),
        "x.db:0 (id 1): stress: must be symmetric (got [[0. 1. 2.] [3. 4. 5.] [6. 7. 8.]])",
    ),
    "pairs": (
        lambda c: c.execute("UPDATE systems SET key_value_pairs = '{\"a\": ' WHERE id = 2"),
        "x.db:1 (id 2): key_value_pairs: must be a JSON object (got '{\"a\": ')",
    ),
    "data": (
        lambda c: c.execute("UPDATE systems SET data = zeroblob(30) WHERE id = 2"),
        "x.db:1 (id 2): data: must say in its first 8 bytes where its JSON begins (got 0 in 30 bytes)",
    ),
    "no rows": (
        lambda c: c.execute("DELETE FROM systems"),
        "x.db: must hold at least one structure (got an empty database)",
    ),
    "no table": (
        lambda c: c.execute("ALTER TABLE systems RENAME TO molecules"),
        "x.db: must be an ASE database, which has a table 'systems' (got ['information', 'keys', 'molecules', "
        "'number_key_values',...)",
    ),
    "old version": (
        lambda c: c.execute("UPDATE information SET value = '4'"),
        "x.db: must have a version 5 to 9 of ASE's layout (got version 4); update modelforge",
    ),
    "metadata": (
        lambda c: c.execute("INSERT INTO information VALUES ('metadata', '[1]')"),
        "x.db: metadata: must be a JSON object (got [1])",
    ),
    "unit": (
        lambda c: c.execute("INSERT INTO information VALUES ('metadata', ?)", (json.dumps(UNITS | {"_distance_unit": "ell"}),)),
        "x.db: length: unknown unit 'ell'",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_with_its_place(example: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    with closing(sqlite3.connect(example)) as connection:
        damage(connection)
        connection.commit()
    assert message_for(example, stress_key="stress" if "stress" in name else None) == message


def test_data_of_the_wrong_size_are_told(example: Path) -> None:
    assert message_for(example, energy_key="F").startswith("x.db:0 (id 1): F: must be one number, or nan where it is")
    assert message_for(example, energy_key="config_type").endswith("or nan where it is missing (got 'a')")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_database_is_told(example: Path, share: float) -> None:
    content = example.read_bytes()
    example.write_bytes(content[: int(len(content) * share)])
    assert "it is truncated, copy or make it anew" in message_for(example)


def test_a_lost_page_of_rows_does_not_pass_for_fewer_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with ase.db.connect(str(path)) as database:
        for number in range(20):
            database.write(atoms_of(number))
    content = bytearray(path.read_bytes())
    leaves = [page for page in range(0, len(content), 4096) if page and content[page] == 13 and content[page + 4] > 1]
    lost = 0
    for page in leaves:
        damaged = bytearray(content)
        damaged[page + 4] -= 1  # the number of rows in the page
        path.write_bytes(damaged)
        try:
            assert len(reading(path).structures) == 20
        except UserError as error:
            lost += "as its index says (got 19)" in str(error)
    assert lost >= 3


def test_other_kinds_of_databases_are_told_how_to_convert(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    ase.db.connect(str(path)).write(atoms_of(1))
    beginning = "must be an ASE database in SQLite (.db) or LMDB (.aselmdb)"
    assert message_for(path) == f"x.json: {beginning} (got JSON; convert it: ase db x.json --insert-into x.db)"
    table = tmp_path / "x.csv"
    table.write_text("id,energy\n1,2\n")
    assert message_for(table) == (f"x.csv: {beginning} (got a table without positions; use the database that it was made from)")
    (tmp_path / "y.db").touch()
    assert message_for(tmp_path / "y.db") == f"y.db: {beginning} (got an empty file)"
    (tmp_path / "z.db").write_bytes(b"\0" * 999)
    assert message_for(tmp_path / "z.db") == f"z.db: {beginning} (got something else)"
    assert message_for(tmp_path / "none.db") == "none.db: must be a file that can be read (got: No such file or directory)"
    with pytest.raises(UserError, match=r"dataset.path: must name files \(got the server 'postgresql://me@host/data'\)"):
        AseDatabase(path="postgresql://me@host/data").training_files()


def change_lmdb(path: Path, key: str, value: bytes | None) -> None:
    import lmdb

    with lmdb.open(str(path), subdir=False, map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(key.encode(), value) if value is not None else transaction.delete(key.encode())


def packed(value: object) -> bytes:
    import zlib

    return zlib.compress(json.dumps(value).encode())


BAD_ROWS = [
    (b"nothing", "x.aselmdb:1 (id 2): must be JSON that was compressed with zlib (got 7 bytes)"),
    (None, "x.aselmdb: must have 40 rows, as its list of ids says (got 39); it is damaged"),
    ({"numbers": [1], "positions": [0.0]}, "x.aselmdb:1 (id 2): positions, cell: must be 3 and 9 numbers (got 1 and 9)"),
    ({"numbers": ["H"], "positions": [0.0]}, "x.aselmdb:1 (id 2): numbers: must be numbers (got ['H'])"),
    ({"positions": [0.0]}, "x.aselmdb:1 (id 2): numbers: must be at least one atomic number (got none)"),
    ([1, 2], "x.aselmdb:1 (id 2): must be a JSON object (got [1, 2])"),
    ({"numbers": [1], "positions": [0, 0, 0], "pbc": "T"}, "x.aselmdb:1 (id 2): pbc: must be three truth values (got 'T')"),
    ({"numbers": [1], "positions": [0, 0, 0], "data": 3}, "x.aselmdb:1 (id 2): data: must be a JSON object (got 3)"),
    (
        {"numbers": [1], "positions": [0, 0, 0], "energy": "x"},
        "x.aselmdb:1 (id 2): energy: must be one number, or nan where it is missing (got 'x')",
    ),
    (
        {"numbers": [1], "positions": {"__ndarray__": [[2, 3], "float64", [0, 0, 0]]}},
        "x.aselmdb:1 (id 2): positions: must have as many numbers as its shape [2, 3] says (got [0, 0, 0])",
    ),
]


@pytest.mark.parametrize(("value", "message"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_damage_in_lmdb_is_told_with_its_place(lmdb_example: Path, value: object, message: str) -> None:
    change_lmdb(lmdb_example, "2", value if isinstance(value, bytes | None) else packed(value))
    assert message_for(lmdb_example) == message


def test_a_truncated_lmdb_is_told(lmdb_example: Path) -> None:
    content = lmdb_example.read_bytes()
    lmdb_example.write_bytes(content[: len(content) // 2])
    assert "it is truncated, copy it anew" in message_for(lmdb_example)


def test_lmdb_that_nobody_may_write_is_read_without_a_lock(lmdb_example: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir()
    copy = Path(shutil.copy(lmdb_example, folder))
    copy.chmod(0o444)
    assert len(reading(copy).structures) == 40
    assert [path.name for path in folder.iterdir()] == ["x.aselmdb"]


def test_a_missing_package_is_named_with_its_extra(lmdb_example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without_lmdb(name: str, *rest: object) -> object:
        if name == "lmdb":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_lmdb)
    assert message_for(lmdb_example) == "x.aselmdb: needs the package lmdb; install it: pip install modelforge[lmdb]"
