"""Take the kept files out of a download, check them and publish each by a rename; paths in an archive are never used.

Until then they lie beside the download, in a folder of this process alone.
"""

import gzip
import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from modelforge.data.fetching.arrival import require_room
from modelforge.data.fetching.meter import Meter
from modelforge.data.fetching.registry import RemoteFile
from modelforge.errors import UserError

CHUNK = 1 << 20  # bytes
GZIP_BEGIN = b"\x1f\x8b"
HDF5_BEGIN = b"\x89HDF\r\n\x1a\n"


def unpack(packed: Path, files: Sequence[RemoteFile], place: Path, meter: Meter) -> None:
    """Publish the kept files of a download in `place`."""
    with packed.open("rb") as raw:
        try:
            if files[0].member:
                _unpack_members(raw, files, place, meter)
                return
            if raw.read(2) == GZIP_BEGIN:
                _unpack_gzip(raw, files[0], place, meter)
                return
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise UserError(f"{packed}: cannot be unpacked: {error} (removed); fetch it again") from error
    check(packed, files[0], found=files[0].md5)
    os.replace(packed, place / files[0].kept)


def check(path: Path, file: RemoteFile, *, found: str | None) -> None:
    """Stop at a kept file that has another checksum than published, or is something else, such as an error page."""
    if file.kept_md5 and found != file.kept_md5:
        raise wrong_checksum(str(path), file.kept_md5, found)
    with path.open("rb") as stream:
        begin = stream.read(8)
    if not (zipfile.is_zipfile(path) if file.kept.endswith(".npz") else begin == HDF5_BEGIN):
        kind = "an npz file" if file.kept.endswith(".npz") else "an HDF5 file"
        raise UserError(f"{path}: must be {kind} (got a file that begins with {begin!r}, removed); fetch it again")


def wrong_checksum(place: str, expected: str, found: str | None) -> UserError:
    """The error of a file that is not the published one, and has been removed."""
    return UserError(
        f"{place}: the file must have the md5 {expected} (got {found or 'another one'}, removed); fetch it again, and if that "
        "does not help, the file has been changed where it is published"
    )


def _unpack_gzip(raw: IO[bytes], file: RemoteFile, place: Path, meter: Meter) -> None:
    """Publish a file that is packed on its own."""
    size = os.fstat(raw.fileno()).st_size
    raw.seek(max(size - 4, 0))
    stated = int.from_bytes(raw.read(4), "little")  # of the unpacked file, modulo 4 GiB, by RFC 1952
    raw.seek(0)
    room = max(stated, size) if file.md5 else 0  # the least that it can need; a download without checksum may be damaged
    with gzip.open(raw) as stream:
        _pour(stream.read, file, Path(raw.name).parent, place, room=room, report=lambda: meter(raw.tell(), size))


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
            beside = Path(raw.name).parent
            _pour(stream.read, file, beside, place, room=entry.size, report=lambda: meter(raw.tell(), size))
            if not wanted:
                return
    raise UserError(f"{raw.name}: has no {', '.join(map(str, wanted))}; it may have been changed where it is published")


def _pour(
    read: Callable[[int], bytes], file: RemoteFile, beside: Path, place: Path, *, room: int, report: Callable[[], None]
) -> None:
    """Publish an unpacked file, if it has the checksum and the format that it must have; it needs some room on the disk."""
    digest = hashlib.md5(usedforsecurity=False)
    unpacked = beside / f"{file.kept}.unpacked"
    unpacked.unlink(missing_ok=True)  # what a process that was killed has left takes room
    require_room(unpacked, room)
    try:
        with unpacked.open("wb") as target:
            while chunk := read(CHUNK):
                target.write(chunk)
                digest.update(chunk)
                report()
            os.fsync(target.fileno())
        check(unpacked, file, found=digest.hexdigest())
        os.replace(unpacked, place / file.kept)
    finally:
        unpacked.unlink(missing_ok=True)
