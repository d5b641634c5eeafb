"""Data sets are fetched over HTTP from a local server: whole, broken, damaged, absent, and not twice."""

import bz2
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from ase.data import atomic_numbers
from rich.console import Console

from modelforge.data import fetch as fetching
from modelforge.data.fetch import fetch, path_of
from modelforge.data.registry import DATA_SETS, ONLY, DataSet, RemoteFile, find
from modelforge.errors import UserError

PACKED = "/records/1/files/toy.hdf5.gz"


@dataclass
class Answers:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    knows_ranges: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes of the body, for the next answers
    first_status: list[int] = field(default_factory=list)  # for the next answers
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and range
    num_sent: int = 0
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """Files with or without ranges; the entity tag is the checksum of the content."""

    answers: Answers

    def do_GET(self) -> None:
        answers, begin = self.answers, 0
        answers.asked.append((self.path, self.headers["Range"]))
        if answers.first_status:
            return self.send_error(answers.first_status.pop(0))
        if self.path in answers.moved:
            self.send_response(302)
            self.send_header("Location", answers.moved[self.path])
            return self.end_headers()
        if self.path not in answers.files:
            return self.send_error(404)
        content = answers.files[self.path]
        if self.headers["Range"] and answers.knows_ranges:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[begin:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{md5(content)}"')
        self.end_headers()
        body = body[: answers.break_after.pop(0)] if answers.break_after else body
        answers.num_sent += len(body)
        self.wfile.write(body)
        return None

    def log_message(self, *_: object) -> None:
        """Quiet."""


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def hdf5_file(path: Path, *, num_structures: int = 20) -> bytes:
    """A small file in the layout of the original modelforge, which does not compress well."""
    with h5py.File(path, "w") as file:
        group = file.create_group("methane")
        group["atomic_numbers"] = np.array([[6], [1], [1], [1], [1]])
        group["positions"] = np.random.default_rng(0).normal(size=(num_structures, 5, 3))
        group["positions"].attrs.update({"format": "per_atom", "u": "nanometer"})
    return path.read_bytes()


def npz_file(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def archive_of(members: dict[str, bytes], *, links: tuple[str, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return bz2.compress(stream.getvalue())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """A server on this machine, that retries need not wait for."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetching, "PAUSE", 0.001)
    answers = Answers()
    handler = type("TheHandler", (Handler,), {"answers": answers})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        answers.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield answers
        listening.shutdown()
        thread.join()


@pytest.fixture
def toy(server: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A registered data set in one packed HDF5 file, published on the server."""
    content = hdf5_file(tmp_path / "published.hdf5", num_structures=2_000)
    packed = gzip.compress(content, mtime=0)
    server.files[PACKED] = packed
    remote = RemoteFile("toy.hdf5", (f"https://zenodo.org{PACKED}",), md5(packed), len(packed), record=1, kept_md5=md5(content))
    folder = tmp_path / "kept"
    made = SimpleNamespace(content=content, packed=packed, remote=remote, folder=folder)

    def register(file: RemoteFile) -> None:
        data_set = DataSet("toy", "", "", "", "", "hdf5", {"full_v1": {ONLY: file}}, energy_key="energy")
        monkeypatch.setitem(DATA_SETS, "toy", data_set)

    register(remote)
    made.register = register
    made.fetch = lambda **options: fetch("toy", folder=folder, base_url=server.url, **options)[0]
    made.place = folder / "toy" / "full_v1"
    return made


def test_a_packed_file_is_fetched_unpacked_and_nothing_else_is_kept(toy: SimpleNamespace):
    assert path_of("toy", folder=toy.folder) is None
    path = toy.fetch()
    assert path.read_bytes() == toy.content
    with h5py.File(path) as file:
        assert file["methane/positions"].shape == (2_000, 5, 3)
    assert path_of("toy", folder=toy.folder) == path
    assert sorted(os.listdir(toy.place)) == [".toy.hdf5.checked", "toy.hdf5"]


def test_a_second_call_asks_the_server_nothing(toy: SimpleNamespace, server: Answers):
    first = toy.fetch()
    asked = list(server.asked)
    assert toy.fetch() == first
    assert server.asked == asked == [(PACKED, None)]


def test_a_broken_transfer_goes_on_where_it_broke_off(toy: SimpleNamespace, server: Answers):
    server.break_after = [40_000, 25_000] + [1_000] * fetching.ATTEMPTS  # each attempt brings something: all are made
    assert toy.fetch().read_bytes() == toy.content
    assert [asked for _, asked in server.asked][:4] == [None, "bytes=40000-", "bytes=65000-", "bytes=66000-"]
    assert server.num_sent - len(toy.packed) == 0  # bytes that were sent twice


def test_without_ranges_a_broken_transfer_starts_anew(toy: SimpleNamespace, server: Answers):
    server.knows_ranges, server.break_after = False, [40_000]
    assert toy.fetch().read_bytes() == toy.content
    assert server.num_sent - len(toy.packed) == 40_000


def test_an_interrupted_transfer_leaves_its_part_and_goes_on_in_the_next_call(
    toy: SimpleNamespace, server: Answers, monkeypatch: pytest.MonkeyPatch
):
    real, chunks = fetching._next, iter(range(3))

    def interrupted(response):
        if next(chunks, None) is None:
            raise KeyboardInterrupt
        return real(response)

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "CHUNK", 5_000)
        patch.setattr(fetching, "_next", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy.fetch()
    arrived = (toy.place / "toy.hdf5.part").stat().st_size
    assert 0 < arrived <= 15_000
    assert sorted(os.listdir(toy.place)) == [".toy.hdf5.part.json", "toy.hdf5.part"]
    assert toy.fetch().read_bytes() == toy.content
    assert server.asked[-1] == (PACKED, f"bytes={arrived}-")


@pytest.mark.parametrize("step", ["os.replace", "_pour"])
def test_what_arrived_whole_before_an_interruption_is_not_asked_for_again(
    toy: SimpleNamespace, server: Answers, monkeypatch: pytest.MonkeyPatch, step: str
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"modelforge.data.fetch.{step}", interrupted if step == "_pour" else interrupted_at_the_part)
        with pytest.raises(KeyboardInterrupt):
            toy.fetch()
    assert toy.fetch().read_bytes() == toy.content
    assert len(server.asked) == 1


def interrupted_at_the_part(source: Path, target: Path, *, real=os.replace) -> None:
    if str(source).endswith(".part"):
        raise KeyboardInterrupt
    real(source, target)


@pytest.mark.parametrize("size", [2_500, 2_000, 100])
def test_a_file_that_changed_on_the_server_is_fetched_anew(toy: SimpleNamespace, server: Answers, tmp_path: Path, size: int):
    server.break_after = [40_000] + [0] * 10
    toy.register(replace(toy.remote, md5=None, record=None, kept_md5=None))
    server.files[PACKED] = bytes(len(toy.packed))
    with pytest.raises(UserError, match="40000 bytes have arrived"):
        toy.fetch()
    server.break_after.clear()
    content = hdf5_file(tmp_path / "changed.hdf5", num_structures=size)
    server.files[PACKED] = gzip.compress(content, mtime=0)
    assert (len(server.files[PACKED]) == len(toy.packed)) == (size == 2_000)
    assert toy.fetch().read_bytes() == content


def test_a_wrong_checksum_is_an_error_and_the_file_is_removed(toy: SimpleNamespace, server: Answers):
    toy.register(replace(toy.remote, md5="0" * 32))
    with pytest.raises(
        UserError, match=f"must have the md5 {'0' * 32} .got {md5(toy.packed)}, removed.; fetch it again"
    ) as error:
        toy.fetch()
    assert f"{server.url}{PACKED}" in str(error.value)
    assert os.listdir(toy.place) == []


def test_a_wrong_checksum_of_what_was_unpacked_is_an_error(toy: SimpleNamespace):
    toy.register(replace(toy.remote, kept_md5="0" * 32))
    with pytest.raises(UserError, match=f"must have the md5 {'0' * 32} .got {md5(toy.content)}, removed"):
        toy.fetch()
    assert os.listdir(toy.place) == []


def test_a_file_that_is_absent_is_an_error_at_once(toy: SimpleNamespace, server: Answers):
    server.files.clear()
    with pytest.raises(UserError, match=r"toy\.hdf5\.gz: HTTP 404 Not Found(.|\n)*put it, unpacked, at .*toy\.hdf5"):
        toy.fetch()
    assert len(server.asked) == 1


def test_an_error_of_the_server_is_tried_again(toy: SimpleNamespace, server: Answers):
    server.first_status = [500, 503, 429, 202]
    assert toy.fetch().read_bytes() == toy.content
    assert len(server.asked) == 5


def test_a_broken_transfer_goes_on_behind_a_redirection(toy: SimpleNamespace, server: Answers):
    server.files["/elsewhere"] = server.files.pop(PACKED)
    server.moved[PACKED] = "/elsewhere"
    server.break_after = [40_000]
    assert toy.fetch().read_bytes() == toy.content
    assert server.asked == [(PACKED, None), ("/elsewhere", None), (PACKED, "bytes=40000-"), ("/elsewhere", "bytes=40000-")]


def test_a_server_that_stays_broken_is_an_error_that_says_what_arrived(toy: SimpleNamespace, server: Answers):
    server.break_after = [40_000] + [0] * 10
    with pytest.raises(
        UserError, match=rf"ended after 40000 of {len(toy.packed)} bytes(.|\n)*40000 bytes have arrived.*call again"
    ):
        toy.fetch()
    assert len(server.asked) == fetching.ATTEMPTS
    server.break_after.clear()
    assert toy.fetch().read_bytes() == toy.content
    assert server.num_sent == len(toy.packed)


def test_no_server_at_all_is_an_error_with_the_address(toy: SimpleNamespace):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/records/1/files/toy\.hdf5\.gz: .*[Rr]efused"):
        fetch("toy", folder=toy.folder, base_url="http://127.0.0.1:1")


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
    assert os.listdir(tmp_path / "md22" / "npz") == []


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
    assert not list(paths[0].parent.glob("*.tar*"))
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
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"water.npz"}


def test_a_damaged_packed_file_without_checksum_is_an_error(toy: SimpleNamespace, server: Answers):
    toy.register(replace(toy.remote, md5=None, record=None, kept_md5=None))
    server.files[PACKED] = toy.packed[:-1_000]
    with pytest.raises(UserError, match="cannot be unpacked"):
        toy.fetch()
    assert os.listdir(toy.place) == []


def test_a_file_put_there_by_hand_is_checked_once_and_needs_no_server(toy: SimpleNamespace, server: Answers):
    toy.place.mkdir(parents=True)
    (toy.place / "toy.hdf5").write_bytes(toy.content)
    assert toy.fetch() == toy.place / "toy.hdf5"
    assert server.asked == []
    (toy.place / "toy.hdf5").write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"must have the md5 {md5(toy.content)} .got {md5(b'damaged')}, removed"):
        toy.fetch()
    assert toy.fetch().read_bytes() == toy.content


def test_a_full_disk_is_an_error_before_the_transfer(toy: SimpleNamespace, server: Answers, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(UserError, match=r"toy\.hdf5\.part: .*No space left on device .free on the disk: 10\.0 kB"):
        toy.fetch()
    assert server.num_sent <= len(toy.packed)


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
    monkeypatch.setattr(fetching, "LINE_EVERY", 0.0)
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
    code = "import sys, modelforge.data.registry; print(*(name in sys.modules for name in ('torch', 'pooch', 'numpy')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False", "False"]
