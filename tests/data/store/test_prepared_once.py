"""Folders that are made once: by real processes that start together, are killed, or find no lock and no room."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_structures import cluster, labelled, structures_of

from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.extxyz_writer import write_extxyz
from modelforge.data.store.columns import INDEX, Columns, ColumnWriter, DamagedColumns
from modelforge.data.store.opening import open_files
from modelforge.data.store.prepared_once import ABANDONED, make_folder, prepared_once, silent
from modelforge.errors import UserError

OTHER_PROCESS = """
import errno, fcntl, os, sys, time
from pathlib import Path
from modelforge.data.sources.extxyz import ExtendedXYZ, read_parts
from modelforge.data.store.opening import open_files

folder, name, *how = sys.argv[1:]
folder = Path(folder)

class Waiting(ExtendedXYZ):
    '''Reads as all do, but waits in the middle of the file until it is told to go on.'''

    def read_file(self, path):
        with (folder / "readers").open("a") as readers:
            print(name, file=readers)
        for number, part in enumerate(read_parts(path, self, text_size=2000)):
            if number == 2:
                (folder / f"{name} is reading").touch()
                while not (folder / "go").exists():
                    time.sleep(0.005)
            yield part

def no_locks(file, how):
    raise OSError(errno.ENOLCK, "No locks available")

if "without locks" in how:
    fcntl.flock = no_locks
source = Waiting(path="data.xyz", stress_key="stress")
say = lambda text: print(text, flush=True)
opened = open_files([source.files([folder / "data.xyz"])], cache=folder / "cache", say=say, store_from=0)
print("hash", opened.content_hash, "energies", opened.structures.energy.tobytes().hex(), flush=True)
"""
ENOUGH = 60.0  # seconds until a process that should do something is given up


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a file of structures, some of which lack labels."""
    all_atoms = [labelled(cluster(5, (1, 8), seed=seed), seed=seed, energy=-97195.123456789 + seed) for seed in range(20)]
    write_extxyz(tmp_path / "data.xyz", structures_of([cluster(5, (1, 8), seed=99), *all_atoms]))
    return tmp_path


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(processes: list[subprocess.Popen[str]], folder: Path, name: str, *how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OTHER_PROCESS, str(folder), name, *how]
    processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return processes[-1]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + ENOUGH
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"{path.name} did not come: {process.communicate()[0]}")
        time.sleep(0.005)


def left_over(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "stores").iterdir() if path.name.endswith(".tmp"))


def complete(cache: Path) -> list[str]:
    return sorted(path.parent.name for path in (cache / "stores").glob(f"*/{INDEX}") if not path.parent.name.startswith("."))


def open_here(folder: Path, say=silent):
    source = ExtendedXYZ(path="data.xyz", stress_key="stress")
    return open_files([source.files([folder / "data.xyz"])], cache=folder / "cache", say=say, store_from=0)


def one_value(folder: Path) -> None:
    """Make a folder of columns."""
    writer = ColumnWriter(folder)
    writer.add("some", structures_of([cluster(2, (1,), seed=0)]).positions)
    writer.finish({})


def test_a_folder_is_made_once(tmp_path: Path):
    said: list[str] = []
    for _ in range(3):
        found = prepared_once(tmp_path / "cache" / "x", one_value, what="making it", say=said.append)
        assert Columns(found).arrays["some"].shape == (2, 3)
    assert said == ["making it"]


def test_a_killed_preparation_leaves_nothing_that_the_next_one_would_take_for_complete(data: Path, started: list):
    killed = start(started, data, "first")
    wait_for(data / "first is reading", killed)
    assert len(left_over(data / "cache")) == 1
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(ENOUGH) == -signal.SIGKILL
    assert complete(data / "cache") == []
    assert len(left_over(data / "cache")) == 1, "a killed process cannot clean up"
    said: list[str] = []
    opened = open_here(data, said.append)
    assert [text.split()[0] for text in said] == ["preparing"], "it does not wait for the dead"
    assert opened.structures.energy[1:].tolist() == [-97195.123456789 + seed for seed in range(20)]
    assert left_over(data / "cache") == []
    assert len(complete(data / "cache")) == 1


