"""Fetch a registered data set: download what is missing, check it, unpack it, and keep it in the cache of data sets.

pooch sees to checksums; the transfer is our own, for a file of 25 GB must go on where it broke off. Only the unpacked file is
kept, with a note of its size and time of change, by which the next call knows it as checked.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from rich.console import Console
from rich.filesize import decimal

from modelforge.data.fetching.arrival import arrival_folder
from modelforge.data.fetching.meter import shown
from modelforge.data.fetching.record import known_to_the_record
from modelforge.data.fetching.registry import DataSet, RemoteFile, find
from modelforge.data.fetching.transfer import Unreachable, num_arrived, rebased, transfer
from modelforge.data.fetching.unpack import check, unpack, wrong_checksum
from modelforge.errors import UserError


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
    Other processes may fetch the same at the same time.
    """
    data_set = find(name)
    files = data_set.files(version=version, molecule=molecule)
    place = _place(data_set, version, folder)
    by_download: dict[tuple[str, ...], list[RemoteFile]] = {}
    try:
        for file in files:
            if not _is_noted(place / file.kept):
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


def _is_noted(kept: Path) -> bool:
    """Whether a file is there and has not changed since it was checked; this neither waits nor writes."""
    note = _note_of(kept)
    return kept.is_file() and note.is_file() and note.read_text(encoding="utf-8") == _fingerprint(kept)


def _is_there(kept: Path, file: RemoteFile, folder: Path) -> bool:
    """Whether a file has been fetched, or put there by hand; one that is not noted as checked is checked now."""
    if not kept.is_file():
        return False
    if not _is_noted(kept):
        try:
            with kept.open("rb") as stream:
                check(kept, file, found=hashlib.file_digest(stream, "md5").hexdigest() if file.kept_md5 else None)
        except UserError:
            kept.unlink()
            raise
        _write_note(kept, folder)
    return True


def _write_note(kept: Path, folder: Path) -> None:
    """Note a file as checked, by a rename out of the folder that this process has alone."""
    draft = folder / f"{kept.name}.checked"
    draft.write_text(_fingerprint(kept), encoding="utf-8")
    os.replace(draft, _note_of(kept))


def _note_of(kept: Path) -> Path:
    return kept.with_name(f".{kept.name}.checked")


def _fingerprint(path: Path) -> str:
    return f"{path.stat().st_size} bytes, changed at {path.stat().st_mtime_ns} ns\n"


def _fetch_together(files: Sequence[RemoteFile], place: Path, *, base_url: str | None, progress: Console | None) -> None:
    """Fetch the files that are in one download, unless another process has fetched them by the time it is our turn."""

    def say(text: str) -> None:
        if progress:
            progress.print(text)

    place.mkdir(parents=True, exist_ok=True)
    with arrival_folder(place, _name_of_download(files[0]), say=say) as folder:
        missing = [file for file in files if not _is_there(place / file.kept, file, folder)]
        if not missing:
            return
        source = known_to_the_record(missing[0], base_url=base_url)
        packed = _download(source, folder, base_url=base_url, progress=progress)
        try:
            with shown(progress, f"unpacking {packed.stem}") as meter:
                unpack(packed, [source, *missing[1:]], place, meter)
        except UserError:
            packed.unlink()
            raise
        for file in missing:
            _write_note(place / file.kept, folder)
            if not source.md5 and not file.kept_md5:
                say(f"{file.kept}: no checksum is published for this file; only its format was checked")


def _name_of_download(file: RemoteFile) -> str:
    return PurePosixPath(urlsplit(file.urls[0]).path).name if file.member else file.kept


def _download(file: RemoteFile, folder: Path, *, base_url: str | None, progress: Console | None) -> Path:
    """The file as it is published, with the right checksum, from the first address that gives it."""
    try:
        import pooch
    except ImportError as error:
        raise UserError("downloads need the package pooch; install it: pip install pooch") from error

    pooch.get_logger().setLevel("WARNING")
    name = _name_of_download(file)
    part = folder / f"{name}.part"

    def bring(url: str, target: str, _: object) -> None:
        with shown(progress, name) as meter:
            transfer(url, Path(target), part=part, meter=meter)

    known = f"md5:{file.md5}" if file.md5 else None
    problems = []
    for url in [rebased(url, base_url) for url in file.urls]:
        try:
            return Path(pooch.retrieve(url, known, fname=f"{name}.download", path=folder, downloader=bring))
        except Unreachable as problem:
            problems.append(str(problem))
        except UserError:
            raise
        except ValueError as error:  # pooch's word for a wrong checksum; it has removed the file
            found = re.search(r"got ([0-9a-f]{32})", str(error))
            raise wrong_checksum(url, file.md5 or "", found and found[1]) from error
    raise UserError(
        "\n".join(problems) + f"\n{num_arrived(part)} bytes have arrived and are kept: call again to go on from there, "
        f"or get the file in another way and put it, unpacked, at {folder.parent / file.kept}"
    )
