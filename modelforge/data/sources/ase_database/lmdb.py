"""Rows of ASE databases in LMDB (.aselmdb, as OMat24 and fairchem have them): compressed JSON by id.

They are read without the package that writes them: nothing but JSON is decoded, and no object is built from it.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modelforge.data.sources.ase_database.rows import CALCULATED, Place, Request, Row, labels_of
from modelforge.data.sources.ase_database.values import Data, decoded, numbers_of, parse_object, shown
from modelforge.data.structures import Floats
from modelforge.errors import UserError

if TYPE_CHECKING:
    import lmdb

MAGIC = struct.pack("<I", 0xBEEFC0DE)  # after the 16 bytes of a page's header
RESERVED = (b"nextid", b"deleted_ids", b"metadata")


@contextmanager
def opened(path: Path) -> "Iterator[tuple[lmdb.Environment, lmdb.Transaction]]":
    """A read-only transaction without locks; what LMDB complains about is a `UserError`."""
    try:
        import lmdb
    except ImportError:
        raise UserError(f"{path}: needs the package lmdb; install it: pip install modelforge[lmdb]") from None
    try:
        with (
            lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_readers=1) as environment,
            environment.begin() as transaction,
        ):
            _check_size(environment, path)
            yield environment, transaction
    except lmdb.Error as error:
        raise UserError(
            f"{path}: must be a database that LMDB can read to its end (got: {error}); copy or make it anew"
        ) from None


def _check_size(environment: "lmdb.Environment", path: Path) -> None:
    """A page beyond the end of the file would end the process."""
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if path.stat().st_size < needed:
        raise UserError(f"{path}: must have {needed} bytes (got {path.stat().st_size}); it is truncated, copy it anew")


def read_metadata(path: Path) -> dict[str, object]:
    """What the writer of the database says of it."""
    with opened(path) as (_, transaction):
        stored = _stored(transaction, b"metadata")
        return {} if stored is None else _object(stored, f"{path}: metadata")


def _stored(transaction: "lmdb.Transaction", key: bytes) -> bytes | None:
    found = transaction.get(key)
    return None if found is None else bytes(found)


def read_rows(path: Path, request: Request) -> Iterator[Row]:
    """The rows in the order of their ids."""
    with opened(path) as (environment, transaction):
        ids = _ids(transaction, path)
        entries = environment.stat()["entries"] - sum(transaction.get(name) is not None for name in RESERVED)
        if entries != len(ids):
            raise UserError(f"{path}: must have {len(ids)} rows, as its list of ids says (got {entries}); it is damaged")
        for index, number in enumerate(ids):
            place = Place(path, index, number)
            stored = _stored(transaction, str(number).encode())
            if stored is None:
                raise UserError(f"{place}: must be in the database, as its list of ids says; it is damaged")
            yield row_of(_object(stored, str(place)), place=place, request=request)


def _ids(transaction: "lmdb.Transaction", path: Path) -> list[int]:
    """The ids from 1 to the next one, without those that were deleted."""
    following = _json(_stored(transaction, b"nextid"), f"{path}: nextid", default=1)
    deleted = _json(_stored(transaction, b"deleted_ids"), f"{path}: deleted_ids", default=[])
    if type(following) is not int or not isinstance(deleted, list) or not all(type(number) is int for number in deleted):
        raise UserError(f"{path}: nextid, deleted_ids: must be a number and a list of numbers; the database is damaged")
    gone = set(deleted)
    return [number for number in range(1, following) if number not in gone]


def _text(stored: bytes, place: str) -> str:
    try:
        return zlib.decompress(stored).decode()
    except (zlib.error, ValueError):
        raise UserError(f"{place}: must be JSON that was compressed with zlib (got {shown(stored)})") from None


def _json(stored: bytes | None, place: str, *, default: object) -> object:
    if stored is None:
        return default
    try:
        found: object = json.loads(_text(stored, place))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}: must be JSON") from None
    return found


def _object(stored: bytes, place: str) -> dict[str, object]:
    text = _text(stored, place)
    try:
        return parse_object(text)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None


def row_of(found: Mapping[str, object], *, place: Place, request: Request) -> Row:
    """The row that a JSON object describes."""
    numbers = _numbers(found, "numbers", place)
    if not len(numbers):
        raise UserError(f"{place}: numbers: must be at least one atomic number (got none)")
    calculated = {name: found[name] for name in CALCULATED if found.get(name) is not None}
    pairs, data = (_table(found, name, place) for name in ("key_value_pairs", "data"))
    labels = labels_of(calculated, pairs, Data(data), request=request, num_atoms=len(numbers), place=place)
    positions, cell = _numbers(found, "positions", place), _numbers(found, "cell", place, default=9)
    if len(positions) != 3 * len(numbers) or len(cell) != 9:
        raise UserError(
            f"{place}: positions, cell: must be {3 * len(numbers)} and 9 numbers (got {len(positions)} and {len(cell)})"
        )
    return Row(place, numbers, positions, cell, _periodic(found, place), *labels)


def _numbers(found: Mapping[str, object], name: str, place: Place, *, default: int = 0) -> Floats:
    try:
        numbers = numbers_of(decoded(found.get(name, [0.0] * default), None))
    except ValueError as error:
        raise UserError(f"{place}: {name}: {error}") from None
    if numbers is None:
        raise UserError(f"{place}: {name}: must be numbers (got {shown(found[name])})")
    return numbers


def _periodic(found: Mapping[str, object], place: Place) -> int:
    value = found.get("pbc", [False] * 3)
    if isinstance(value, dict) and isinstance(value.get("__ndarray__"), list):
        value = value["__ndarray__"][-1]
    if not isinstance(value, list) or len(value) != 3 or not all(type(repeats) in (bool, int) for repeats in value):
        raise UserError(f"{place}: pbc: must be three truth values (got {shown(value)})")
    return int(np.dot(np.array(value, dtype=bool), [1, 2, 4]))


def _table(found: Mapping[str, object], name: str, place: Place) -> Mapping[str, object]:
    table = found.get(name) or {}
    if not isinstance(table, dict):
        raise UserError(f"{place}: {name}: must be a JSON object (got {shown(table)})")
    return table
