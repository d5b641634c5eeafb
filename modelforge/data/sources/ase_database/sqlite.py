"""Rows of ASE databases in SQLite, which includes those of SchNetPack, read in bulk: versions 5 to 9 of ASE's layout.

A file is opened read-only and as one that nobody changes, so that network disks without locks will do. Whoever writes at
the same time is noticed by the files that SQLite keeps beside the database meanwhile, and by its size and time.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modelforge.data.sources.ase_database.rows import CALCULATED, Place, Request, Row, labels_of
from modelforge.data.sources.ase_database.values import Data, parse_data, parse_object, shown
from modelforge.data.structures import Floats
from modelforge.errors import UserError

VERSIONS = range(5, 10)
MAGIC = b"SQLite format 3\0"
GEOMETRY = ("id", "natoms", "pbc", "numbers", "positions", "cell", "key_value_pairs", "data")
NO_CELL = np.zeros(9)


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to an ASE database that cannot change it; what SQLite complains about is a `UserError`."""
    _refuse_unfinished(path)
    _check_size(path)
    before = _state(path)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            connection.execute("PRAGMA cell_size_check = ON")
            _check_version(connection, path)
            yield connection
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: must be an ASE database that SQLite can read to its end (got: {shown(str(error))}); it is damaged or "
            "incomplete, copy or make it anew"
        ) from None
    if _state(path) != before:
        raise UserError(f"{path}: must not change while it is read; wait until whoever writes it has ended")


def _refuse_unfinished(path: Path) -> None:
    """Without locks, changes that SQLite has not yet brought into the file would be overlooked."""
    for ending in ("-wal", "-journal"):
        beside = path.with_name(path.name + ending)
        if beside.exists() and beside.stat().st_size:
            raise UserError(
                f"{path}: must be complete (got {beside.name} beside it, which holds changes that are not yet in the file); "
                f"close what writes it, then run: sqlite3 {path.name} "
                "'PRAGMA wal_checkpoint(TRUNCATE); SELECT count(*) FROM systems;'"
            )


def _check_size(path: Path) -> None:
    """SQLite itself only notices lost pages when it needs them."""
    with path.open("rb") as file:
        header = file.read(100)
    page_size, num_pages = (int.from_bytes(header[begin:end], "big") for begin, end in ((16, 18), (28, 32)))
    needed = (65_536 if page_size == 1 else page_size) * num_pages
    if header[24:28] == header[92:96] and path.stat().st_size < needed:  # else an old SQLite left the number of pages out
        raise UserError(f"{path}: must have {needed} bytes (got {path.stat().st_size}); it is truncated, copy or make it anew")


def _state(path: Path) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "systems" not in tables:
        raise UserError(f"{path}: must be an ASE database, which has a table 'systems' (got {shown(sorted(tables))})")
    found = None
    if "information" in tables:
        found = connection.execute("SELECT value FROM information WHERE name = 'version'").fetchone()
    version = int(found[0]) if found and str(found[0]).isdecimal() else 0
    if version not in VERSIONS:
        remedy = "update modelforge" if version else f"convert it: python -m ase.db.convert {path.name}"
        got = f"version {version}" if version else "none or an unknown one"
        raise UserError(f"{path}: must have a version {VERSIONS[0]} to {VERSIONS[-1]} of ASE's layout (got {got}); {remedy}")


def read_metadata(path: Path) -> dict[str, object]:
    """What the writer of the database says of it."""
    with opened(path) as connection:
        found = connection.execute("SELECT value FROM information WHERE name = 'metadata'").fetchone()
    try:
        return parse_object(found[0]) if found and isinstance(found[0], str | bytes) else {}
    except ValueError as error:
        raise UserError(f"{path}: metadata: {error}") from None


def has_only_data(path: Path) -> bool:
    """Whether all labels are in the rows' data, as in databases of SchNetPack, and none came from a calculator."""
    with opened(path) as connection:
        first = connection.execute("SELECT data FROM systems ORDER BY id LIMIT 1").fetchone()
        try:
            if not first or not parse_data(first[0]).values:
                return False
        except ValueError:
            return False  # the rows' reader tells it with the place
        some = " OR ".join(f"{name} IS NOT NULL" for name in CALCULATED)
        return connection.execute(f"SELECT 1 FROM systems WHERE {some} LIMIT 1").fetchone() is None


def read_rows(path: Path, request: Request) -> Iterator[Row]:
    """The rows in the order of their ids."""
    with opened(path) as connection:
        # counted in an index, so that a damaged table does not pass for one with fewer rows
        (expected,) = connection.execute("SELECT count(*) FROM systems").fetchone()
        index, last = -1, None
        for index, record in enumerate(connection.execute(query(request))):
            if type(record[0]) is not int or (last is not None and record[0] <= last):
                raise UserError(f"{path}: must have ascending ids (got {record[0]} after {last}); it is damaged")
            last = record[0]
            yield row_of(record, place=Place(path, index, last), request=request)
        if index + 1 != expected:
            raise UserError(f"{path}: must have {expected} rows, as its index says (got {index + 1}); it is damaged")


def query(request: Request) -> str:
    """Blobs of the calculator that nobody asks for are not read, only counted."""
    calculated = [name if name in request.keys else f"nullif({name} IS NOT NULL, 0)" for name in CALCULATED]
    return f"SELECT {', '.join((*GEOMETRY, *calculated))} FROM systems ORDER BY id"


def row_of(record: tuple[Any, ...], *, place: Place, request: Request) -> Row:
    """The row of a record of the query."""
    _, num_atoms, periodic, numbers, positions, cell, pairs, data = record[: len(GEOMETRY)]
    if type(num_atoms) is not int or num_atoms < 1:
        raise UserError(f"{place}: natoms: must be the number of atoms, 1 or more (got {shown(num_atoms)})")
    if periodic is not None and (type(periodic) is not int or not 0 <= periodic <= 7):
        raise UserError(f"{place}: pbc: must be a number from 0 to 7 (got {shown(periodic)})")
    calculated = {name: value for name, value in zip(CALCULATED, record[len(GEOMETRY) :], strict=True) if value is not None}
    labels = labels_of(calculated, _pairs(pairs, place), _data(data, place), request=request, num_atoms=num_atoms, place=place)
    return Row(
        place,
        np.frombuffer(blob(numbers, 4 * num_atoms, place=place, name="numbers"), "<i4"),
        np.frombuffer(blob(positions, 24 * num_atoms, place=place, name="positions"), "<f8"),
        NO_CELL if cell is None else _cell(cell, place),
        periodic or 0,
        *labels,
    )


def blob(value: object, size: int, *, place: Place, name: str) -> bytes:
    """So many bytes."""
    if not isinstance(value, bytes) or len(value) != size:
        raise UserError(f"{place}: {name}: must be {size} bytes, as natoms says (got {shown(value)})")
    return value


def _cell(value: object, place: Place) -> Floats:
    if not isinstance(value, bytes) or len(value) != 72:
        raise UserError(f"{place}: cell: must be 9 numbers in 72 bytes (got {shown(value)})")
    return np.frombuffer(value, "<f8")


def _pairs(value: object, place: Place) -> dict[str, object]:
    if value is None or value == "{}":
        return {}
    try:
        if isinstance(value, str | bytes):
            return parse_object(value)
        raise ValueError(f"must be a JSON object (got {shown(value)})")
    except ValueError as error:
        raise UserError(f"{place}: key_value_pairs: {error}") from None


def _data(value: object, place: Place) -> Data:
    try:
        return parse_data(value)
    except ValueError as error:
        raise UserError(f"{place}: data: {error}") from None
