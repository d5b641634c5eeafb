"""A transfer over HTTP ends well after whatever the server, the network and the user do to it."""

import gzip
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from file_server import PACKED, Answers, hdf5_file

from modelforge.data.fetching import transfer
from modelforge.data.fetching.fetch import fetch
from modelforge.errors import UserError


def test_a_broken_transfer_goes_on_where_it_broke_off(toy: SimpleNamespace, server: Answers):
    server.break_after = [40_000, 25_000] + [1_000] * transfer.ATTEMPTS  # each attempt brings something: all are made
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
    real, chunks = transfer._next, iter(range(3))

    def interrupted(response):
        if next(chunks, None) is None:
            raise KeyboardInterrupt
        return real(response)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "CHUNK", 5_000)
        patch.setattr(transfer, "_next", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy.fetch()
    arrived = (toy.place / "toy.hdf5.arriving" / "toy.hdf5.part").stat().st_size
    assert 0 < arrived <= 15_000
    assert sorted(os.listdir(toy.place / "toy.hdf5.arriving")) == [".toy.hdf5.part.json", "toy.hdf5.part"]
    assert toy.fetch().read_bytes() == toy.content
    assert server.asked[-1] == (PACKED, f"bytes={arrived}-")


@pytest.mark.parametrize("step", ["transfer.os.replace", "unpack._pour"])
def test_what_arrived_whole_before_an_interruption_is_not_asked_for_again(
    toy: SimpleNamespace, server: Answers, monkeypatch: pytest.MonkeyPatch, step: str
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"modelforge.data.fetching.{step}", interrupted if step == "unpack._pour" else interrupted_at_the_part)
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
    assert len(server.asked) == transfer.ATTEMPTS
    server.break_after.clear()
    assert toy.fetch().read_bytes() == toy.content
    assert server.num_sent == len(toy.packed)


def test_no_server_at_all_is_an_error_with_the_address(toy: SimpleNamespace):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/records/1/files/toy\.hdf5\.gz: .*[Rr]efused"):
        fetch("toy", folder=toy.folder, base_url="http://127.0.0.1:1")


def test_a_full_disk_is_an_error_before_the_transfer(toy: SimpleNamespace, server: Answers, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(UserError, match=r"toy\.hdf5\.part: .*No space left on device .free on the disk: 10\.0 kB"):
        toy.fetch()
    assert server.num_sent <= len(toy.packed)
