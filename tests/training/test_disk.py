"""A disk that fills up, turns read-only or vanishes under a run: one message, nothing lost, and the same command goes on."""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file
from small_runs import differences, write_experiment

from modelforge.disk import disk_failures_told
from modelforge.errors import RunFailure
from modelforge.experiment import load
from modelforge.files import TEMPORARY, temporary_beside, write_text
from modelforge.model_file import FILE_NAME
from modelforge.run_folder import RunFolder
from modelforge.train import train
from modelforge.training import keeper
from modelforge.training.checkpoint import load_checkpoint
from modelforge.training.display import RunLog
from modelforge.training.listener import Validation
from modelforge.training.metrics_file import MetricsFile, Row

PAGE = 4096  # what a disk in memory is used up in
NOBODY = 65534
OVERRIDES = ("training.batch_size=5", "training.max_epochs=3")  # 24 structures: 5 steps an epoch
MIDDLE = 8


@pytest.fixture(scope="module")
def toml(tmp_path_factory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(toml: Path, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    start(toml, folder)
    return folder


@pytest.fixture(autouse=True)
def _saves_at_each_validation(monkeypatch):
    monkeypatch.setattr(keeper, "SECONDS_BETWEEN_SAVES", 0.0)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A disk of a megabyte, on which everyone may write."""
    place = Path(tempfile.mkdtemp(prefix="modelforge_disk_"))
    place.chmod(0o755)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        place.rmdir()
        pytest.skip(f"a small disk can only be mounted by root: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)
    place.rmdir()


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Leave so many pages free on the disk; gives the file that takes the rest."""
    filler = disk / "filler"
    pages = os.statvfs(disk).f_bavail - leave
    filler.write_bytes(bytes(PAGE * pages))
    return filler


def copied(source: Path, folder: Path) -> None:
    """Copy a run; the experiment of the copy names its own folder."""
    shutil.copytree(source, folder)
    write_text(folder / "experiment.toml", (source / "experiment.toml").read_text().replace(str(source), str(folder)))


def start(toml: Path, folder: Path, *overrides: str) -> str:
    """Start or go on; gives what the console said."""
    console = Console(file=io.StringIO(), width=500)
    train(load(toml, [f"runtime.run_folder={folder}", *OVERRIDES, *overrides]), console, with_rehearsal=False)
    return console.file.getvalue()


def failure_of(toml: Path, folder: Path, *overrides: str) -> str:
    with pytest.raises(RunFailure) as caught:
        start(toml, folder, *overrides)
    return str(caught.value)


def assert_nothing_is_half_written(folder: Path) -> None:
    """Every file under a name of its own can be read from its beginning to its end."""
    for path in folder.rglob("*"):
        assert not TEMPORARY.fullmatch(path.name)
        assert path.name != ".writable"
        if path.suffix == ".ckpt":
            load_checkpoint(path)
        elif path.suffix == ".npz":
            np.load(path)["train"]
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.name == "metrics.csv":
            lines = path.read_text().splitlines(keepends=True)
            assert {(line.count(","), line[-1]) for line in lines} == {(lines[0].count(","), "\n")}


def file_named(message: str, folder: Path) -> str:
    """The file that the message names, below the run folder; the rest of the message is as it must be."""
    is_there = folder.exists()
    kept = [path for path in RunFolder(folder).checkpoints if is_there and path.exists()]
    state = (
        f"{re.escape(str(kept[0]))} is as it was: the same command goes on from there"
        if kept
        else "There is no checkpoint: the same command starts from the beginning"
    )
    place = rf"{re.escape(str(folder))}(?:/(\S+)| or the folder for temporary files)"
    found = re.fullmatch(rf"{place}: [A-Z][a-z -]+( \([\d.]+ MB free\))?\. {state} once you [a-z ]+", message)
    assert found, message
    return found[1] or ""


# A disk without room


def test_a_disk_that_is_full_at_any_moment_is_told_and_loses_nothing(toml: Path, whole: Path, disk: Path):
    """Ever more room, from none to enough; after each failure there is room, and the run comes to the same end."""
    folder, named = disk / "run", []
    for pages in (0, 1, 2, 3, 4, 8, 14, 18, 24, 30, 36, 42):
        filler = fill(disk, leave=pages)
        named.append(file_named(failure_of(toml, folder), folder))
        assert_nothing_is_half_written(folder)
        filler.unlink()
        start(toml, folder)
        assert list(differences(whole, folder)) == [], f"{pages} pages"
        shutil.rmtree(folder)
    expected = {"split.npz", "experiment.toml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert set(named) == expected


def test_a_disk_that_is_full_at_the_end_is_told_and_the_run_is_only_tested_again(toml: Path, whole: Path, disk: Path):
    folder, named = disk / "run", []
    for pages in (0, 2, 5, 8, 11, 14):
        copied(whole, folder)
        for path in (folder / "results.json", folder / FILE_NAME, *(folder / "predictions").iterdir()):
            path.unlink()
        filler = fill(disk, leave=pages)
        try:
            start(toml, folder)
        except RunFailure as failure:
            named.append(file_named(str(failure), folder))
            assert_nothing_is_half_written(folder)
            filler.unlink()
            start(toml, folder)
        assert list(differences(whole, folder)) == [], f"{pages} pages"
        shutil.rmtree(folder)
        filler.unlink(missing_ok=True)
    predictions = [f"predictions/{name}.extxyz" for name in ("validation", "hot")]
    assert set(named) == {"experiment.toml", *predictions, FILE_NAME, "results.json"}


def append_all(metrics: MetricsFile, table: Iterable[Row]) -> None:
    for row in table:
        metrics.append(row)


def test_a_row_that_does_not_fit_leaves_the_rows_before_it(disk: Path):
    metrics = MetricsFile(disk / "metrics.csv")
    row = {"step": 0, "structures_per_second": 1.0} | {f"val/{number}": 0.123456789 for number in range(30)}
    metrics.append(row)
    fill(disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.csv'"):
        append_all(metrics, (row | {"step": step} for step in range(1, 100)))
    lines = metrics.path.read_text().splitlines(keepends=True)
    assert [line.partition(",")[0] for line in lines] == ["step", *map(str, range(len(lines) - 1))]
    assert {line[-1] for line in lines} == {"\n"}
    assert len(lines) > 5


def test_a_start_removes_what_killed_processes_left_half_written(toml: Path, whole: Path, tmp_path: Path):
    folder = tmp_path / "run"
    for name in ("experiment.toml", "checkpoints/last.ckpt", "predictions/hot.extxyz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        temporary_beside(folder / name).write_bytes(b"half")
    others = [folder / ".mine.tmp", folder / "checkpoints" / ".last.ckpt.abc.tmp", folder / "mine" / ".x.0123.tmp"]
    temporary = temporary_beside(folder / "mine" / "x")
    for path in (*others, temporary):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    start(toml, folder)
    assert sorted(folder.rglob("*.tmp")) == sorted([*others, temporary]), "only below the names of the run"
    assert list(differences(whole, folder)) == []


# A disk that is taken away


class At:
    """A listener that does something after a step."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.step, self.action = step, action

    def started(self, *, step: int, total_steps: int, seconds: float) -> None:
        pass

    def stepped(self, *, step: int) -> None:
        if step == self.step:
            self.action()

    def validated(self, validation: Validation) -> None:
        pass

    def said(self, message: str) -> None:
        pass


def listening(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """From now on runs do this in the middle."""
    monkeypatch.setattr("modelforge.train._listeners", lambda _run: ([At(MIDDLE, action)], None))


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


@pytest.mark.parametrize("tensorboard", [False, True], ids=["", "tensorboard"])
def test_a_disk_that_becomes_read_only_is_told_and_loses_nothing(toml, whole, disk, monkeypatch, capfd, tensorboard: bool):
    setting = f"runtime.tensorboard={str(tensorboard).lower()}"
    with monkeypatch.context() as patch:
        listening(patch, lambda: remount(disk, "ro"))
        told = failure_of(toml, disk / "run", setting)
    assert "Read-only file system. " in told
    assert file_named(told, disk / "run").startswith("tensorboard/events" if tensorboard else "metrics.csv")
    assert "Traceback" not in capfd.readouterr().err
    remount(disk, "rw")
    assert_nothing_is_half_written(disk / "run")
    said = start(toml, disk / "run", setting)
    assert "note: " not in said.replace("note: the self-energies", "")
    assert [line for line in differences(whole, disk / "run") if not line.startswith("experiment.toml")] == []


def test_a_disk_that_is_full_for_tensorboard_is_told(toml, whole, disk, monkeypatch, capfd):
    setting = "runtime.tensorboard=true"
    monkeypatch.setattr(keeper, "SECONDS_BETWEEN_SAVES", 3600.0)
    with monkeypatch.context() as patch:
        listening(patch, lambda: fill(disk))
        told = failure_of(toml, disk / "run", setting)
    assert file_named(told, disk / "run") == "", "it does not say which"
    assert "Traceback" not in capfd.readouterr().err
    (disk / "filler").unlink()
    start(toml, disk / "run", setting)
    assert [line for line in differences(whole, disk / "run") if not line.startswith("experiment.toml")] == []


def test_a_run_folder_that_is_removed_is_told(toml, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        listening(patch, lambda: shutil.rmtree(folder))
        told = failure_of(toml, folder)
    assert told.startswith(f"{folder}/metrics.csv: No such file or directory. There is no checkpoint: ")
    start(toml, folder)
    assert list(differences(whole, folder)) == []


@pytest.mark.parametrize("mode", [0o755, 0o000], ids=["not ours", "closed"])
def test_a_run_folder_without_permission_is_told(toml, whole, disk, monkeypatch, mode: int):
    """The rest of the run is that of a user to whom the folder does not belong."""
    folder = disk / "run"

    def become_nobody() -> None:
        folder.chmod(mode)
        os.seteuid(NOBODY)

    with monkeypatch.context() as patch:
        listening(patch, become_nobody)
        try:
            told = failure_of(toml, folder)
        finally:
            os.seteuid(0)
    assert told.startswith(f"{folder}/metrics.csv: Permission denied. ")
    kept = "What was saved is as it was" if mode == 0 else f"{folder}/checkpoints/last.ckpt is as it was"
    assert told.endswith(f"{kept}: the same command goes on from there once you give back the permission to write there")
    folder.chmod(0o755)
    start(toml, folder)
    assert list(differences(whole, folder)) == []


def test_an_error_of_another_disk_is_none_of_the_run_folder(tmp_path: Path):
    for path in (tmp_path / "run2" / "x", tmp_path / "x"):
        with pytest.raises(FileNotFoundError), disk_failures_told(RunFolder(tmp_path / "run")):
            path.read_bytes()


def test_a_finished_run_on_a_read_only_disk_is_finished(toml: Path, whole: Path, disk: Path):
    copied(whole, disk / "run")
    remount(disk, "ro")
    assert "This run is finished" in start(toml, disk / "run")


# The log


def test_a_full_disk_takes_the_log_and_not_the_run(disk: Path):
    """It is told once; what is said later is only shown."""
    console = Console(file=io.StringIO(), width=500)
    log = RunLog(console, disk / "log.txt")
    log.line("one")
    filler = fill(disk)
    lines = [f"{number:0100d}" for number in range(100)]
    for line in lines:
        log.line(line)
    note = f"note: {disk}/log.txt ends here: No space left on device"
    shown = console.file.getvalue().splitlines()
    assert [line for line in shown if line != note] == ["one", *lines]
    assert shown.count(note) == 1
    filler.unlink()
    log.line("last")
    assert (disk / "log.txt").read_text().startswith(f"one\n{lines[0]}\n")
    assert "last" not in (disk / "log.txt").read_text()


def test_a_log_that_cannot_be_begun_is_told_and_the_run_goes_on(toml: Path, whole: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").symlink_to(tmp_path / "nowhere" / "log.txt")
    assert "run/log.txt ends here: No such file or directory" in start(toml, tmp_path / "run")
    assert list(differences(whole, tmp_path / "run")) == []


def test_a_console_that_takes_no_more_does_not_end_the_run(toml: Path, whole: Path, tmp_path: Path):
    """As where output goes to a file on a full disk, or to a program that has ended."""

    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    folder = tmp_path / "run"
    train(load(toml, [f"runtime.run_folder={folder}", *OVERRIDES]), Console(file=Full(), width=500), with_rehearsal=False)
    assert list(differences(whole, folder)) == []
    assert "finished: max_epochs reached" in (folder / "log.txt").read_text()


# The command


def command(toml: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    settings = [word for setting in OVERRIDES for word in ("--set", setting)]
    words = ["train", "--config", toml, "--run-folder", folder, "--skip-rehearsal", *settings]
    return subprocess.run([sys.executable, "-m", "modelforge.cli", *words], capture_output=True, text=True)


def test_the_command_tells_a_full_disk_in_one_message_and_exits_with_1(toml: Path, disk: Path):
    fill(disk, leave=18)
    ended = command(toml, disk / "run")
    assert ended.returncode == 1
    assert re.fullmatch(r"stopped: /\S+\.ckpt: No space left on device \(.*MB free\)\. .* once you make room.*\n", ended.stderr)


def test_the_command_tells_a_read_only_folder_with_its_key_and_exits_with_2(toml: Path, disk: Path):
    (disk / "run").mkdir()
    remount(disk, "ro")
    ended = command(toml, disk / "run")
    assert ended.returncode == 2
    expected = "must be a folder to write to (got {}, which is on a read-only disk); choose another\n"
    assert ended.stderr.startswith("error: --set runtime.run_folder=")
    assert ended.stderr.endswith(f"runtime.run_folder: {expected.format(disk / 'run')}")
