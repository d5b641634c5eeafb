"""Thousands of damaged databases and systems: the right number of structures, or one error that names the file."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from modelforge.data.sources.ase_database import AseDatabase
from modelforge.data.sources.deepmd import DeePMD
from modelforge.data.sources.file_source import FileSource
from modelforge.data.structures import Structures, concatenate
from modelforge.errors import UserError

Random = np.random.Generator
Content = dict[str, bytes]
LABELS = {"stress_key": "stress", "dipole_key": "dipole", "partial_charges_key": "charges", "group_key": "k"}
NUM_ROWS = 4
UNITS = {"_distance_unit": "Ang", "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Ang"}, "atomrefs": {}}
NASTY_NUMBERS = [0, -1, 1, 2**31, -(2**63), 2**63 - 1, 1e308, -1e308, 5e-324, 1e999, -1e999]
NASTY_TEXTS = [
    "",
    "null",
    "[]",
    '"x"',
    "{",
    '{"k": 1e999}',
    '{"k": [1, [2]]}',
    '{"k": "\\ud800", "energy": true}',
    '{"energy": 1' + "0" * 5000 + "}",
    '{"weight": {"__ndarray__": [[2], "float64", [1, 2]]}}',
    '{"energy": {"__ndarray__": [[1], "float64", [null]]}}',
    '{"energy": {"__ndarray__": [[-1], "object", 8]}}',
    '{"energy": {"__ndarray__": 3}, "forces": {"__ndarray__": [[9999999999999999999], "float64", 8]}}',
    '{"energy": {"__ndarray__": [[1], "float64", 1e3]}, "forces": {"__complex__": [1, 2]}}',
    "[" * 50_000,
    '{"a":' * 5_000,
    "\x00",
    "é",
]


def put(path: Path, content: bytes) -> None:
    """A new file: writing over an old one makes file systems wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def flipped(content: bytes, random: Random, *, within: int | None = None) -> bytes:
    """Some bytes have other values."""
    damaged = bytearray(content)
    for place in random.integers(0, min(len(content), within or len(content)), size=random.integers(1, 6)):
        damaged[place] = random.choice([0, 1, 255, damaged[place] ^ (1 << random.integers(8)), random.integers(256)])
    return bytes(damaged)


def truncated(content: bytes, random: Random) -> bytes:
    """The end is missing, or something follows it."""
    if random.random() < 0.2:
        return content + random.bytes(random.integers(1, 600))
    return content[: random.integers(0, len(content))]


def overwritten(content: bytes, random: Random) -> bytes:
    """A block is zeros, or a copy of another block."""
    size = int(random.choice([16, 512, 1024]))
    begin, other = random.integers(0, max(1, len(content) - size), size=2)
    block = content[other : other + size] if random.random() < 0.5 else bytes(min(size, len(content)))
    return content[:begin] + block + content[begin + len(block) :]


def check(section: FileSource, path: Path, expected: int, case: str) -> bool:
    """Whether a damaged file is read, in which case nothing may be missing; else it must be named in one error."""
    message = ""
    try:
        parts = [part.structures for part in section.read_file(path)]
    except UserError as error:
        message = str(error)
    if message:
        assert path.name in message, f"{case}: {message}"
        assert len(message) < 1000, case
        return False
    structures: Structures = concatenate(parts)
    assert len(structures) == expected, case
    assert np.isfinite(structures.positions).all(), case
    assert np.isfinite(structures.cell).all(), case
    assert ((structures.atomic_numbers > 0) & (structures.atomic_numbers < 119)).all(), case
    assert not np.isinf(structures.energy).any(), case
    assert not np.isinf(structures.forces).any(), case
    return True


