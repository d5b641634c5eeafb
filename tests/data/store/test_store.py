"""The store holds the bits of its source, whatever parts it was written in, and says the same about it."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from made_structures import cluster, crystal, labelled, structures_of
from pydantic import PrivateAttr

from modelforge.data.sources.extxyz import ExtendedXYZ, read_parts
from modelforge.data.sources.extxyz.writer import write_extxyz
from modelforge.data.sources.gather import read
from modelforge.data.sources.part import Part
from modelforge.data.sources.read_report import ReadReport, Removal
from modelforge.data.store.columns import INDEX, DamagedColumns
from modelforge.data.store.content_hash import content_hash
from modelforge.data.store.store import COMPACT, Store, is_store, open_store, write_files, write_structures
from modelforge.data.structures import COLUMNS, LABELS, Structures, is_constant
from modelforge.errors import UserError

PROPERTY = settings(derandomize=True, deadline=None, max_examples=25)
ENERGIES = [-97195.123456789, -1e6, np.nextafter(-1e6, 0.0), -0.1 - 0.2, 1e-300]
KEYS = {f"{label}_key": label for label in LABELS}
REPORT = ReadReport(("made.xyz",), 1, (), {}, {})


class InParts(ExtendedXYZ):
    """Reads files in parts of few bytes."""

    _text_size: int = PrivateAttr(2**25)

    def read_file(self, path: Path) -> Iterator[Part]:
        return read_parts(path, self, text_size=self._text_size)


def source_of(text_size: int, **keys: str | None) -> InParts:
    source = InParts(path="x.xyz", **keys)
    source._text_size = text_size
    return source


def complete_structures() -> Structures:
    """Molecules, crystals and a slab with all labels."""
    slab = Atoms("CH", [[0, 0, 0], [0, 0, 9.0]], cell=[4, 4, 0], pbc=(True, True, False))
    some = [cluster(5, (1, 8), seed=0), crystal(4, (6, 14), seed=1), slab, Atoms("U"), crystal(7, (3,), seed=2)]
    whole = structures_of([labelled(atoms, seed=seed) for seed, atoms in enumerate(some)])
    random = np.random.default_rng(0)
    labels = {label: random.normal(size=getattr(whole, label).shape) * 1e3 for label in LABELS}
    labels["stress"] += labels["stress"].swapaxes(1, 2)
    labels["energy"], labels["weight"] = np.array(ENERGIES), np.array([1.0, 0.1, 2.0, 1.0, 1 / 3])
    return replace(whole, **labels, subset=np.array([1, 0, 1, 2, 0]), subset_names=("", "bulk", "odd name"))


COMPLETE = complete_structures()
EVENLY_WEIGHTED = replace(COMPLETE, weight=np.ones(5))


def lacking(first: int, last: int) -> Structures:
    """The structures, of which some lack all labels."""
    columns = {label: getattr(EVENLY_WEIGHTED, label).copy() for label in LABELS}
    atoms = slice(*COMPLETE.offsets[[first, last]])
    for label, values in columns.items():
        values[atoms if COLUMNS[label].per_atom else slice(first, last)] = np.nan
    return replace(EVENLY_WEIGHTED, **columns)


SOURCES = {
    "all labels": EVENLY_WEIGHTED,
    "the first lack labels": lacking(0, 3),
    "the last lack labels": lacking(3, 5),
    "some lack labels": lacking(1, 2),
    "no labels": lacking(0, 5),
}


def assert_same_bits(found: Structures, expected: Structures) -> None:
    assert (found.files, found.subset_names) == (expected.files, expected.subset_names)
    for name, column in COLUMNS.items():
        got, wanted = getattr(found, name), getattr(expected, name)
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape) == (column.dtype, wanted.shape), name
        assert got.tobytes() == wanted.tobytes(), name


def on_disk(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("text_size", [1, 300, 2**25])
@pytest.mark.parametrize("case", SOURCES)
def test_the_store_holds_the_bits_of_its_source(tmp_path: Path, case: str, text_size: int):
    write_extxyz(tmp_path / "x.xyz", SOURCES[case])
    files = [source_of(text_size, **KEYS).files([tmp_path / "x.xyz"])]
    write_files(tmp_path / "store", files)
    store, expected = open_store(tmp_path / "store"), read(files)
    assert_same_bits(store.reading.structures, expected.structures)
    assert store.reading.report == expected.report
    assert store.content_hash == content_hash(expected.structures)
    for name in ("positions", "cell", *LABELS, "weight"):
        np.testing.assert_array_equal(getattr(store.reading.structures, name), getattr(SOURCES[case], name), err_msg=name)
    assert store.reading.structures.energy[4] == SOURCES[case].energy[4] or np.isnan(SOURCES[case].energy[4])


@PROPERTY
@given(st.sampled_from(list(SOURCES)), st.lists(st.integers(1, 3000), min_size=2, max_size=2))
def test_any_cutting_gives_the_same_bytes_and_hash(tmp_path_factory: pytest.TempPathFactory, case: str, text_sizes: list[int]):
    folder = tmp_path_factory.mktemp("cuttings")
    write_extxyz(folder / "x.xyz", SOURCES[case])
    for size in set(text_sizes):
        write_files(folder / f"{size}", [source_of(size, **KEYS).files([folder / "x.xyz"])])
    stores = [on_disk(folder / f"{size}") for size in text_sizes]
    assert stores[0] == stores[1]
    assert content_hash(read([source_of(1, **KEYS).files([folder / "x.xyz"])]).structures) in stores[0][INDEX].decode()


@pytest.mark.parametrize("text_size", [1, 2**25])
def test_a_missing_virial_hashes_the_same_in_any_cutting(tmp_path: Path, text_size: int):
    frame = '1\nLattice="3 0 0 0 3 0 0 0 3" {} Properties=species:S:1:pos:R:3\nH 0 0 0\n'
    texts = [frame.format(label) for label in ("", 'virial="1 0 0 0 1 0 0 0 1"', "")]
    (tmp_path / "x.xyz").write_text("".join(texts))
    files = [source_of(text_size, virial_key="virial").files([tmp_path / "x.xyz"])]
    write_files(tmp_path / "store", files)
    whole = [source_of(2**25, virial_key="virial").files([tmp_path / "x.xyz"])]
    assert open_store(tmp_path / "store").content_hash == content_hash(read(whole).structures)


def test_labels_that_are_missing_everywhere_have_no_file_and_no_memory(tmp_path: Path):
    write_extxyz(tmp_path / "x.xyz", SOURCES["no labels"])
    write_files(tmp_path / "store", [source_of(1, **KEYS).files([tmp_path / "x.xyz"])])
    structures = open_store(tmp_path / "store").reading.structures
    assert all(is_constant(getattr(structures, label)) for label in LABELS)
    assert not {f"{label}.bin" for label in LABELS} & set(on_disk(tmp_path / "store"))
    assert not any(structures.has(label).any() for label in LABELS)


def test_a_store_is_mapped_and_cannot_be_written_to(tmp_path: Path):
    write_structures(tmp_path / "store", COMPLETE, REPORT)
    structures = open_store(tmp_path / "store").reading.structures
    for name in set(COLUMNS) - set(COMPACT):
        assert not getattr(structures, name).flags.writeable, name
    with pytest.raises(ValueError, match="read-only"):
        structures.forces[0] = 0.0


def test_a_released_store_is_read_again(tmp_path: Path):
    write_structures(tmp_path / "store", COMPLETE, REPORT)
    store = open_store(tmp_path / "store")
    assert_same_bits(store.reading.structures, COMPLETE)
    store.columns.release()
    assert_same_bits(store.reading.structures, COMPLETE)


def test_structures_that_are_there_are_written_as_they_are(tmp_path: Path):
    write_structures(tmp_path / "store", COMPLETE, REPORT)
    store = open_store(tmp_path / "store")
    assert_same_bits(store.reading.structures, COMPLETE)
    assert store.reading.report == REPORT
    assert store.content_hash == content_hash(COMPLETE)


def test_numbers_of_any_type_become_those_of_the_columns(tmp_path: Path):
    """Readers of binary formats may give single precision for one file and another byte order for the next."""
    single = replace(COMPLETE, positions=COMPLETE.positions.astype(np.float32), energy=COMPLETE.energy.astype(">f8"))

    class Mixed(ExtendedXYZ):
        def read_file(self, path: Path) -> Iterator[Part]:
            yield Part(single if path.name == "a" else COMPLETE)

    files = [Mixed(path="x").files([tmp_path / "a", tmp_path / "b"])]
    write_files(tmp_path / "store", files)
    structures = open_store(tmp_path / "store").reading.structures
    np.testing.assert_array_equal(structures.positions, np.concatenate([single.positions, COMPLETE.positions]))
    np.testing.assert_array_equal(structures.energy, [*ENERGIES, *ENERGIES])


def test_groups_and_files_are_numbered_over_all_files(tmp_path: Path):
    for name, group in (("a.xyz", "one"), ("b.xyz", "two"), ("c.xyz", "one")):
        frame = f"1\nProperties=species:S:1:pos:R:3 group={group} config_type={name[0]}\nH 0 0 0\n"
        (tmp_path / name).write_text(frame + frame.replace("group", "other"))
    paths = [tmp_path / f"{name}.xyz" for name in "abc"]
    files = [replace(source_of(1, group_key="group").files(paths), prefix="set")]
    write_files(tmp_path / "store", files)
    structures, expected = open_store(tmp_path / "store").reading.structures, read(files).structures
    assert_same_bits(structures, expected)
    assert structures.group[0] == structures.group[4]
    assert len(set(structures.group.tolist())) == 5
    assert [structures.subset_names[number] for number in structures.subset] == [f"set/{name}" for name in "aabbcc"]
    assert [structures.place(number) for number in (1, 4)] == [f"{paths[0]}:1", f"{paths[2]}:0"]


def test_present_names_of_files_replace_those_of_old_everywhere(tmp_path: Path):
    report = replace(REPORT, removals=(Removal("too hot", "made.xyz", 3),))
    write_structures(tmp_path / "store", COMPLETE, report)
    reading = Store(tmp_path / "store", files=("moved.xyz",)).reading
    assert reading.structures.place(2) == "moved.xyz:2"
    assert reading.report.files == ("moved.xyz",)
    assert reading.report.removals == (Removal("too hot", "moved.xyz", 3),)
    assert open_store(tmp_path / "store").reading.report == report


def test_a_source_that_cannot_be_read_to_its_end_leaves_no_store(tmp_path: Path):
    write_extxyz(tmp_path / "x.xyz", EVENLY_WEIGHTED)
    with (tmp_path / "x.xyz").open("a") as file:
        file.write("3\nProperties=species:S:1:pos:R:3\nH 0 0 0\n")
    with pytest.raises(UserError, match="truncated"):
        write_files(tmp_path / "store", [source_of(1).files([tmp_path / "x.xyz"])])
    assert not is_store(tmp_path / "store")


def test_a_store_of_another_version_is_refused(tmp_path: Path):
    write_structures(tmp_path / "store", COMPLETE, REPORT)
    index = json.loads((tmp_path / "store" / INDEX).read_text())
    index["about"]["version"] = 0
    (tmp_path / "store" / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"must be a store of version 1 \(got 0\)"):
        open_store(tmp_path / "store")


def test_a_damaged_store_is_an_error_to_whoever_named_it(tmp_path: Path):
    write_structures(tmp_path / "store", COMPLETE, REPORT)
    os.truncate(tmp_path / "store" / "positions.bin", 7)
    with pytest.raises(UserError, match=r"positions\.bin has 7 bytes, not .*must be a complete store; convert"):
        open_store(tmp_path / "store")


@pytest.mark.parametrize("gone", ["content_hash", "report", "files", "subset_names"])
def test_a_store_that_does_not_say_all_is_damaged(tmp_path: Path, gone: str):
    write_structures(tmp_path / "store", COMPLETE, REPORT)
    index = json.loads((tmp_path / "store" / INDEX).read_text())
    del index["about"][gone]
    (tmp_path / "store" / INDEX).write_text(json.dumps(index))
    with pytest.raises(DamagedColumns, match=gone):
        Store(tmp_path / "store")


def test_a_folder_is_a_store_if_it_has_an_index(tmp_path: Path):
    write_structures(tmp_path / "store", COMPLETE, REPORT)
    assert is_store(tmp_path / "store")
    assert not is_store(tmp_path)
    assert not is_store(tmp_path / "nowhere")
