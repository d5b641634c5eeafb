"""Columns on disk: what is written reads back bit for bit, in any cutting, without being read when it is opened."""

import json
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelforge.data.store.columns import INDEX, Columns, ColumnWriter, DamagedColumns
from modelforge.data.structures import is_constant

PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)
NAN = np.array([np.nan])
MEGABYTE = 1_000_000


def write(folder: Path, **columns: Sequence[np.ndarray]) -> Columns:
    """Write the parts of some columns, and open them."""
    writer = ColumnWriter(folder)
    for name, parts in columns.items():
        for part in parts:
            writer.add(name, part)
    writer.finish({"made": "by a test"})
    return Columns(folder)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    "values",
    [
        np.array([-97195.123456789, -1e6, np.nextafter(-1e6, 0), 5e-324, np.nan, np.inf]),
        np.arange(24, dtype=np.uint8).reshape(8, 3),
        np.array([[True, False, True]] * 3 + [[False, False, True]]),
        np.arange(5, dtype=">f8"),
        np.arange(5, dtype=">i4"),
        np.arange(24.0).reshape(3, 8).T,
        np.arange(36.0).reshape(4, 3, 3)[::-2],
        np.float32([1 / 3, -0.0, 0.0]),
    ],
    ids=["energies", "bytes", "flags", "big-endian floats", "big-endian integers", "transposed", "strided", "single"],
)
def test_values_read_back_bit_for_bit(tmp_path: Path, values: np.ndarray):
    columns = write(tmp_path / "new", some=[values[:2], values[2:]])
    found = columns.arrays["some"]
    little = values.astype(values.dtype.newbyteorder("<"))
    assert found.dtype == little.dtype
    assert found.shape == values.shape
    assert found.tobytes() == little.tobytes()
    assert columns.about == {"made": "by a test"}


VALUES = st.lists(st.sampled_from([np.nan, 0.0, -0.0, 1.0, -1e6]), max_size=8)


@PROPERTY
@given(VALUES, st.lists(st.integers(0, 8)))
def test_any_cutting_into_parts_gives_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, rows: list, cuts: list):
    folder = tmp_path_factory.mktemp("cuttings")
    values = np.array(rows, dtype=np.float64)
    whole = write(folder / "whole", some=[values])
    parts = write(folder / "parts", some=np.split(values, sorted(cuts)))
    assert on_disk(folder / "whole") == on_disk(folder / "parts")
    assert whole.arrays["some"].tobytes() == parts.arrays["some"].tobytes() == values.tobytes()


def test_a_column_that_comes_late_is_filled_up_from_the_beginning(tmp_path: Path):
    late = np.arange(4.0)
    missing = np.broadcast_to(np.nan, (250_000,))
    found = write(tmp_path / "new", energy=[missing, missing[:3], late, missing[:2]]).arrays["energy"]
    np.testing.assert_array_equal(found, np.concatenate([missing, missing[:3], late, missing[:2]]))


def test_two_constants_one_after_the_other_are_both_kept(tmp_path: Path):
    first, second = np.broadcast_to(1.5, (4, 3)), np.broadcast_to(np.nan, (2, 3))
    found = write(tmp_path / "new", dipole=[first, second, first]).arrays["dipole"]
    np.testing.assert_array_equal(found, np.concatenate([first, second, first]))


def test_the_sign_of_zero_is_kept(tmp_path: Path):
    zeros = [np.broadcast_to(np.float64(0.0), (3,)), np.broadcast_to(np.float64(-0.0), (3,))]
    found = write(tmp_path / "new", energy=zeros, forces=[np.array([0.0, -0.0])]).arrays
    assert np.signbit(found["energy"]).tolist() == [False] * 3 + [True] * 3
    assert np.signbit(found["forces"]).tolist() == [False, True]


@pytest.mark.parametrize(
    "missing",
    [np.broadcast_to(np.nan, (9, 3)), np.full((9, 3), np.nan), np.zeros((9, 3), dtype=bool), np.full(9, -1e6)],
    ids=["never asked for", "in no file", "not periodic", "one energy"],
)
def test_what_is_one_value_has_no_file_and_no_memory(tmp_path: Path, missing: np.ndarray):
    found = write(tmp_path / "new", some=[missing[:4], missing[4:]]).arrays["some"]
    assert list(on_disk(tmp_path / "new")) == [INDEX]
    assert is_constant(found)
    np.testing.assert_array_equal(found, missing)
    assert found.dtype == missing.dtype


def test_columns_without_any_row_can_be_opened(tmp_path: Path):
    empty = np.empty((0, 3), dtype=np.float32)
    found = write(tmp_path / "new", vectors=[empty, empty], other=[np.arange(3)]).arrays
    assert (found["vectors"].shape, found["vectors"].dtype) == (empty.shape, empty.dtype)
    assert found["other"].tolist() == [0, 1, 2]


