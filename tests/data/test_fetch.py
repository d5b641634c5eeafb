"""Data sets are fetched over HTTP from a local server: whole, damaged, absent, by two at once, and not twice."""

import errno
import fcntl
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from ase.data import atomic_numbers
from file_server import PACKED, Answers, archive_of, hdf5_file, md5, npz_file
from rich.console import Console

from modelforge.data.fetching import meter
from modelforge.data.fetching.fetch import fetch, path_of
from modelforge.data.fetching.registry import DATA_SETS, DataSet, RemoteFile, find
from modelforge.errors import UserError


def test_a_packed_file_is_fetched_unpacked_and_nothing_else_is_kept(toy: SimpleNamespace):
    assert path_of("toy", folder=toy.folder) is None
    path = toy.fetch()
    assert path.read_bytes() == toy.content
    with h5py.File(path) as file:
        assert file["methane/positions"].shape == (2_000, 5, 3)
    assert path_of("toy", folder=toy.folder) == path
    assert sorted(os.listdir(toy.place)) == [".toy.hdf5.checked", ".toy.hdf5.lock", "toy.hdf5"]


def test_a_second_call_asks_the_server_nothing(toy: SimpleNamespace, server: Answers):
    first = toy.fetch()
    asked = list(server.asked)
    assert toy.fetch() == first
    assert server.asked == asked == [(PACKED, None)]


def test_a_wrong_checksum_is_an_error_and_the_file_is_removed(toy: SimpleNamespace, server: Answers):
    toy.register(replace(toy.remote, md5="0" * 32))
    with pytest.raises(
        UserError, match=f"must have the md5 {'0' * 32} .got {md5(toy.packed)}, removed.; fetch it again"
    ) as error:
        toy.fetch()
    assert f"{server.url}{PACKED}" in str(error.value)
    assert os.listdir(toy.place) == [".toy.hdf5.lock"]


def test_a_wrong_checksum_of_what_was_unpacked_is_an_error(toy: SimpleNamespace):
    toy.register(replace(toy.remote, kept_md5="0" * 32))
    with pytest.raises(UserError, match=f"must have the md5 {'0' * 32} .got {md5(toy.content)}, removed"):
        toy.fetch()
    assert os.listdir(toy.place) == [".toy.hdf5.lock"]


def test_a_checksum_that_is_not_registered_comes_from_the_record(toy: SimpleNamespace, server: Answers):
    entry = {"key": "toy.hdf5.gz", "size": len(toy.packed), "checksum": f"md5:{md5(toy.packed)}", "links": {"self": ""}}
    toy.register(replace(toy.remote, md5=None, kept_md5=None))
    server.files["/api/records/1"] = json.dumps({"id": 1, "files": [{**entry, "checksum": f"md5:{'0' * 32}"}]}).encode()
    with pytest.raises(UserError, match="must have the md5 0000"):
        toy.fetch()
    server.files["/api/records/1"] = json.dumps({"id": 1, "files": [{**entry, "key": "notes.txt"}, entry]}).encode()
    assert toy.fetch().read_bytes() == toy.content


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>", "no metadata of a record"),
        (
            b'{"files": [{"key": "other.gz", "size": 1, "checksum": "md5:0"}]}',
            r"must hold one file toy.hdf5.gz \(got other.gz\)",
        ),
    ],
)
def test_a_record_without_the_file_is_an_error(toy: SimpleNamespace, server: Answers, answer: bytes, message: str):
    toy.register(replace(toy.remote, md5=None))
    server.files["/api/records/1"] = answer
    with pytest.raises(UserError, match=message):
        toy.fetch()


def test_tmqm_takes_name_and_checksum_of_its_file_from_the_record(server: Answers, tmp_path: Path):
    packed = gzip.compress(hdf5_file(tmp_path / "published.hdf5"))
    entry = {"key": "tmqm_dataset_v1.1.hdf5.gz", "size": len(packed), "checksum": f"md5:{md5(packed)}"}
    server.files["/api/records/15331686"] = json.dumps({"files": [entry]}).encode()
    server.files["/records/15331686/files/tmqm_dataset_v1.1.hdf5.gz"] = packed
    (path,) = fetch("tmQM", folder=tmp_path, base_url=server.url)
    assert path == tmp_path / "tmqm" / "full_dataset_v1.1" / "tmqm_dataset_v1.1.hdf5"
    assert path.is_file()


