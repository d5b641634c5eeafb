"""Fetch a registered data set: download what is missing, check it, unpack it, and keep it in the cache of data sets.

pooch sees to checksums and to the move into place; the transfer is here, for a file of 25 GB must go on where it broke off.
Only the unpacked file is kept, with a note of its size and time of change, by which the next call knows it as checked.
"""

import errno
import gzip
import hashlib
import os
import re
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from modelforge.data.registry import DataSet, RemoteFile, find
from modelforge.errors import UserError
from modelforge.files import replacing, write_text

ATTEMPTS = 5  # in a row that bring no more bytes than there were
PAUSE = 1.0  # seconds before the second attempt, then twice as long each time
SILENCE = 60.0  # seconds without a byte, after which a connection counts as broken
LINE_EVERY = 5.0  # seconds between two lines of progress where there is no terminal
CHUNK = 1 << 20  # bytes
PASSING = (408, 425, 429)  # HTTP errors, besides those of the server, that another attempt may not meet

Result = TypeVar("Result")
Meter = Callable[[int, int | None], None]  # takes the bytes that are done, and of how many if that is known


class Broken(Exception):
    """A transfer that another attempt may complete."""


class Changed(Broken):
    """What has arrived is of another file than the server has now."""


class Unreachable(UserError):
    """An address that does not give its file; another address may."""


class Stamp(BaseModel, frozen=True):
    """What the server said of a whole file when its first part arrived: a part of another file must not be continued."""

    url: str
    tag: str | None
    total: int | None


class RecordEntry(BaseModel):
    """A file in the metadata of a Zenodo record."""

    key: str
    size: int
    checksum: str


class Record(BaseModel):
    """The metadata of a Zenodo record, as far as needed."""

    files: list[RecordEntry]


def fetch(
    name: str,
    *,
    version: str | None = None,
    molecule: str | None = None,
    folder: Path | None = None,
    base_url: str | None = None,
    progress: Console | None = None,
) -> list[Path]:
    """The files of a registered data set, of one molecule or of all; what is not in the folder yet is downloaded.

    `base_url` takes the place of scheme and host of all addresses; without a console for the progress nothing is printed.
    """
    data_set = find(name)
    files = data_set.files(version=version, molecule=molecule)
    place = _place(data_set, version, folder)
    by_download: dict[tuple[str, ...], list[RemoteFile]] = {}
    try:
        for file in files:
            if not _is_there(place / file.kept, file):
                by_download.setdefault(file.urls, []).append(file)
        for together in by_download.values():
            _fetch_together(together, place, base_url=base_url, progress=progress)
    except OSError as error:
        free = decimal(shutil.disk_usage(place).free) if place.exists() else "unknown"
        raise UserError(
            f"{error.filename or place}: cannot be read or written: {error.strerror or error} (free on the disk: {free}); "
            "make room or choose another folder and call again: what has arrived is kept"
        ) from error
    return [place / file.kept for file in files]


def path_of(name: str, *, version: str | None = None, molecule: str | None = None, folder: Path | None = None) -> Path | None:
    """Where the file of a data set, or of one of its molecules, lies if it has been fetched."""
    data_set = find(name)
    files = data_set.files(version=version, molecule=molecule)
    if len(files) > 1:
        raise UserError(f"{name}: molecule: missing; choose one of {', '.join(data_set.molecules)}")
    kept = _place(data_set, version, folder) / files[0].kept
    return kept if kept.is_file() else None


