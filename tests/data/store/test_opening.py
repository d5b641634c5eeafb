"""From files to structures: the same in memory and through the store, which is found again for the same content only."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_structures import cluster, crystal, labelled, structures_of

from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.extxyz.writer import write_extxyz
from modelforge.data.sources.part import Part
from modelforge.data.sources.source import SourceFiles
from modelforge.data.sources.stored import Stored
from modelforge.data.store import opening
from modelforge.data.store.columns import INDEX
from modelforge.data.store.opening import OpenedData, cache_folder, open_files, store_key
from modelforge.data.store.prepared_once import silent
from modelforge.data.store.store import write_files
from modelforge.data.structures import Structures, concatenate
from modelforge.errors import UserError

NUM = 12


@pytest.fixture
def xyz(tmp_path: Path) -> Path:
    """A file of molecules and crystals, some without labels."""
    some = [labelled(cluster(4, (1, 8), seed=seed), seed=seed, energy=-97195.123456789 - seed) for seed in range(NUM - 2)]
    whole = [cluster(3, (6,), seed=50), *some, labelled(crystal(4, (6, 14), seed=60), seed=60, energy=-1e6)]
    write_extxyz(tmp_path / "x.xyz", structures_of(whole))
    return tmp_path / "x.xyz"


@pytest.fixture
def opens(tmp_path: Path) -> "Opener":
    return Opener(tmp_path / "cache")


class Opener:
    """Opens files through the store, and notes whether it was prepared."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.said: list[str] = []

    def __call__(self, *paths: Path, prefix: str = "", **options: Any) -> OpenedData:
        self.said.clear()
        return open_files([files_of(*paths, prefix=prefix, **options)], cache=self.cache, say=self.said.append, store_from=0)

    @property
    def prepared(self) -> bool:
        return any(text.startswith("preparing ") for text in self.said)

    @property
    def stores(self) -> list[Path]:
        return sorted(path for path in (self.cache / "stores").iterdir() if path.is_dir())


def files_of(*paths: Path, prefix: str = "", **options: Any) -> SourceFiles:
    return SourceFiles(ExtendedXYZ(path="x.xyz", stress_key="stress", **options), paths, prefix)


def in_memory(*files: SourceFiles) -> OpenedData:
    opened = open_files(files, cache=Path("/nowhere"), say=pytest.fail, store_from=2**60)
    assert opened.columns is None
    return opened


def assert_same(first: Structures, second: Structures, *, but: tuple[str, ...] = ()) -> None:
    for field in fields(Structures):
        if field.name not in but:
            one, other = getattr(first, field.name), getattr(second, field.name)
            assert one == other if isinstance(one, tuple) else one.tobytes() == other.tobytes(), field.name


def test_structures_are_the_same_in_memory_and_through_the_store(xyz: Path, opens: Opener):
    shutil.copy(xyz, xyz.with_name("y.xyz"))
    paths = (xyz, xyz.with_name("y.xyz"))
    small, large = in_memory(files_of(*paths, prefix="set")), opens(*paths, prefix="set")
    assert opens.prepared
    assert large.columns is not None
    assert_same(large.structures, small.structures)
    assert large.content_hash == small.content_hash
    assert large.report == small.report


def test_the_size_of_all_files_decides(xyz: Path, tmp_path: Path):
    size = xyz.stat().st_size
    for store_from, is_stored in ((2 * size, True), (2 * size + 1, False)):
        files = [files_of(xyz), files_of(xyz, prefix="again")]
        opened = open_files(files, cache=tmp_path / "cache", say=silent, store_from=store_from)
        assert (opened.columns is not None) is is_stored


def test_a_store_is_found_again(xyz: Path, opens: Opener):
    first = opens(xyz)
    assert opens.prepared
    again = opens(xyz)
    assert not opens.said
    assert_same(again.structures, first.structures)
    assert len(opens.stores) == 1