def test_a_file_without_any_checksum_is_fetched_and_that_is_said(server: Answers, tmp_path: Path):
    content = npz_file(z=np.array([6, 1]), R=np.zeros((3, 2, 3)), E=np.zeros(3), F=np.zeros((3, 2, 3)))
    server.files["/gdml/repo/datasets/md22_DHA.npz"] = content
    output = io.StringIO()
    (path,) = fetch("md22", molecule="DHA", folder=tmp_path, base_url=server.url, progress=Console(file=output, width=200))
    assert path.read_bytes() == content
    assert [asked for asked, _ in server.asked] == [
        "/secure_proxy.php?file=repo/datasets/md22_DHA.npz",  # the first address has no such file
        "/gdml/repo/datasets/md22_DHA.npz",
    ]
    assert "md22_DHA.npz: no checksum is published" in output.getvalue()


def test_an_error_page_is_no_data(server: Answers, tmp_path: Path):
    server.files["/secure_proxy.php?file=repo/datasets/md22_DHA.npz"] = b"<html>Try later.</html>"
    with pytest.raises(UserError, match=r"must be an npz file .got a file that begins with b'<html>Tr', removed."):
        fetch("md22", molecule="DHA", folder=tmp_path, base_url=server.url)
    assert os.listdir(tmp_path / "md22" / "npz") == [".md22_DHA.npz.lock"]


def register_archive(monkeypatch: pytest.MonkeyPatch, server: Answers, packed: bytes) -> None:
    server.files["/toy.tar.bz2"] = packed
    files = {
        name: RemoteFile(f"{name}.npz", ("https://example.org/toy.tar.bz2",), md5(packed), member=f"toy/{name}.npz")
        for name in ("water", "methane")
    }
    monkeypatch.setitem(DATA_SETS, "toy", DataSet("toy", "", "", "", "", "npz", {"archive": files}, energy_key="E"))


def test_two_molecules_come_from_one_transfer_of_their_archive(server: Answers, tmp_path: Path, monkeypatch):
    contents = {name: npz_file(E=np.arange(number)) for name, number in (("water", 3), ("methane", 4))}
    packed = archive_of({"./toy/readme.txt": b"read", **{f"./toy/{name}.npz": content for name, content in contents.items()}})
    register_archive(monkeypatch, server, packed)
    paths = fetch("toy", folder=tmp_path, base_url=server.url)
    assert [path.name for path in paths] == ["water.npz", "methane.npz"]
    assert [path.read_bytes() for path in paths] == list(contents.values())
    assert len(server.asked) == 1
    assert fetch("toy", molecule="methane", folder=tmp_path, base_url="http://127.0.0.1:1") == paths[1:]
    assert not list(paths[0].parent.glob("toy.tar*"))
    with pytest.raises(UserError, match="molecule: missing; choose one of water, methane"):
        path_of("toy", folder=tmp_path)


@pytest.mark.parametrize(
    ("members", "links", "message"),
    [
        ({"toy/../../out.npz": b"out"}, (), r"holds 'toy/\.\./\.\./out\.npz', a path that leads out"),
        ({"/tmp/out.npz": b"out"}, (), "holds '/tmp/out.npz', a path that leads out"),
        ({}, ("toy/water.npz",), "'toy/water.npz' must be a plain file"),
        ({"toy/water.npz": npz_file(E=np.zeros(1))}, (), "has no toy/methane.npz"),
        ({"toy/water.npz": b"no zip"}, (), "must be an npz file"),
    ],
)
def test_an_archive_that_is_not_as_it_must_be_is_refused(server: Answers, tmp_path: Path, monkeypatch, members, links, message):
    register_archive(monkeypatch, server, archive_of(members, links=links))
    with pytest.raises(UserError, match=message):
        fetch("toy", folder=tmp_path / "kept", base_url=server.url)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {".toy.tar.bz2.lock", "water.npz"}


def test_a_damaged_packed_file_without_checksum_is_an_error(toy: SimpleNamespace, server: Answers):
    toy.register(replace(toy.remote, md5=None, record=None, kept_md5=None))
    server.files[PACKED] = toy.packed[:-1_000]
    with pytest.raises(UserError, match="cannot be unpacked"):
        toy.fetch()
    assert os.listdir(toy.place) == [".toy.hdf5.lock"]


