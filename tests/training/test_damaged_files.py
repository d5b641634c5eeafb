"""Files of a run that were damaged or removed since: the run comes to the same end, or one message names the file."""

import io
import os
import pickle
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from small_runs import differences, write_experiment

from modelforge.check import check
from modelforge.data.split import load_split
from modelforge.errors import UserError
from modelforge.experiment import load
from modelforge.files import write_text
from modelforge.train import train
from modelforge.training import keeper
from modelforge.training.checkpoint import latest_checkpoint, load_checkpoint
from modelforge.training.listener import Validation
from modelforge.training.stop_signal import Interrupted

OVERRIDES = ("training.batch_size=5", "training.max_epochs=3")  # 24 structures: 5 steps an epoch
CUTS = (7, 8)  # so that last.ckpt and previous.ckpt lie between two validations
CHECKPOINTS = ("last.ckpt", "previous.ckpt", "best.ckpt")
NUM_FLIPS = 40

Damage = Callable[[Path], object]


class Executed:
    """What runs, if its pickle is loaded as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def truncated(part: float) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


def text(path: Path) -> None:
    path.write_text("These are not the numbers of a run.\n" * 20)


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(3000))


def executable(path: Path) -> None:
    path.write_bytes(pickle.dumps({"schema": 2, "task": Executed(path.parent / "executed")}))


def zeros(path: Path) -> None:
    """As after a power failure."""
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = {
    "empty": truncated(0.0),
    "begun": truncated(0.1),
    "half": truncated(0.5),
    "nearly whole": truncated(0.99),
    "absent": Path.unlink,
    "text": text,
    "garbage": garbage,
    "zeros": zeros,
    "executable": executable,
}


@pytest.fixture(scope="module")
def toml(tmp_path_factory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(toml: Path, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    start(toml, folder)
    return folder


@pytest.fixture(scope="module")
def cut(toml: Path, tmp_path_factory) -> Path:
    """The folder of a run that was interrupted twice."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelforge.train._listeners", lambda _run: ([SignalAt(*CUTS)], None))
        patch.setattr(keeper, "SECONDS_BETWEEN_SAVES", 0.0)
        for _ in CUTS:
            with pytest.raises(Interrupted):
                start(toml, folder)
    return folder