@pytest.fixture(scope="module", params=["plain", "schnetpack"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small database in pages of 512 bytes, so that many kinds of pages can be damaged."""
    path = tmp_path_factory.mktemp("fuzz") / "intact.db"
    with ase.db.connect(str(path)) as connection:
        for number in range(NUM_ROWS):
            atoms = bulk("NaCl", "rocksalt", a=5.6) if number % 2 else Atoms("OH2", np.eye(3) * number)
            forces = np.full((len(atoms), 3), 0.5)
            if request.param == "plain":
                atoms.calc = SinglePointCalculator(atoms, energy=-1.5, forces=forces, stress=np.ones(6), dipole=np.ones(3))
                connection.write(atoms, config_type="x", k=number, data={"charges": np.zeros(len(atoms))})
            else:
                connection.write(atoms, data={"energy": np.array([-1.5]), "forces": forces})
        if request.param == "schnetpack":
            connection.metadata = UNITS
    with closing(sqlite3.connect(path)) as connection:
        # what ASE fills in by chance or by the clock: the same bytes are damaged each time
        connection.execute("UPDATE systems SET unique_id = 'id' || id, username = 'me', ctime = 0, mtime = 0")
        connection.commit()
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")
    return path.read_bytes()


COLUMNS = ["natoms", "pbc", "numbers", "positions", "cell", "energy", "forces", "stress", "dipole"]
COLUMNS += ["charges", "key_value_pairs", "data"]


def changed_by_sql(content: bytes, random: Random) -> bytes:
    """A value of a row, or of the metadata, is something else."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(content)
        where, column = (int(random.integers(1, NUM_ROWS + 1)),), str(random.choice(COLUMNS))
        if random.random() < 0.2:
            query = f"UPDATE information SET value = ? WHERE name = '{random.choice(['version', 'metadata'])}'"
            old, where = json.dumps(UNITS), ()
        else:
            query = f"UPDATE systems SET {column} = ? WHERE id = ?"
            (old,) = connection.execute(f"SELECT {column} FROM systems WHERE id = ?", where).fetchone()
        connection.execute(query, (other_value(old, random), *where))
        connection.commit()
        return bytes(connection.serialize())


def other_value(old: object, random: Random) -> object:
    """Something else than the old value: its bytes damaged, or a value of any kind."""
    kind = random.integers(5)
    if isinstance(old, str) and kind < 2:
        return flipped(old.encode(), random).decode(errors="replace") if old else "x"
    if isinstance(old, bytes) and old and kind < 2:
        return flipped(old, random, within=None if len(old) % 8 == 0 else 64) if kind else truncated(old, random)
    if kind == 2:
        return random.bytes(random.choice([0, 1, 8, 24, 72, 73]))
    if kind == 3:
        return NASTY_NUMBERS[random.integers(len(NASTY_NUMBERS))]
    text = NASTY_TEXTS[random.integers(len(NASTY_TEXTS))]
    return text if random.random() < 0.5 else (8).to_bytes(8, "little") + text.encode(errors="replace")


@pytest.mark.parametrize(("damage", "cases"), [(flipped, 1100), (truncated, 200), (overwritten, 300), (changed_by_sql, 1100)])
def test_damaged_databases(database: bytes, tmp_path: Path, damage: Callable[[bytes, Random], bytes], cases: int) -> None:
    path = tmp_path / "damaged.db"
    section = AseDatabase(path=str(path), **LABELS)
    path.write_bytes(database)
    assert check(section, path, NUM_ROWS, "intact")
    read = 0
    for case in range(cases):
        put(path, damage(database, np.random.default_rng(case)))
        read += check(section, path, NUM_ROWS, f"{damage.__name__} {case}")
    assert cases / 10 < read < 0.9 * cases


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """The files of a small system: two sets of three and of one frame, of which one has no virial."""
    folder = tmp_path_factory.mktemp("fuzz")
    for number, count in enumerate((3, 1)):
        part = folder / f"set.{number:03}"
        part.mkdir()
        np.save(part / "coord.npy", np.arange(count * 6.0).reshape(count, 6))
        np.save(part / "box.npy", np.tile(np.eye(3).ravel() * 5, (count, 1)))
        np.save(part / "energy.npy", np.full(count, -2.5, dtype="<f4"))
        np.save(part / "force.npy", np.ones((count, 6)))
        np.save(part / "real_atom_types.npy", np.tile([1, 0], (count, 1)))
        np.save(part / "weight.npy", np.ones(count))
    np.save(folder / "set.000/virial.npy", np.tile(np.eye(3).ravel(), (3, 1)))
    (folder / "type.raw").write_text("1\n0\n")
    (folder / "type_map.raw").write_text("H\nO\n")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


HEADERS = ["(3, 6)", "(0, 6)", "(6, 3)", "(18,)", "()", "(3, 6, 0)", f"({10**17}, {10**17})", "(-3, 6)", "(3, 6", "(" * 500]
TYPES = ["<f8", ">f8", "<f4", "<i8", "|O", "<U1", "<c16", "<M8[s]", "f8", "<f3", "|V8", "<U0", "|b1", "<f16"]
WORDS = [b"0", b"1", b"2", b"-1", b"1.0", b"H", b"O", b"Xx", b"\xff\xfe", b"\0", b"9" * 5000, "²".encode(), b"1_0", b"nan", b""]


def with_header(content: bytes, random: Random) -> bytes:
    """A npy file says something else of its type, order or shape."""
    kind, shape = (str(random.choice(choices)) for choices in (TYPES, HEADERS))
    text = f"{{'descr': '{kind}', 'fortran_order': {random.choice(['True', 'False', '0'])}, 'shape': {shape}, }}"
    if random.random() < 0.2:
        text = text.replace("'", str(random.choice(['"', "", "''", "\n"])))
    header = text.ljust(118).encode() + b"\n"
    return b"\x93NUMPY" + bytes([random.integers(1, 4), 0]) + len(header).to_bytes(2, "little") + header + content[128:]


def with_other_array(content: bytes, random: Random) -> bytes:
    """A npy file with another number of dimensions, frames or atoms, another type, or numbers that are none."""
    shape = tuple(random.choice([1, 2, 3, 6, 9], size=random.integers(0, 4)))
    array = random.normal(size=shape)
    if random.random() < 0.5:
        array = np.load(BytesIO(content))
        values = [np.nan, np.inf, -np.inf, 1e30, -7, 0] if array.dtype.kind == "f" else [-(2**63), 2**40, 7, 2, -1, 0]
        array.reshape(-1)[random.integers(array.size)] = random.choice(values)  # in place
    kinds = ["<f8", "<f4", ">f2", "<i2", "|u1", "<u8", "<c8", "<U3", "|b1"]
    with np.errstate(all="ignore"):
        array = array.astype(str(random.choice(kinds))) if array.dtype.kind == "f" and random.random() < 0.5 else array
    written = BytesIO()
    np.save(written, array)
    return written.getvalue()


def garbage(content: bytes, random: Random) -> bytes:
    """Words that may or may not be types and elements."""
    words = [WORDS[random.integers(len(WORDS))] for _ in range(random.integers(0, 5))]
    return bytes(random.choice([b"\n", b" ", b"\r\n"])).join(words)


def damaged_file(name: str, content: bytes, random: Random) -> bytes:
    """One of the files of a system, damaged in any way."""
    kind = random.integers(8)
    if kind < 2:
        return flipped(content, random, within=140 if kind else None)
    if kind == 2:
        return truncated(content, random)
    if name.endswith(".raw"):
        return garbage(content, random)
    if kind < 5:
        return with_header(content, random)
    return with_other_array(content, random)


@pytest.mark.parametrize("mixed", [False, True], ids=["one type", "mixed types"])
def test_damaged_systems(system: Content, tmp_path: Path, mixed: bool) -> None:
    folder = tmp_path / "damaged"
    files = {name: content for name, content in system.items() if mixed or "real_atom_types" not in name}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    section = DeePMD(path=str(folder), virial_key="virial", weight_key="weight")
    assert check(section, folder, 4, "intact")
    names, read = sorted(files), 0
    for case in range(2700):
        random = np.random.default_rng(case)
        name = names[case % len(names)]
        put(folder / name, damaged_file(name, files[name], random))
        read += check(section, folder, 4, f"{name} {case}")
        put(folder / name, files[name])
    assert 100 < read < 1000
    for name in names:
        (folder / name).unlink()
        check(section, folder, 4, f"without {name}")
        put(folder / name, files[name])