def test_a_file_put_there_by_hand_is_checked_once_and_needs_no_server(toy: SimpleNamespace, server: Answers):
    toy.place.mkdir(parents=True)
    (toy.place / "toy.hdf5").write_bytes(toy.content)
    assert toy.fetch() == toy.place / "toy.hdf5"
    assert server.asked == []
    (toy.place / "toy.hdf5").write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"must have the md5 {md5(toy.content)} .got {md5(b'damaged')}, removed"):
        toy.fetch()
    assert toy.fetch().read_bytes() == toy.content


def test_a_disk_without_room_for_the_unpacked_file_is_an_error_first(toy: SimpleNamespace, server: Answers, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(toy.packed)))
        with pytest.raises(UserError, match=rf"{len(toy.content) / 1000:.1f} kB more are needed: No space left.*call again"):
            toy.fetch()
    assert os.listdir(toy.place / "toy.hdf5.arriving") == ["toy.hdf5.download"]
    assert toy.fetch().read_bytes() == toy.content
    assert server.num_sent == len(toy.packed)


def test_a_disk_without_room_for_a_member_is_an_error_first(server: Answers, tmp_path: Path, monkeypatch):
    members = {f"toy/{name}.npz": npz_file(E=np.zeros(100_000)) for name in ("water", "methane")}
    register_archive(monkeypatch, server, archive_of(members))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(UserError, match=r"water\.npz\.unpacked: .*800\.3 kB more are needed"):
        fetch("toy", folder=tmp_path, base_url=server.url)


class Said(io.StringIO):
    """Output that tells when a word was said."""

    def __init__(self, word: str):
        super().__init__()
        self.word, self.was_said = word, threading.Event()

    def write(self, text: str) -> int:
        if self.word in text:
            self.was_said.set()
        return super().write(text)


def test_of_two_that_fetch_the_same_file_one_waits_for_the_other(toy: SimpleNamespace, server: Answers):
    started, output = threading.Event(), Said("another process fetches the same file; waiting for it")

    def midway() -> None:
        started.set()
        assert output.was_said.wait(10)

    server.midway = midway
    with ThreadPoolExecutor() as pool:  # a lock belongs to an open file: threads meet it as processes do
        first = pool.submit(toy.fetch)
        assert started.wait(10)
        second = pool.submit(toy.fetch, progress=Console(file=output, width=200))
        assert first.result() == second.result()
    assert first.result().read_bytes() == toy.content
    assert len(server.asked) == 1
    assert sorted(os.listdir(toy.place)) == [".toy.hdf5.checked", ".toy.hdf5.lock", "toy.hdf5"]