def test_of_two_processes_one_prepares_and_the_other_waits(data: Path, started: list):
    first = start(started, data, "first")
    wait_for(data / "first is reading", first)
    second = start(started, data, "second")
    assert second.stdout.readline() == "another process prepares the same data; waiting for it\n"
    (data / "go").touch()
    (of_first, _), (of_second, _) = first.communicate(timeout=ENOUGH), second.communicate(timeout=ENOUGH)
    assert of_first.splitlines()[0].startswith("preparing ")
    assert of_first.splitlines()[1:] == of_second.splitlines(), "both have the same structures"
    assert of_second.startswith("hash ")
    assert (data / "readers").read_text().split() == ["first"]
    assert open_here(data).content_hash == of_second.split()[1]


def test_a_process_whose_predecessor_dies_takes_over(data: Path, started: list):
    first = start(started, data, "first")
    wait_for(data / "first is reading", first)
    second = start(started, data, "second")
    assert second.stdout.readline().startswith("another process")
    (data / "readers").unlink()
    first.kill()
    wait_for(data / "second is reading", second)
    (data / "go").touch()
    assert second.communicate(timeout=ENOUGH)[0].splitlines()[0].startswith("preparing ")
    assert (data / "readers").read_text().split() == ["second"]
    assert left_over(data / "cache") == []


