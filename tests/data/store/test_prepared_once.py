"""Folders that are made once: by real processes that start together, are killed, or find no lock and no room."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_structures import cluster, labelled, structures_of

from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.extxyz.writer import write_extxyz
from modelforge.data.store.columns import INDEX, Columns, ColumnWriter, DamagedColumns
from modelforge.data.store.opening import open_files
from modelforge.data.store.prepared_once import ABANDONED, make_folder, prepared_once, silent
from modelforge.errors import UserError

ENOUGH = 60.0  # seconds until a process that should do something is given up
SERVER = """
import errno, fcntl, json, os, signal, sys, time, traceback
from pathlib import Path
from modelforge.data.sources.extxyz import ExtendedXYZ, read_parts
from modelforge.data.store.columns import ColumnWriter
from modelforge.data.store.opening import open_files
from modelforge.data.store.prepared_once import prepared_once
from modelforge.errors import UserError
import encodings.idna

say = lambda text: print(text, flush=True)

def open_slowly(folder, name, locks=True):
    class Waiting(ExtendedXYZ):  # in the middle of the file, until it is told to go on
        def read_file(self, path):
            with open(f"{folder}/readers", "a") as readers:
                print(name, file=readers)
            for number, part in enumerate(read_parts(path, self, text_size=2000)):
                if number == 2:
                    say("reading")
                    while not os.path.exists(f"{folder}/go"):
                        time.sleep(0.005)
                yield part

    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    if not locks:
        fcntl.flock = no_locks
    data = Path(folder)
    source = Waiting(path="data.xyz", stress_key="stress")
    opened = open_files([source.files([data / "data.xyz"])], cache=data / "cache", say=say, store_from=0)
    say(f"{opened.content_hash} {opened.structures.energy.tobytes().hex()}")

def prepare_as_nobody(folder):
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        prepared_once(Path(folder), lambda new: ColumnWriter(new).finish({}), what="made", say=say)
        say("there")
    except UserError as error:
        say(error)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that end are gone
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(order["out"], os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        try:
            globals()[order["work"]](**order["options"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    print(child, flush=True)
"""


@dataclass(frozen=True)
class Process:
    """Another process, and the file that takes what it says."""

    number: int
    out: Path

    def said(self) -> list[str]:
        return self.out.read_text().splitlines() if self.out.exists() else []

    def has_said(self, line: str) -> bool:
        """Wait until it says something."""
        until(lambda: line in self.said() or not self.runs())
        return line in self.said()

    def runs(self) -> bool:
        try:
            os.kill(self.number, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.number, signal.SIGKILL)
        until(lambda: not self.runs())

    def to_the_end(self) -> list[str]:
        """All that it has said when it has ended."""
        until(lambda: not self.runs())
        return self.said()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + ENOUGH
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.002)


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def server() -> Iterator["subprocess.Popen[str]"]:
    """A process that imports once and forks into the others."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def start(server: "subprocess.Popen[str]", tmp_path: Path) -> Iterator[Start]:
    """Starts processes, which end with the test."""
    processes: list[Process] = []

    def starts(work: str, **options: object) -> Process:
        out = tmp_path / f"said_{len(processes)}"
        print(json.dumps({"work": work, "out": str(out), "options": options}), file=server.stdin, flush=True)
        processes.append(Process(int(server.stdout.readline()), out))
        return processes[-1]

    yield starts
    for process in processes:
        process.kill()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a file of structures, some of which lack labels."""
    all_atoms = [labelled(cluster(5, (1, 8), seed=seed), seed=seed, energy=-97195.123456789 + seed) for seed in range(20)]
    write_extxyz(tmp_path / "data.xyz", structures_of([cluster(5, (1, 8), seed=99), *all_atoms]))
    return tmp_path


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


WAITING = "another process prepares the same data; waiting for it"


def test_a_folder_appears_at_once_by_renaming(tmp_path: Path):
    made: list[int] = []

    def make(folder: Path) -> None:
        one_value(folder)
        assert not (tmp_path / "x").exists()
        made.append(folder.stat().st_ino)

    assert [prepared_once(tmp_path / "x", make, what="", say=silent).stat().st_ino] == made


def test_a_killed_preparation_leaves_nothing_that_the_next_one_would_take_for_complete(data: Path, start: Start):
    killed = start("open_slowly", folder=str(data), name="first")
    assert killed.has_said("reading")
    assert len(left_over(data / "cache")) == 1
    killed.kill()
    assert complete(data / "cache") == []
    assert len(left_over(data / "cache")) == 1, "a killed process cannot clean up"
    said: list[str] = []
    opened = open_here(data, said.append)
    assert [text.split()[0] for text in said] == ["preparing"], "it does not wait for the dead"
    assert opened.structures.energy[1:].tolist() == [-97195.123456789 + seed for seed in range(20)]
    assert left_over(data / "cache") == []
    assert len(complete(data / "cache")) == 1


def test_of_two_processes_one_prepares_and_the_other_waits(data: Path, start: Start):
    first = start("open_slowly", folder=str(data), name="first")
    assert first.has_said("reading")
    second = start("open_slowly", folder=str(data), name="second")
    assert second.has_said(WAITING)
    (data / "go").touch()
    of_first, of_second = first.to_the_end(), second.to_the_end()
    assert of_first[0].startswith("preparing ")
    assert of_first[1:] == ["reading", of_second[-1]], "both have the same structures"
    assert len(of_second) == 2
    assert (data / "readers").read_text().split() == ["first"]
    opened = open_here(data)
    assert of_second[1] == f"{opened.content_hash} {opened.structures.energy.tobytes().hex()}"


def test_a_process_whose_predecessor_dies_takes_over(data: Path, start: Start):
    first = start("open_slowly", folder=str(data), name="first")
    assert first.has_said("reading")
    second = start("open_slowly", folder=str(data), name="second")
    assert second.has_said(WAITING)
    first.kill()
    (data / "go").touch()
    assert [text.split()[0] for text in second.to_the_end()[:3]] == ["another", "preparing", "reading"]
    assert (data / "readers").read_text().split() == ["first", "second"]
    assert left_over(data / "cache") == []
    assert len(complete(data / "cache")) == 1


def test_without_locks_both_work_and_one_store_results(data: Path, start: Start):
    both = [start("open_slowly", folder=str(data), name=name, locks=False) for name in ("first", "second")]
    assert all(process.has_said("reading") for process in both)
    assert len(left_over(data / "cache")) == 2
    (data / "go").touch()
    ends = [process.to_the_end()[-1] for process in both]
    opened = open_here(data)
    assert ends == [f"{opened.content_hash} {opened.structures.energy.tobytes().hex()}"] * 2
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


@pytest.fixture
def shared_cache() -> Iterator[Path]:
    """A folder that other users reach, unlike those of pytest."""
    cache = Path(tempfile.mkdtemp(prefix="modelforge_cache_"))
    yield cache
    cache.chmod(0o700)
    shutil.rmtree(cache)


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_a_cache_without_permission_is_an_error_that_names_the_key(shared_cache: Path, start: Start, mode: int):
    shared_cache.chmod(mode)
    said = start("prepare_as_nobody", folder=str(shared_cache / "x")).to_the_end()
    expected = "must be a folder that can be written to (got {}: Permission denied); name another"
    assert said == [f"dataset.cache_folder: {expected.format(shared_cache)}"]


def test_what_is_complete_needs_no_permission_to_write(shared_cache: Path, start: Start):
    one_value(shared_cache / "x")
    shared_cache.chmod(0o555)
    assert start("prepare_as_nobody", folder=str(shared_cache / "x")).to_the_end() == ["there"]


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
