"""Digests of files: those of their bytes, remembered until the file may have changed."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from modelforge.data.store.file_digests import BLOCK, SETTLED, file_digest


def blake(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def settled(path: Path, data: bytes) -> Path:
    """A file that was written an hour ago."""
    path.write_bytes(data)
    hour_ago = time.time_ns() - 3600 * 10**9
    os.utime(path, ns=(hour_ago, hour_ago))
    return path


def change_in_secret(path: Path, data: bytes) -> None:
    """Other bytes with the same size, time and inode: whoever does not read them does not know."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_the_digest_is_that_of_the_bytes(tmp_path: Path, size: int):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    path = settled(tmp_path / "a.xyz", data)
    assert file_digest(path, tmp_path / "cache") == blake(data)


def test_a_digest_is_remembered_by_size_and_time(tmp_path: Path):
    path, cache = settled(tmp_path / "a.xyz", b"first"), tmp_path / "cache"
    assert file_digest(path, cache) == blake(b"first")
    change_in_secret(path, b"other")
    assert file_digest(path, cache) == blake(b"first"), "it was not read again"
    (kept,) = cache.iterdir()
    kept.unlink()
    assert file_digest(path, cache) == blake(b"other")


def test_a_digest_is_found_again_under_another_name_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, cache = settled(tmp_path / "a.xyz", b"first"), tmp_path / "cache"
    (tmp_path / "link.xyz").symlink_to(path)
    file_digest(path, cache)
    change_in_secret(path, b"other")
    monkeypatch.chdir(tmp_path)
    for name in ("a.xyz", "link.xyz", "../" + tmp_path.name + "/a.xyz"):
        assert file_digest(Path(name), cache) == blake(b"first")


def test_other_bytes_at_another_time_are_read_again(tmp_path: Path):
    path, cache = settled(tmp_path / "a.xyz", b"first"), tmp_path / "cache"
    file_digest(path, cache)
    settled(path, b"other")  # as long, but a moment later
    assert file_digest(path, cache) == blake(b"other")


def test_a_file_that_replaces_another_is_read_again(tmp_path: Path):
    path, cache = settled(tmp_path / "a.xyz", b"first"), tmp_path / "cache"
    file_digest(path, cache)
    status = path.stat()
    (tmp_path / "new.xyz").write_bytes(b"other")
    os.utime(tmp_path / "new.xyz", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(tmp_path / "new.xyz", path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert file_digest(path, cache) == blake(b"other")


@pytest.mark.parametrize("seconds", [0.0, SETTLED - 0.5, -3600.0], ids=["now", "just now", "in the future"])
def test_a_file_that_may_still_change_is_not_remembered(tmp_path: Path, seconds: float):
    path, cache = tmp_path / "a.xyz", tmp_path / "cache"
    path.write_bytes(b"first")
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))
    assert file_digest(path, cache) == blake(b"first")
    change_in_secret(path, b"other")
    assert file_digest(path, cache) == blake(b"other")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"file": 3}', '{"file": [], "digest": "0"}'])
def test_a_note_that_makes_no_sense_is_made_anew(tmp_path: Path, text: str):
    path, cache = settled(tmp_path / "a.xyz", b"first"), tmp_path / "cache"
    file_digest(path, cache)
    (kept,) = cache.iterdir()
    good = kept.read_text()
    kept.write_text(text)
    assert file_digest(path, cache) == blake(b"first")
    assert kept.read_text() == good


def test_without_a_place_to_remember_it_the_digest_is_computed_again(tmp_path: Path):
    path = settled(tmp_path / "a.xyz", b"first")
    (tmp_path / "file").write_text("not a folder")
    assert file_digest(path, tmp_path / "file" / "cache") == blake(b"first")
    change_in_secret(path, b"other")
    assert file_digest(path, tmp_path / "file" / "cache") == blake(b"other")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "nowhere.xyz", tmp_path / "cache")
