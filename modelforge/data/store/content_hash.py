"""A hash of what training sees of structures, the same for any way in which they were cut into pieces."""

import hashlib

import numpy as np

from modelforge.data.structures import COLUMNS, LABELS, Array, Structures, is_constant

HASHED = ("num_atoms", "atomic_numbers", "positions", "cell", "periodic", *LABELS, "weight")
ROWS_AT_A_TIME = 100_000


class ContentHash:
    """Takes structures piece by piece. A label that all structures lack is not part of it."""

    def __init__(self) -> None:
        self._digests = {name: hashlib.blake2b(digest_size=16) for name in HASHED}
        self._missing = dict.fromkeys(HASHED, 0)  # rows without a value, as long as no row has one
        self._present: set[str] = set()

    def add(self, structures: Structures) -> None:
        """Add consecutive structures."""
        for name in HASHED:
            self._add(name, getattr(structures, name))

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        parts = [name + self._digests[name].hexdigest() for name in HASHED if name in self._present]
        return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()

    def _add(self, name: str, values: Array) -> None:
        if name not in self._present:
            if name not in ("num_atoms", "atomic_numbers") and _all_missing(name, values):
                self._missing[name] += len(values)
                return
            self._present.add(name)
            for first in range(0, self._missing[name], ROWS_AT_A_TIME):
                self._update(name, COLUMNS[name].absent(min(ROWS_AT_A_TIME, self._missing[name] - first)))
        self._update(name, values)

    def _update(self, name: str, values: Array) -> None:
        if len(values):
            numbers = np.ascontiguousarray(values, dtype=COLUMNS[name].dtype)
            if numbers.dtype.kind == "f" and (missing := np.isnan(numbers)).any():
                numbers = np.where(missing, np.nan, numbers)  # all NaN with the same bits, whatever was computed with them
            self._digests[name].update(numbers.data.cast("B"))


def content_hash(structures: Structures) -> str:
    """The hash of all structures, 32 hexadecimal digits."""
    found = ContentHash()
    for piece in structures.pieces():
        found.add(piece)
    return found.hexdigest()


def _all_missing(name: str, values: Array) -> bool:
    missing = COLUMNS[name].missing
    some = values[:1] if is_constant(values) else values
    return bool((np.isnan(some) if np.isnan(missing) else some == missing).all())