def without_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_without_locks_two_that_fetch_the_same_file_do_not_damage_it(toy: SimpleNamespace, server: Answers, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", without_locks)
    server.midway = threading.Barrier(2, timeout=10).wait
    with ThreadPoolExecutor() as pool:
        fetched = [pool.submit(toy.fetch) for _ in range(2)]
        assert [path.result().read_bytes() for path in fetched] == [toy.content] * 2
    assert server.asked == [(PACKED, None)] * 2
    assert sorted(os.listdir(toy.place)) == [".toy.hdf5.checked", ".toy.hdf5.lock", "toy.hdf5"]


def test_without_locks_a_broken_transfer_goes_on_in_the_next_call(toy: SimpleNamespace, server: Answers, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", without_locks)
    server.break_after = [40_000] + [0] * 10
    with pytest.raises(UserError, match="40000 bytes have arrived"):
        toy.fetch()
    assert sorted(os.listdir(toy.place)) == [".toy.hdf5.lock", "toy.hdf5.arriving"]
    server.break_after.clear()
    assert toy.fetch().read_bytes() == toy.content
    assert server.num_sent == len(toy.packed)


def test_a_checked_file_in_a_folder_that_cannot_be_written_to_needs_no_lock(toy: SimpleNamespace):
    path = toy.fetch()
    (toy.place / ".toy.hdf5.lock").unlink()
    toy.place.chmod(0o500)
    try:
        assert toy.fetch() == path
        assert not (toy.place / ".toy.hdf5.lock").exists()  # also where the tests run as root
    finally:
        toy.place.chmod(0o700)


def test_without_pooch_the_error_says_how_to_install_it(toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UserError, match="pip install pooch"):
        toy.fetch()


def test_a_folder_that_cannot_be_made_is_an_error(toy: SimpleNamespace):
    toy.folder.write_text("a file, no folder")
    with pytest.raises(UserError, match=r"kept.*: cannot be read or written: .*choose another folder"):
        toy.fetch()


def test_two_data_sets_lie_side_by_side(toy: SimpleNamespace, server: Answers, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(DATA_SETS, "other", replace(DATA_SETS["toy"], name="other"))
    paths = [fetch(name, folder=toy.folder, base_url=server.url)[0] for name in ("toy", "other")]
    assert paths[0] != paths[1]
    assert paths[0].read_bytes() == paths[1].read_bytes() == toy.content


def test_progress_is_lines_without_and_a_bar_with_a_terminal(toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meter, "LINE_EVERY", 0.0)
    lines, bar = io.StringIO(), io.StringIO()
    toy.fetch(progress=Console(file=lines, width=200))
    assert f"of {len(toy.packed) / 1000:.1f} kB\n" in lines.getvalue()
    assert "\x1b" not in lines.getvalue()
    (toy.place / "toy.hdf5").unlink()
    toy.fetch(progress=Console(file=bar, force_terminal=True, width=200))
    assert "unpacking toy.hdf5" in bar.getvalue()
    assert "━" in bar.getvalue()


def test_an_unknown_name_version_or_molecule_is_an_error_with_the_nearest():
    with pytest.raises(UserError, match=r"data set: there is no 'spice3'; did you mean 'spice2'\? known: qm9, ani1x"):
        fetch("spice3")
    with pytest.raises(UserError, match=r"qm9: version: there is no 'v9'; known: full_dataset_v1\.2, "):
        fetch("qm9", version="v9")
    with pytest.raises(UserError, match="rmd17: molecule: there is no 'Ethanol'; did you mean 'ethanol'"):
        fetch("rmd17", molecule="Ethanol")
    with pytest.raises(UserError, match="qm9: molecule: must not be given"):
        fetch("qm9", molecule="ethanol")


def test_without_a_folder_data_sets_lie_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "modelforge" / "datasets" / "fe_ii" / "nc_1000_v1.1"
    place.mkdir(parents=True)
    (place / "fe_II_ntc_1000_v1.1.hdf5").touch()
    assert path_of("FE_II", version="latest_test") == place / "fe_II_ntc_1000_v1.1.hdf5"


@pytest.mark.parametrize("data_set", DATA_SETS.values(), ids=lambda data_set: data_set.name)
def test_a_registered_data_set_is_stated_in_full(data_set: DataSet):
    assert find(data_set.name.upper()) is data_set
    assert data_set.citation
    assert data_set.doi.startswith("10.")
    assert set(data_set.self_energies) <= set(atomic_numbers)
    assert bool(data_set.self_energies) == bool(data_set.self_energies_origin)
    units = (data_set.energy_unit, data_set.length_unit, data_set.forces_unit)
    assert all(units) if data_set.source_format == "npz" else not any(units)
    for files in data_set.versions.values():
        assert len({file.kept for file in files.values()}) == len(files)
        for file in files.values():
            assert file.kept.endswith(f".{data_set.source_format}")
            assert file.urls or file.record
            assert all(url.startswith(("https://", "http://www.quantum-machine.org/")) for url in file.urls)
            assert all(len(checksum) == 32 and int(checksum, 16) for checksum in (file.md5, file.kept_md5) if checksum)
            assert all(f"records/{file.record}/" in url for url in file.urls) or file.record is None


def test_registered_checksums_are_all_different_but_for_shared_archives():
    files = [file for data_set in DATA_SETS.values() for some in data_set.versions.values() for file in some.values()]
    by_checksum = {file.md5: file.urls for file in files if file.md5}
    assert all(by_checksum[file.md5] == file.urls for file in files if file.md5)


def test_self_energies_are_in_ev_and_near_the_energy_of_the_atom():
    hydrogen = {name: data_set.self_energies["H"] for name, data_set in DATA_SETS.items() if data_set.self_energies}
    assert hydrogen.pop("fe_ii") == pytest.approx(-2.673, abs=1e-3)
    assert hydrogen["qm9"] == pytest.approx(-13.6134, abs=1e-3)
    assert all(-17 < energy < -13 for energy in hydrogen.values())


def test_the_registry_is_cheap_to_import():
    code = (
        "import sys, modelforge.data.fetching.registry; print(*(name in sys.modules for name in ('torch', 'pooch', 'numpy')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False", "False"]
