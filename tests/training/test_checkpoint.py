"""Checkpoints: a damaged one is a clear error, and writing one leaves the old or the new, nothing else."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch

from modelforge.errors import UserError
from modelforge.training.checkpoint import SCHEMA, latest_checkpoint, load_checkpoint, save_checkpoint
from modelforge.training.metrics import ErrorSums

STATE = {"schema": SCHEMA, "experiment": "", "task": {"weights": {"w": torch.arange(1000.0)}}, "progress": {}, "best": []}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "last.ckpt", STATE)
    return tmp_path / "last.ckpt"


def test_a_checkpoint_comes_back(path: Path):
    assert torch.equal(load_checkpoint(path)["task"]["weights"]["w"], torch.arange(1000.0))


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_a_clear_error(path: Path, part: float):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(
        UserError, match=r"last\.ckpt: cannot be read as a checkpoint .*; delete it to start from the beginning"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("schema", [0, SCHEMA + 1, None, "2"])
def test_a_checkpoint_of_a_schema_that_nobody_knows_is_refused_with_the_range(path: Path, schema: object):
    save_checkpoint(path, {**STATE, "schema": schema})
    with pytest.raises(UserError, match=f"checkpoint of another version .*this modelforge reads 1 to {SCHEMA}"):
        load_checkpoint(path)


def test_errors_of_schema_2_stay_and_those_that_came_later_are_not_measured(path: Path):
    errors = {"by_subset": torch.arange(1.0, 14.0, dtype=torch.float64)[None], "by_element": torch.ones(119, 3)}
    save_checkpoint(path, {**STATE, "schema": 2, "task": {**STATE["task"], "training_errors": errors}})
    found = load_checkpoint(path)
    by_subset = found["task"]["training_errors"]["by_subset"]
    assert by_subset.shape == ErrorSums().by_subset.shape
    assert by_subset[0, :13].tolist() == errors["by_subset"][0].tolist()
    assert not by_subset[0, 13:].any()
    assert found["schema"] == 3
    assert found["task"]["weights"].keys() == {"w"}


def test_a_failed_write_leaves_the_old_checkpoint_and_no_debris(path: Path, monkeypatch):
    before = path.read_bytes()

    def full(self: Path, content: object) -> None:
        with self.open("wb") as file:
            file.write(b"half a checkp")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, STATE)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_flipped_bit_anywhere_in_the_tensors_is_noticed(path: Path):
    content = bytearray(path.read_bytes())
    place = content.find(torch.arange(1000.0).numpy().tobytes())
    assert place > 0
    content[place + 2001] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_the_checkpoint_before_is_kept_and_used_where_the_last_is_damaged(path: Path):
    previous = path.with_name("previous.ckpt")
    assert latest_checkpoint(path, previous)[1] == ""
    save_checkpoint(path, {**STATE, "progress": {"best_loss": 2.0}}, previous=previous)
    assert latest_checkpoint(path, previous)[0]["progress"] == {"best_loss": 2.0}
    path.write_bytes(path.read_bytes()[:100])
    found, damage = latest_checkpoint(path, previous)
    assert found["progress"] == {}
    assert damage.startswith(f"{path}: cannot be read as a checkpoint")
    path.unlink()
    assert latest_checkpoint(path, previous)[0]["progress"] == {}
    previous.write_bytes(b"")
    with pytest.raises(UserError, match=r"previous\.ckpt: cannot be read"):
        latest_checkpoint(path, previous)


def test_without_a_checkpoint_there_is_none(tmp_path: Path):
    assert latest_checkpoint(tmp_path / "last.ckpt", tmp_path / "previous.ckpt") is None


def test_file_systems_without_hard_links_keep_the_one_before_too(path: Path, monkeypatch):
    def refused(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    save_checkpoint(path, {**STATE, "progress": {"best_loss": 2.0}}, previous=path.with_name("previous.ckpt"))
    assert load_checkpoint(path.with_name("previous.ckpt"))["progress"] == {}
    assert load_checkpoint(path)["progress"] == {"best_loss": 2.0}


def test_file_and_name_are_on_the_disk_when_a_checkpoint_is_saved(path: Path, monkeypatch):
    real, synced = os.fsync, []

    def noted(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.stat().st_ino))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    before = path.stat().st_ino
    save_checkpoint(path, STATE)
    after = path.stat().st_ino
    assert before != after
    assert synced == [(after, before), (path.parent.stat().st_ino, after)], "the file before it has its name, the folder then"


def test_a_file_system_that_cannot_sync_folders_saves_all_the_same(path: Path, monkeypatch):
    real = os.fsync

    def refused(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    save_checkpoint(path, {**STATE, "progress": {"best_loss": 2.0}})
    assert load_checkpoint(path)["progress"] == {"best_loss": 2.0}