def test_without_locks_both_work_and_one_store_results(data: Path, started: list):
    both = [start(started, data, name, "without locks") for name in ("first", "second")]
    for process, name in zip(both, ("first", "second"), strict=True):
        wait_for(data / f"{name} is reading", process)
    assert len(left_over(data / "cache")) == 2
    (data / "go").touch()
    ends = [process.communicate(timeout=ENOUGH)[0].splitlines()[-1] for process in both]
    assert ends[0] == ends[1]
    assert ends[0].startswith("hash ")
    assert len(complete(data / "cache")) == 1
    assert left_over(data / "cache") == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def no_locks(file: object, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    other = tmp_path / f".x.{socket.gethostname()}.1.tmp"
    one_value(other)
    prepared_once(tmp_path / "x", one_value, what="", say=silent)
    assert Columns(tmp_path / "x").arrays["some"].shape == (2, 3)
    assert other.exists(), "without a lock nobody knows whether its owner is alive"


def test_what_another_host_may_still_write_is_left_alone(tmp_path: Path):
    alive, dead = tmp_path / ".x.elsewhere.1.tmp", tmp_path / ".x.elsewhere.2.tmp"
    for folder in (alive, dead):
        one_value(folder)
    long_ago = time.time() - ABANDONED - 60
    for path in (dead, *dead.iterdir()):
        os.utime(path, (long_ago, long_ago))
    os.utime(alive, (long_ago, long_ago))  # the folder is old, but its files are not
    prepared_once(tmp_path / "x", one_value, what="", say=silent)
    assert alive.exists()
    assert not dead.exists()


def test_a_folder_without_its_index_is_made_again(tmp_path: Path):
    one_value(tmp_path / "x")
    (tmp_path / "x" / INDEX).unlink()
    (tmp_path / "x" / "rest").write_text("of old")
    prepared_once(tmp_path / "x", one_value, what="", say=silent)
    assert Columns(tmp_path / "x").arrays["some"].shape == (2, 3)
    assert not (tmp_path / "x" / "rest").exists()


@pytest.mark.parametrize("error", [UserError("a.xyz:3: must be a number"), KeyboardInterrupt(), MemoryError()])
def test_a_preparation_that_fails_leaves_nothing_and_its_error_is_passed_on(tmp_path: Path, error: BaseException):
    def fails(folder: Path) -> None:
        one_value(folder)
        raise error

    with pytest.raises(type(error)) as raised:
        prepared_once(tmp_path / "x", fails, what="", say=silent)
    assert raised.value is error
    assert [path.name for path in tmp_path.iterdir()] == ["x.lock"]
    prepared_once(tmp_path / "x", one_value, what="", say=silent)


def test_a_source_that_vanishes_is_not_blamed_on_the_cache(data: Path):
    def reads(folder: Path) -> None:
        folder.mkdir()
        (data / "vanished.xyz").read_text()

    for attempt in (
        lambda: prepared_once(data / "cache" / "x", reads, what="", say=silent),
        lambda: make_folder(data / "out", reads, key="--out"),
    ):
        with pytest.raises(UserError, match=r"vanished\.xyz: No such file") as raised:
            attempt()
        assert "cache_folder" not in str(raised.value)
        assert "--out" not in str(raised.value)


def test_a_made_folder_is_complete_or_not_there(tmp_path: Path):
    make_folder(tmp_path / "out", one_value, key="--out")
    assert Columns(tmp_path / "out").arrays["some"].shape == (2, 3)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--out: .*Not a directory.*name another folder$"):
        make_folder(tmp_path / "file" / "out", one_value, key="--out")
    with pytest.raises(UserError, match="must hold"):
        make_folder(tmp_path / "other", refuses, key="--out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def refuses(folder: Path) -> None:
    one_value(folder)
    raise UserError("must hold at least one structure")


def test_a_cache_below_a_file_is_an_error_that_names_the_key(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^dataset\.cache_folder: .*file/cache.*: Not a directory; name another folder$"):
        prepared_once(tmp_path / "file" / "cache" / "stores" / "x", one_value, what="", say=silent)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of two megabytes with few files."""
    place = Path(tempfile.mkdtemp(prefix="modelforge_small_disk_"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=40", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        place.rmdir()
        pytest.skip(f"a small disk can only be mounted by root: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)
    place.rmdir()


def test_a_full_disk_is_an_error_that_names_the_key_and_keeps_what_is_there(small_disk: Path, data: Path):
    old = prepared_once(small_disk / "stores" / "old", one_value, what="", say=silent)
    before = Columns(old).arrays["some"].copy()
    many = structures_of([labelled(cluster(50, (1, 8), seed=1), seed=1)] * 1000)
    write_extxyz(data / "large.xyz", many)
    source = ExtendedXYZ(path="large.xyz")
    message = r"^dataset\.cache_folder: the disk of .*stores is full \(0\.0 GB free; No space left on device\).*another disk$"
    with pytest.raises(UserError, match=message):
        open_files([source.files([data / "large.xyz"])], cache=small_disk, say=silent, store_from=0)
    assert Columns(old).arrays["some"].tobytes() == before.tobytes()
    assert left_over(small_disk) == []
    assert complete(small_disk) == ["old"]
    assert shutil.disk_usage(small_disk).free > 1_500_000, "what was half made is gone"


def test_a_disk_without_room_for_one_file_more_is_full_as_well(small_disk: Path):
    for number in range(40):
        try:
            (small_disk / f"{number}").touch()
        except OSError:
            break
    with pytest.raises(UserError, match=r"^dataset\.cache_folder: the disk of .* is full"):
        prepared_once(small_disk / "cache" / "stores" / "x", one_value, what="", say=silent)


AS_NOBODY = """
import os, sys
from pathlib import Path
from modelforge.data.store.columns import ColumnWriter
from modelforge.data.store.prepared_once import prepared_once
from modelforge.errors import UserError
import modelforge.data.store.opening, encodings.idna

if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)

def make(folder):
    ColumnWriter(folder).finish({})

try:
    prepared_once(Path(sys.argv[1]), make, what="", say=print)
    print("made")
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_cache_without_permission_is_an_error_that_names_the_key(mode: int):
    cache = Path(tempfile.mkdtemp(prefix="modelforge_cache_"))  # pytest's folders are closed to other users
    try:
        cache.chmod(mode)
        command = [sys.executable, "-c", AS_NOBODY, str(cache / "x")]
        said = subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH)
        assert not said.stderr
        expected = f"dataset.cache_folder: must be a folder that can be written to (got {cache}: Permission denied); name another"
        assert said.stdout.strip() == expected
    finally:
        cache.chmod(0o700)
        shutil.rmtree(cache)


def test_what_is_complete_needs_no_permission_to_write():
    cache = Path(tempfile.mkdtemp(prefix="modelforge_cache_"))
    try:
        one_value(cache / "x")
        cache.chmod(0o555)
        command = [sys.executable, "-c", AS_NOBODY, str(cache / "x")]
        assert subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH).stdout.strip() == "made"
    finally:
        cache.chmod(0o700)
        shutil.rmtree(cache)


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path: Path):
    script = "import fcntl, os, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.lock")]).returncode == -signal.SIGKILL
    said: list[str] = []
    prepared_once(tmp_path / "x", one_value, what="making it", say=said.append)
    assert said == ["making it"]


def test_half_a_folder_is_never_opened(tmp_path: Path):
    one_value(tmp_path / "x")
    (tmp_path / "x" / INDEX).unlink()
    with pytest.raises(DamagedColumns):
        Columns(tmp_path / "x")
