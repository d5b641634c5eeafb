"""From files to structures: small data are read into memory, large ones are prepared once as a store and mapped.

The store's name is a hash of the bytes of the files and of all options that decide on what is read from them. So it is found
again by every process, run and sweep that reads the same, and is never out of date.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from modelforge import __version__
from modelforge.data.sources.gather import read
from modelforge.data.sources.read_report import Reading, ReadReport
from modelforge.data.sources.source import SourceFiles
from modelforge.data.sources.stored import Stored
from modelforge.data.store.columns import INDEX, Columns, DamagedColumns
from modelforge.data.store.content_hash import content_hash
from modelforge.data.store.file_digests import file_digest
from modelforge.data.store.prepared_once import Say, prepared_once
from modelforge.data.store.store import VERSION, Store, open_store, write_files
from modelforge.data.structures import Structures
from modelforge.errors import UserError

STORE_FROM = 32_000_000  # bytes: what is less is read in about a second


@dataclass(frozen=True, eq=False)
class OpenedData:
    """Structures with what the reader said about them, in memory or mapped."""

    reading: Reading
    content_hash: str
    columns: Columns | None = None  # the mapped columns, if they are

    @property
    def structures(self) -> Structures:
        """The structures."""
        return self.reading.structures

    @property
    def report(self) -> ReadReport:
        """What was found in the files."""
        return self.reading.report


def cache_folder(chosen: str | None) -> Path:
    """Where prepared data are kept."""
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelforge"


def open_files(files: Sequence[SourceFiles], *, cache: Path, say: Say, store_from: int = STORE_FROM) -> OpenedData:
    """The structures of all files; `say` is told what takes long."""
    if len(files) == 1 and isinstance(files[0].reader, Stored) and len(files[0].paths) == 1 and not files[0].prefix:
        return _opened(open_store(files[0].paths[0]))
    origins = [path for some in files for each in some.paths for path in some.reader.bytes_of(each)]
    size = sum(path.stat().st_size for path in origins)
    if size < store_from:
        reading = read(files)
        return OpenedData(reading, content_hash(reading.structures))
    return _opened(_prepared(files, size=size, cache=cache, say=say))


def _prepared(files: Sequence[SourceFiles], *, size: int, cache: Path, say: Say) -> Store:
    names = tuple(str(path) for some in files for path in some.paths)
    key = store_key(files, cache)
    folder = cache / "stores" / key

    def make(temporary: Path) -> None:
        write_files(temporary, files)
        if store_key(files, cache) != key:
            raise UserError("dataset.path: the files have changed while they were read; start again when they are complete")

    what = f"preparing {size / 1e6:,.0f} MB of data once, in {folder}"
    for _ in range(2):
        prepared_once(folder, make, what=what, say=say)
        try:
            return Store(folder, files=names)
        except DamagedColumns as error:
            say(f"{error}: damaged; preparing it again")
            with suppress(OSError):  # it is not made again then, and stays damaged
                (folder / INDEX).unlink()
    raise UserError(f"dataset.cache_folder: {folder} is damaged again and again; check the disk, or name another folder")


def store_key(files: Sequence[SourceFiles], cache: Path) -> str:
    """A hash of the bytes of all files and of how they are read."""
    digests = cache / "digests"
    told = [
        [
            some.prefix,
            some.reader.options(),
            [_digests(path, some.reader.bytes_of(path), digests) for path in some.paths],
        ]
        for some in files
    ]
    text = json.dumps([VERSION, __version__, told], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digests(path: Path, files: Sequence[Path], cache: Path) -> list[list[str]]:
    """Digests of the files of a path: names of folders and within them mean something, that of a single file does not."""
    return [["" if file == path else str(file.relative_to(path.parent)), file_digest(file, cache)] for file in files]


def _opened(store: Store) -> OpenedData:
    return OpenedData(store.reading, store.content_hash, store.columns)