def test_other_bytes_of_the_same_size_and_time_make_a_new_store(xyz: Path, opens: Opener):
    first, status = opens(xyz), xyz.stat()
    xyz.write_text(xyz.read_text().replace("-97195.12345678", "-97195.12345679"))
    os.utime(xyz, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert xyz.stat().st_size == status.st_size
    second = opens(xyz)
    assert opens.prepared, "the file was written just now: its time says nothing"
    assert first.content_hash != second.content_hash
    assert second.structures.energy[1] == -97195.123456799
    assert len(opens.stores) == 2


def test_other_bytes_at_another_time_make_a_new_store(xyz: Path, opens: Opener):
    long_ago = 1_600_000_000
    os.utime(xyz, (long_ago, long_ago))
    first = opens(xyz)
    xyz.write_text(xyz.read_text().replace("-1000000.0", "-1000000.5"))
    os.utime(xyz, (long_ago + 1, long_ago + 1))
    assert opens(xyz).content_hash != first.content_hash
    assert opens.prepared


def test_another_time_alone_makes_no_new_store(xyz: Path, opens: Opener):
    opens(xyz)
    os.utime(xyz, (1_600_000_000, 1_600_000_000))
    opens(xyz)
    assert not opens.said


OPTIONS = [
    {"energy_unit": "hartree"},
    {"energy_key": None},
    {"forces_key": "other"},
    {"stress_convention": "compression_positive"},
    {"subset_key": None},
    {"group_key": "molecule"},
    {"prefix": "set"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_what_is_read_otherwise_is_another_store(xyz: Path, opens: Opener, options: dict[str, Any]):
    opens(xyz)
    second = opens(xyz, **options)
    assert opens.prepared
    expected = in_memory(files_of(xyz, **options))
    assert_same(second.structures, expected.structures)
    assert second.content_hash == expected.content_hash
    assert second.report == expected.report


@pytest.mark.parametrize("options", [{"audit": "report"}, {"cache_folder": "elsewhere"}, {"filter": {"min_atoms": 2}}])
def test_what_is_no_matter_of_reading_makes_no_new_store(xyz: Path, opens: Opener, options: dict[str, Any]):
    opens(xyz)
    opens(xyz, **options)
    assert not opens.said


def test_the_order_and_the_number_of_files_make_another_store(xyz: Path, tmp_path: Path):
    other = tmp_path / "other.xyz"
    other.write_text("1\n\nH 0 0 0\n")
    choices = [[files_of(xyz, other)], [files_of(other, xyz)], [files_of(xyz)], [files_of(xyz), files_of(other)]]
    assert len({store_key(files, tmp_path / "cache") for files in choices}) == 4


def test_moved_files_find_their_store_and_have_their_new_names(xyz: Path, opens: Opener):
    first = opens(xyz)
    assert first.structures.place(3) == f"{xyz}:3"
    moved = xyz.with_name("moved") / "renamed.xyz"
    moved.parent.mkdir()
    xyz.rename(moved)
    second = opens(moved)
    assert not opens.said
    assert second.structures.place(3) == f"{moved}:3"
    assert second.report.files == (str(moved),)
    assert_same(second.structures, first.structures, but=("files",))


class Dropping(ExtendedXYZ):
    """Leaves out the last structure of each part."""

    def read_file(self, path: Path) -> Iterator[Part]:
        for part in super().read_file(path):
            last = len(part.structures) - 1
            yield Part(part.structures.slice(0, last), part.keys, part.columns, part.units, None, {"too last": [last]})


def test_removals_name_the_present_files(xyz: Path, tmp_path: Path):
    reader = Dropping(path="x.xyz")
    moved = shutil.copy(xyz, tmp_path / "moved.xyz")
    for path in (xyz, moved):
        stored = open_files([reader.files([path])], cache=tmp_path / "cache", say=silent, store_from=0)
        assert [(removal.reason, removal.file, removal.count) for removal in stored.report.removals] == [
            ("too last", str(path), 1)
        ]
        assert stored.report == in_memory(reader.files([path])).report


def truncated(store: Path) -> None:
    os.truncate(store / "positions.bin", 100)


def broken(store: Path) -> None:
    (store / INDEX).write_text('{"columns": {')


def empty(store: Path) -> None:
    (store / INDEX).write_text("")


def says_nothing(store: Path) -> None:
    (store / INDEX).write_text('{"columns": {}, "about": {"version": 1}}')


def lost(store: Path) -> None:
    (store / "positions.bin").unlink()


@pytest.mark.parametrize("damage", [truncated, broken, empty, says_nothing, lost])
def test_a_damaged_store_is_prepared_again(xyz: Path, opens: Opener, damage):
    first = opens(xyz)
    expected = first.structures.take(np.arange(NUM))
    damage(opens.stores[0])
    second = opens(xyz)
    assert "damaged; preparing it again" in opens.said[0]
    assert opens.prepared
    assert_same(second.structures, expected)
    opens(xyz)
    assert not opens.said


def test_a_store_that_stays_damaged_is_an_error(xyz: Path, opens: Opener, monkeypatch: pytest.MonkeyPatch):
    def writes_badly(folder: Path, files: Any) -> None:
        write_files(folder, files)
        truncated(folder)

    monkeypatch.setattr(opening, "write_files", writes_badly)
    with pytest.raises(UserError, match=r"^dataset\.cache_folder: .* is damaged again and again; check the disk"):
        opens(xyz)


def test_a_cache_that_cannot_be_made_is_an_error_that_names_the_key(xyz: Path):
    with pytest.raises(UserError, match=r"^dataset\.cache_folder: .*Not a directory"):
        open_files([files_of(xyz)], cache=xyz / "cache", say=silent, store_from=0)
    assert open_files([files_of(xyz)], cache=xyz / "cache", say=silent).columns is None, "small data need no cache"


def store_of(path: Path, out: Path, **options: Any) -> Path:
    write_files(out, [files_of(path, **options)])
    return out


def stored(*paths: Path, prefix: str = "") -> SourceFiles:
    return SourceFiles(Stored(name="store", path=tuple(map(str, paths))), paths, prefix)


def test_a_store_that_was_written_is_read_as_its_source(xyz: Path, tmp_path: Path):
    store = store_of(xyz, tmp_path / "store")
    found, expected = open_files([stored(store)], cache=Path("/nowhere"), say=pytest.fail), in_memory(files_of(xyz))
    assert found.columns is not None, "whatever its size, it is mapped where it lies"
    assert_same(found.structures, expected.structures)
    assert found.content_hash == expected.content_hash
    assert found.report == expected.report


@pytest.mark.parametrize("store_from", [0, 2**60], ids=["stored", "in memory"])
def test_two_stores_are_read_one_after_the_other(xyz: Path, tmp_path: Path, store_from: int):
    other = tmp_path / "other.xyz"
    write_extxyz(other, structures_of([labelled(cluster(3, (1,), seed=7), seed=7)]))
    both = stored(store_of(xyz, tmp_path / "a"), store_of(other, tmp_path / "b"))
    found = open_files([both], cache=tmp_path / "cache", say=silent, store_from=store_from)
    expected = in_memory(files_of(xyz, other))
    assert (found.columns is not None) is (store_from == 0)
    assert_same(found.structures, expected.structures, but=("files",))
    assert found.content_hash == expected.content_hash
    assert found.structures.files == (str(tmp_path / "a"), str(tmp_path / "b"))
    forces = found.report.origin("forces_key")
    assert forces is not None
    assert (forces.num_carriers, forces.num_incomplete) == (NUM, 0), "of both, one molecule has none"


def test_groups_of_one_store_are_not_those_of_another(xyz: Path, tmp_path: Path):
    both = stored(store_of(xyz, tmp_path / "a"), store_of(xyz, tmp_path / "b"))
    assert len(set(in_memory(both).structures.group.tolist())) == 2 * NUM


def test_a_store_and_a_file_are_read_together(xyz: Path, tmp_path: Path):
    store = store_of(xyz, tmp_path / "store")
    found = open_files([stored(store, prefix="old"), files_of(xyz, prefix="new")], cache=tmp_path, say=silent)
    assert found.structures.subset_names == ("old", "new")
    expected = in_memory(files_of(xyz)).structures
    twice = concatenate([expected, expected])
    assert_same(found.structures, twice, but=("files", "subset_names", "subset", "file", "group"))
    assert sorted(found.structures.group.tolist()) == [*range(2 * NUM)]


def test_a_lone_store_has_the_subset_of_its_prefix(xyz: Path, tmp_path: Path):
    store = store_of(xyz, tmp_path / "store")
    found = open_files([stored(store, prefix="old")], cache=tmp_path / "cache", say=silent)
    assert [found.structures.subset_names[number] for number in found.structures.subset] == ["old"] * NUM


def test_a_damaged_store_that_is_named_is_an_error(xyz: Path, tmp_path: Path):
    store = store_of(xyz, tmp_path / "store")
    truncated(store)
    for paths in ((store,), (store, store)):
        with pytest.raises(UserError, match="must be a complete store; convert the data again"):
            open_files([stored(*paths)], cache=tmp_path / "cache", say=silent)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"^dataset\.path: .* must be a store"):
        Stored(name="store", path=str(tmp_path)).training_files()


def test_the_cache_lies_where_the_user_or_the_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert cache_folder("/some/where") == Path("/some/where")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "modelforge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "modelforge"