def default_folder() -> Path:
    """Where data sets are kept: $XDG_CACHE_HOME/modelforge/datasets (~/.cache by default)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelforge" / "datasets"


def _place(data_set: DataSet, version: str | None, folder: Path | None) -> Path:
    return (folder or default_folder()) / data_set.name / data_set.version(version)


def _is_there(kept: Path, file: RemoteFile) -> bool:
    """Whether a file has been fetched, or put there by hand; one that is not noted as checked is checked now."""
    if not kept.is_file():
        return False
    note = _note(kept)
    if not note.is_file() or note.read_text(encoding="utf-8") != _fingerprint(kept):
        try:
            with kept.open("rb") as stream:
                _check(kept, file, found=hashlib.file_digest(stream, "md5").hexdigest() if file.kept_md5 else None)
        except UserError:
            kept.unlink()
            raise
        write_text(note, _fingerprint(kept))
    return True


def _note(kept: Path) -> Path:
    return kept.with_name(f".{kept.name}.checked")


def _fingerprint(path: Path) -> str:
    return f"{path.stat().st_size} bytes, changed at {path.stat().st_mtime_ns} ns\n"


def _check(path: Path, file: RemoteFile, *, found: str | None) -> None:
    """Stop at a kept file that has another checksum than published, or is something else, such as an error page."""
    if file.kept_md5 and found != file.kept_md5:
        raise _wrong_checksum(str(path), file.kept_md5, found)
    with path.open("rb") as stream:
        begin = stream.read(8)
    if not (zipfile.is_zipfile(path) if file.kept.endswith(".npz") else begin == b"\x89HDF\r\n\x1a\n"):
        kind = "an npz file" if file.kept.endswith(".npz") else "an HDF5 file"
        raise UserError(f"{path}: must be {kind} (got a file that begins with {begin!r}, removed); fetch it again")


def _wrong_checksum(place: str, expected: str, found: str | None) -> UserError:
    return UserError(
        f"{place}: the file must have the md5 {expected} (got {found or 'another one'}, removed); fetch it again, and if that "
        "does not help, the file has been changed where it is published"
    )


def _fetch_together(files: Sequence[RemoteFile], place: Path, *, base_url: str | None, progress: Console | None) -> None:
    """Download what some files are in, and publish each of them by a rename."""
    place.mkdir(parents=True, exist_ok=True)
    source = _known_to_the_record(files[0], base_url)
    packed = _download(source, place, base_url=base_url, progress=progress)
    try:
        with _meter(progress, f"unpacking {packed.stem}") as meter:
            _unpack(packed, files, place, meter)
    except UserError:
        packed.unlink()
        raise
    packed.unlink(missing_ok=True)
    for file in files:
        write_text(_note(place / file.kept), _fingerprint(place / file.kept))
        if not source.md5 and not file.kept_md5 and progress:
            progress.print(f"{file.kept}: no checksum is published for this file; only its format was checked")


def _known_to_the_record(file: RemoteFile, base_url: str | None) -> RemoteFile:
    """The file with the address, checksum and size from its Zenodo record, where they are not registered."""
    if file.record is None or file.md5:
        return file
    url = f"https://zenodo.org/api/records/{file.record}"
    here = _rebased(url, base_url)
    try:
        entries = Record.model_validate_json(_persistently(here, lambda: _read_all(here), arrived=lambda: 0)).files
    except ValidationError as error:
        raise UserError(
            f"{here}: the answer is no metadata of a record: {error.errors()[0]['msg']}; try again later"
        ) from error
    name = file.urls[0].rpartition("/")[2] if file.urls else None
    fitting = [entry for entry in entries if entry.key == name or (name is None and entry.key.endswith(".hdf5.gz"))]
    if len(fitting) != 1:
        listed = ", ".join(entry.key for entry in entries)
        raise UserError(f"{here}: the record must hold one file {name or '*.hdf5.gz'} (got {listed}); it may have been changed")
    (entry,) = fitting
    address = f"https://zenodo.org/records/{file.record}/files/{entry.key}"
    return replace(file, urls=(address,), md5=entry.checksum.removeprefix("md5:"), size=entry.size)


def _download(file: RemoteFile, place: Path, *, base_url: str | None, progress: Console | None) -> Path:
    """The file as it is published, with the right checksum, from the first address that gives it."""
    import pooch  # type: ignore[import-untyped]  # it states no types

    pooch.get_logger().setLevel("WARNING")
    name = PurePosixPath(urlsplit(file.urls[0]).path).name if file.member else file.kept
    part = place / f"{name}.part"

    def transfer(url: str, target: str, _: object) -> None:
        with _meter(progress, name) as meter:
            _persistently(url, lambda: _receive(url, part, meter), arrived=lambda: _size(part))
        os.replace(part, target)
        _stamp_of(part).unlink()

    known = f"md5:{file.md5}" if file.md5 else None
    problems = []
    for url in [_rebased(url, base_url) for url in file.urls]:
        try:
            return Path(pooch.retrieve(url, known, fname=f"{name}.download", path=place, downloader=transfer))
        except Unreachable as problem:
            problems.append(str(problem))
        except UserError:
            raise
        except ValueError as error:  # pooch's word for a wrong checksum; it has removed the file
            found = re.search(r"got ([0-9a-f]{32})", str(error))
            raise _wrong_checksum(url, file.md5 or "", found and found[1]) from error
    raise UserError(
        "\n".join(problems) + f"\n{_size(part)} bytes have arrived and are kept in {part}: call again to go on from there, "
        f"or get the file in another way and put it, unpacked, at {place / file.kept}"
    )


def _rebased(url: str, base_url: str | None) -> str:
    """The address with another scheme and host."""
    parts = urlsplit(url)
    return url if base_url is None else base_url.rstrip("/") + url[len(f"{parts.scheme}://{parts.netloc}") :]


def _persistently(url: str, attempt: Callable[[], Result], *, arrived: Callable[[], int]) -> Result:
    """What the attempt gives, made again after a pause while it breaks, until several in a row have brought nothing."""
    failures, furthest = 0, arrived()
    while True:
        try:
            return attempt()
        except Broken as reason:
            failures = 1 if arrived() > furthest else failures + 1
            furthest = max(furthest, arrived())
            if failures >= ATTEMPTS:
                raise Unreachable(
                    f"{url}: {reason} ({ATTEMPTS} attempts in a row brought nothing); try again later"
                ) from reason
        time.sleep(PAUSE * 2 ** (failures - 1))


def _receive(url: str, part: Path, meter: Meter) -> None:
    """Bring the whole of a file into `part`, from where it broke off if the server knows ranges and the file is the same."""
    stamp = _read_stamp(part, url)
    begin = _size(part) if stamp and stamp.total else 0
    if stamp and begin and begin == stamp.total:
        return
    try:
        with _open(url, begin=begin) as response:
            said = _said(url, response, begin=begin)
            if response.status == 200:
                part.unlink(missing_ok=True)
                write_text(_stamp_of(part), said.model_dump_json())
            elif response.status != 206:
                raise Broken(f"HTTP {response.status} {response.reason} instead of the file")
            elif said != stamp:
                raise Changed("the file has changed since its first part arrived")
            _copy(response, part, total=said.total, meter=meter)
    except Changed:
        part.unlink()
        raise
    if said.total not in (None, _size(part)):
        raise Broken(f"the connection ended after {_size(part)} of {said.total} bytes")


def _open(url: str, *, begin: int = 0) -> HTTPResponse:
    """The answer of the server to the request for a file, from a byte on."""
    headers = {"User-Agent": "modelforge"} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=SILENCE)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the range begins behind the end
            raise Changed("the file is shorter than what has arrived of it") from error
        if error.code in PASSING or error.code >= 500:
            raise Broken(f"HTTP {error.code} {error.reason}") from error
        raise Unreachable(f"{url}: HTTP {error.code} {error.reason}; the file may have been moved") from error
    except URLError as error:
        raise Broken(str(error.reason)) from error
    except (OSError, HTTPException) as error:
        raise Broken(str(error)) from error
    return response


def _said(url: str, response: HTTPResponse, *, begin: int) -> Stamp:
    """What an answer says of the whole file; without a total where it is not the range that was asked for."""
    length = response.headers.get("Content-Length")
    if response.status == 206:
        found = re.fullmatch(rf"bytes {begin}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        length = found and found[1]
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return Stamp(url=url, tag=tag, total=int(length) if length else None)


def _copy(response: HTTPResponse, part: Path, *, total: int | None, meter: Meter) -> None:
    """Append to `part` what arrives."""
    done = _size(part)
    if total and total - done > shutil.disk_usage(part.parent).free:
        raise OSError(errno.ENOSPC, f"{decimal(total - done)} more are needed: {os.strerror(errno.ENOSPC)}", str(part))
    with part.open("ab") as file:
        while chunk := _next(response):
            file.write(chunk)
            done += len(chunk)
            meter(done, total)


def _next(response: HTTPResponse) -> bytes:
    """The bytes that have arrived, none at the end; errors of the network are told from errors of the disk here."""
    try:
        return response.read1(CHUNK)
    except (OSError, HTTPException) as error:
        raise Broken(str(error) or type(error).__name__) from error


def _read_all(url: str) -> bytes:
    with _open(url) as response:
        return b"".join(iter(lambda: _next(response), b""))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _stamp_of(part: Path) -> Path:
    return part.with_name(f".{part.name}.json")


def _read_stamp(part: Path, url: str) -> Stamp | None:
    """What was said of the file when its part arrived; none if it arrived from another address."""
    path = _stamp_of(part)
    stamp = Stamp.model_validate_json(path.read_bytes()) if path.is_file() else None
    return stamp if stamp and stamp.url == url else None


def _unpack(packed: Path, files: Sequence[RemoteFile], place: Path, meter: Meter) -> None:
    """Publish the kept files of a download, each by a rename; paths in an archive are never used as paths."""
    with packed.open("rb") as raw:
        begin = raw.read(2)
        raw.seek(0)
        try:
            if files[0].member:
                _unpack_members(raw, files, place, meter)
                return
            if begin == b"\x1f\x8b":
                with gzip.open(raw) as stream:
                    _pour(stream.read, files[0], place, lambda: meter(raw.tell(), _size(packed)))
                return
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise UserError(f"{packed}: cannot be unpacked: {error} (removed); fetch it again") from error
    _check(packed, files[0], found=files[0].md5)
    os.replace(packed, place / files[0].kept)


def _unpack_members(raw: IO[bytes], files: Sequence[RemoteFile], place: Path, meter: Meter) -> None:
    """Publish members of a tar archive, packed in whichever way, in one pass."""
    wanted = {file.member: file for file in files}
    size = os.fstat(raw.fileno()).st_size
    with tarfile.open(fileobj=raw, mode="r|*") as archive:
        for entry in archive:
            path = PurePosixPath(entry.name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(
                    f"{raw.name}: holds {entry.name!r}, a path that leads out of it; the archive is not to be trusted"
                )
            if (file := wanted.pop(str(path), None)) is None:
                continue
            stream = archive.extractfile(entry) if entry.isfile() else None
            if stream is None:
                raise UserError(f"{raw.name}: {entry.name!r} must be a plain file; the archive is not to be trusted")
            _pour(stream.read, file, place, lambda: meter(raw.tell(), size))
            if not wanted:
                return
    raise UserError(f"{raw.name}: has no {', '.join(map(str, wanted))}; it may have been changed where it is published")


def _pour(read: Callable[[int], bytes], file: RemoteFile, place: Path, report: Callable[[], None]) -> None:
    """Publish an unpacked file, if it has the checksum and the format that it must have."""
    digest = hashlib.md5(usedforsecurity=False)
    with replacing(place / file.kept) as temporary:
        with temporary.open("wb") as target:
            while chunk := read(CHUNK):
                target.write(chunk)
                digest.update(chunk)
                report()
        _check(temporary, file, found=digest.hexdigest())


@contextmanager
def _meter(console: Console | None, label: str) -> Iterator[Meter]:
    """Show how far something is: a bar on a terminal, a line every few seconds elsewhere, nothing without a console."""
    if console is None:
        yield lambda _done, _total: None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _lines(console, label)


def _lines(console: Console, label: str) -> Meter:
    """A line every few seconds."""
    last = time.monotonic()

    def say(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            console.print(
                f"{label}: {decimal(done)}" + (f" of {decimal(total)}" if total else ""), soft_wrap=True, highlight=False
            )

    return say