def test_open_columns_are_maps_that_nobody_can_write_to(tmp_path: Path):
    columns = write(tmp_path / "new", positions=[np.arange(30.0).reshape(10, 3)])
    with pytest.raises(ValueError, match="read-only"):
        columns.arrays["positions"][0] = 0.0
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        columns.arrays["positions"].flags.writeable = True
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line for line in maps if str(tmp_path) in line]
    assert mapped
    assert all(" r--s " in line for line in mapped), "shared with all processes that read it"


def test_opening_reads_no_column(tmp_path: Path):
    columns = write(tmp_path / "new", positions=[np.arange(30.0).reshape(10, 3)])
    rows = 2_000_000_000
    index = json.loads((tmp_path / "new" / INDEX).read_text())
    index["columns"]["positions"]["shape"][0] = rows
    (tmp_path / "new" / INDEX).write_text(json.dumps(index))
    os.truncate(tmp_path / "new" / "positions.bin", rows * 24)  # 48 GB, of which the disk holds 240 bytes
    before, begun = resident(), time.perf_counter()
    columns = Columns(tmp_path / "new")
    assert time.perf_counter() - begun < 0.1
    assert resident() - before < MEGABYTE
    assert columns.arrays["positions"].shape == (rows, 3)
    assert columns.arrays["positions"][9].tolist() == [27.0, 28.0, 29.0]
    assert columns.arrays["positions"][-1].tolist() == [0.0, 0.0, 0.0]


def test_released_columns_take_no_memory_and_stay_right(tmp_path: Path):
    values = np.arange(200 * MEGABYTE // 8, dtype=np.int64)
    columns = write(tmp_path / "new", some=[values])
    expected = int(values.sum())
    del values
    before = resident()
    assert int(columns.arrays["some"].sum()) == expected
    assert resident() - before > 150 * MEGABYTE, "the pages that were read count as this process's memory"
    columns.release()
    assert resident() - before < 10 * MEGABYTE
    assert int(columns.arrays["some"].sum()) == expected
    columns.release()


def no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def half_an_index(folder: Path) -> None:
    os.truncate(folder / INDEX, (folder / INDEX).stat().st_size // 2)


def not_utf8(folder: Path) -> None:
    (folder / INDEX).write_bytes(b"\xff\xfe\x00")


def shorter(folder: Path) -> None:
    os.truncate(folder / "energy.bin", 8)


def longer(folder: Path) -> None:
    with (folder / "energy.bin").open("ab") as file:
        file.write(b"12345678")


def no_column(folder: Path) -> None:
    (folder / "energy.bin").unlink()


def other_json(text: str) -> object:
    return lambda folder: (folder / INDEX).write_text(text)


BROKEN_COLUMN = '{"about": {}, "columns": {"energy": %s}}'


@pytest.mark.parametrize(
    "damage",
    [
        no_index,
        half_an_index,
        not_utf8,
        shorter,
        longer,
        no_column,
        *map(
            other_json,
            [
                "",
                "[]",
                "{}",
                '{"about": {}, "columns": []}',
                BROKEN_COLUMN % "3",
                BROKEN_COLUMN % '{"dtype": "<f8", "shape": [3]}',
                BROKEN_COLUMN % '{"dtype": "no type", "shape": [3], "constant": null}',
                BROKEN_COLUMN % '{"dtype": "<f8", "shape": [3, 2], "constant": [1, 2, 3]}',
                BROKEN_COLUMN % '{"dtype": "<f8", "shape": "?", "constant": null}',
            ],
        ),
    ],
)
def test_damaged_columns_are_recognised(tmp_path: Path, damage):
    write(tmp_path / "new", energy=[np.arange(3.0)])
    damage(tmp_path / "new")
    with pytest.raises(DamagedColumns, match=str(tmp_path)):
        Columns(tmp_path / "new")


def test_too_many_open_files_are_no_damage(tmp_path: Path):
    write(tmp_path / "new", energy=[np.arange(3.0)], forces=[np.arange(3.0)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]  # no gap is left below the limit
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 2, hard))
        with pytest.raises(OSError, match="Too many open files"):
            Columns(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in spare:
            os.close(file)


def test_an_unfinished_folder_is_not_readable(tmp_path: Path):
    writer = ColumnWriter(tmp_path / "new")
    writer.add("energy", np.arange(3.0))
    writer.close()
    with pytest.raises(DamagedColumns):
        Columns(tmp_path / "new")
    with pytest.raises(FileExistsError):
        ColumnWriter(tmp_path / "new")


def test_parts_of_different_types_are_a_mistake_of_the_programmer(tmp_path: Path):
    writer = ColumnWriter(tmp_path / "new")
    writer.add("energy", np.arange(3.0))
    for other in (np.arange(3, dtype=np.float32), np.arange(3.0)[:, None]):
        with pytest.raises(AssertionError, match="energy: all parts have one type"):
            writer.add("energy", other)
    writer.close()