@pytest.fixture
def folder(cut: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copied(cut, tmp_path / "run")


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished one."""
    return copied(whole, tmp_path / "finished")


class SignalAt:
    """A listener that asks the run to stop after some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def started(self, *, step: int, total_steps: int, seconds: float) -> None:
        self.steps = tuple(other for other in self.steps if other > step)

    def stepped(self, *, step: int) -> None:
        if step in self.steps:
            os.kill(os.getpid(), signal.SIGUSR1)

    def validated(self, validation: Validation) -> None:
        pass

    def said(self, message: str) -> None:
        pass


def copied(source: Path, folder: Path) -> Path:
    """A copy whose experiment names its own folder."""
    shutil.copytree(source, folder)
    write_text(folder / "experiment.toml", (source / "experiment.toml").read_text().replace(str(source), str(folder)))
    return folder


def start(toml: Path, folder: Path, *overrides: str) -> str:
    """Start or go on; gives what the console said."""
    console = Console(file=io.StringIO(), width=500)
    train(load(toml, [f"runtime.run_folder={folder}", *OVERRIDES, *overrides]), console, with_rehearsal=False)
    return console.file.getvalue()


def mistake_of(toml: Path, folder: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        start(toml, folder, *overrides)
    return str(caught.value)


def notes(said: str) -> list[str]:
    """What is told of the files of the run."""
    return [line for line in said.splitlines() if line.startswith("note: /")]


def outcome(read: Callable[[], str]) -> str:
    """What is read, or the error."""
    try:
        return read()
    except UserError as error:
        return str(error)


def members_of(path: Path, told: dict[str, str]) -> str:
    return str({name: members.tolist() for name, members in load_split(path, **told).sets().items()})


# Checkpoints


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_is_told_and_the_one_before_gives_the_same_end(toml, whole, folder, damage: str):
    last, previous = (folder / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    DAMAGES[damage](last)
    damaged = last.read_bytes() if last.exists() else None
    told = notes(start(toml, folder))
    assert len(told) == 1
    assert told[0].startswith(f"note: {last}: cannot be read as a checkpoint (")
    assert told[0].endswith(f"); the run goes on from {previous}, the one before")
    assert list(differences(whole, folder)) == []
    load_checkpoint(previous)
    if damaged is not None:
        assert last.with_name("last.ckpt.damaged").read_bytes() == damaged
    assert not (last.parent / "executed").exists()


def test_a_fall_back_that_is_cut_at_its_first_save_still_has_a_good_checkpoint(toml, whole, folder, monkeypatch):
    """The damaged one never takes the place of the good one."""
    last, previous = (folder / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    text(last)

    def full(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error", str(last))

    with monkeypatch.context() as patch:
        patch.setattr(keeper, "save_checkpoint", full)
        with pytest.raises(Exception, match="Input/output error"):
            start(toml, folder)
    load_checkpoint(previous)
    assert len(notes(start(toml, folder))) == 1
    assert list(differences(whole, folder)) == []


@pytest.mark.parametrize("damage", ["half", "absent", "text", "executable"])
@pytest.mark.parametrize("name", ["previous.ckpt", "best.ckpt"])
def test_a_damaged_checkpoint_that_nothing_needs_stops_nothing(toml, whole, folder, name: str, damage: str):
    path = folder / "checkpoints" / name
    DAMAGES[damage](path)
    told = notes(start(toml, folder))
    is_told = name == "best.ckpt" and damage == "absent"
    assert told == ([f"note: {path} is gone; it comes again with a better validation, and nothing needs it"] if is_told else [])
    assert list(differences(whole, folder)) == []
    assert not (path.parent / "executed").exists()


def test_two_damaged_checkpoints_are_one_error_that_names_both(toml: Path, whole: Path, folder: Path):
    last, previous = (folder / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    text(last)
    truncated(0.5)(previous)
    for _ in range(2):
        assert re.fullmatch(
            rf"{last}: cannot be read as a checkpoint \(\w+\); {previous}: cannot be read as a checkpoint \(\w+\); "
            r"delete both to start from the beginning, or restore a good copy",
            mistake_of(toml, folder),
        )
    last.unlink()
    previous.unlink()
    assert "is there, but no checkpoint: the run starts from the beginning" in start(toml, folder)
    assert list(differences(whole, folder)) == []


def test_a_checkpoint_that_may_not_be_read_is_an_error_and_no_damage(toml: Path, folder: Path, monkeypatch):
    last = folder / "checkpoints" / "last.ckpt"
    last.unlink()
    last.symlink_to(last)  # as one without permission, but for root, too
    expected = (
        f"{last}: must be a file that can be read (got: Too many levels of symbolic links); make it readable, or delete it"
    )
    with pytest.raises(UserError) as caught:
        load_checkpoint(last)
    assert str(caught.value) == expected


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(toml: Path, cut: Path, tmp_path: Path):
    """Anywhere in the file, also in the directory of its archive: the same content, or an error."""
    generator, seen = random.Random(7), set()
    content = (cut / "checkpoints" / "last.ckpt").read_bytes()
    places = [generator.randrange(len(content)) for _ in range(NUM_FLIPS // 2)]
    places += [len(content) - 1 - generator.randrange(3000) for _ in range(NUM_FLIPS // 2)]  # names, sizes, offsets
    (expected, _) = latest_checkpoint(cut / "checkpoints" / "last.ckpt", tmp_path / "none")
    path = tmp_path / "last.ckpt"
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        seen.add(outcome(lambda: load_checkpoint(path)["digest"]))
    assert {told.partition("(")[0] for told in seen} == {expected["digest"], f"{path}: cannot be read as a checkpoint "}


def test_a_checkpoint_that_lost_its_digest_is_damaged(cut: Path, tmp_path: Path):
    content = (cut / "checkpoints" / "last.ckpt").read_bytes()
    assert content.count(b"digest") == 1
    (tmp_path / "last.ckpt").write_bytes(content.replace(b"digest", b"dagest"))
    with pytest.raises(UserError, match="its content has changed since it was written"):
        load_checkpoint(tmp_path / "last.ckpt")


# Split, settings, rows, results


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "absent"])
def test_a_damaged_split_is_an_error_with_its_remedy(toml: Path, whole: Path, folder: Path, damage: str):
    path = folder / "split.npz"
    DAMAGES[damage](path)
    assert mistake_of(toml, folder) == (
        f"{path}: cannot be read as the split of this run; restore a good copy, or delete it: the same data and settings give "
        "the same split again"
    )
    assert not (path.parent / "executed").exists()


def test_a_split_that_is_gone_is_told_and_drawn_again(toml: Path, whole: Path, folder: Path):
    (folder / "split.npz").unlink()
    expected = "is gone: the split is drawn again, which is the same one if the data are the same"
    assert notes(start(toml, folder)) == [f"note: {folder}/split.npz {expected}"]
    assert list(differences(whole, folder)) == []


def test_no_flipped_bit_of_a_split_goes_unnoticed(cut: Path, tmp_path: Path):
    content, path, generator, seen = (cut / "split.npz").read_bytes(), tmp_path / "split.npz", random.Random(3), set()
    with np.load(cut / "split.npz") as saved:
        told = {name: str(saved[name]) for name in ("data_hash", "origin")}
    expected = members_of(cut / "split.npz", told)
    for _ in range(10 * NUM_FLIPS):
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        seen.add(outcome(lambda: members_of(path, told)))
    assert {told.partition(";")[0] for told in seen} == {expected, f"{path}: cannot be read as the split of this run"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_of_the_settings_is_written_again_from_the_checkpoint(toml, whole, folder, damage: str):
    DAMAGES[damage](folder / "experiment.toml")
    start(toml, folder)
    assert list(differences(whole, folder)) == []


def test_without_the_record_of_the_settings_other_ones_are_refused_all_the_same(toml: Path, folder: Path):
    (folder / "experiment.toml").unlink()
    assert "holds a run with other settings:\n  potential.num_features: was 8, is 4\n" in mistake_of(
        toml, folder, "potential.num_features=4"
    )


def test_a_damaged_record_of_the_settings_beside_no_checkpoint_is_an_error(toml: Path, whole: Path, folder: Path):
    shutil.rmtree(folder / "checkpoints")
    text(folder / "experiment.toml")
    assert mistake_of(toml, folder).startswith(
        f"{folder}/experiment.toml: the settings of this run cannot be read; restore a good copy, or delete it:\n"
    )
    (folder / "experiment.toml").unlink()
    start(toml, folder)
    assert list(differences(whole, folder)) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_told_and_the_run_comes_to_the_same_end(toml: Path, whole: Path, folder: Path, damage: str):
    path = folder / "metrics.csv"
    DAMAGES[damage](path)
    told = notes(start(toml, folder))
    assert len(told) == 1
    assert told[0].startswith(f"note: {path} " + ("is gone" if damage == "absent" else "was damaged: "))
    assert {line.partition(":")[0] for line in differences(whole, folder)} == {"metrics.csv"}
    assert (folder / "metrics.csv").read_text().startswith("step,epoch,")


def test_lines_that_are_no_rows_are_kept_beside_the_rows(toml: Path, whole: Path, folder: Path):
    path = folder / "metrics.csv"
    header, first, second = path.read_text().splitlines(keepends=True)
    path.write_text(header + first + first.replace(",", ";") + second)
    (told,) = notes(start(toml, folder))
    assert told == (
        f"note: {path} was damaged: 1 of its lines are no rows (all of it is now in {path}.damaged); it goes on with 2 rows"
    )
    assert path.with_name("metrics.csv.damaged").read_text() == header + first + first.replace(",", ";") + second
    assert list(differences(whole, folder)) == []


def test_rows_of_other_columns_are_kept_apart(toml: Path, whole: Path, folder: Path):
    path = folder / "metrics.csv"
    path.write_text(path.read_text().replace("val/loss", "val/lozs"))
    assert notes(start(toml, folder)) == [f"note: {path} has other columns than this run; it is now {path}.damaged"]
    assert {line.partition(":")[0] for line in differences(whole, folder)} == {"metrics.csv"}


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "absent"])
def test_damaged_results_are_written_again_by_a_start(toml: Path, whole: Path, finished: Path, monkeypatch, damage: str):
    monkeypatch.setattr("modelforge.train.pl.Trainer.fit", lambda *_: pytest.fail("it trains"))
    DAMAGES[damage](finished / "results.json")
    loaded = load(toml, [f"runtime.run_folder={finished}", *OVERRIDES])
    assert any("(would go on from its last checkpoint)" in line for line in check(loaded))
    start(toml, finished)
    assert list(differences(whole, finished)) == []
    assert "This run is finished" in start(toml, finished)


@pytest.mark.parametrize("name", ["results.json", "metrics.csv", "split.npz", "experiment.toml", "checkpoints/last.ckpt"])
def test_a_folder_where_a_file_belongs_is_an_error(toml: Path, folder: Path, name: str):
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    expected = f"{folder / name}: must be a file of the run (is a folder); remove it or choose another run folder"
    assert mistake_of(toml, folder) == expected


@pytest.mark.parametrize("name", ["checkpoints", "predictions"])
def test_a_file_where_a_folder_belongs_is_an_error(toml: Path, folder: Path, name: str):
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).write_text("")
    expected = f"{folder / name}: must be a folder of the run (is a file); remove it or choose another run folder"
    assert mistake_of(toml, folder) == expected
