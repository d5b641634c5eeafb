"""A row of an ASE database, from whichever kind of file: the geometry, and the values that were asked for by key.

What the calculator gave, the key-value pairs and the data of a row count as one namespace, in this order. The data come
first where the file states units, as SchNetPack does: these units are those of the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from modelforge.data.sources.ase_database.values import Data, decoded, is_array
from modelforge.data.structures import Floats
from modelforge.errors import UserError

PART_ATOMS = 200_000  # atoms in a part
PER_ATOM = ("forces", "charges", "magmoms")
CALCULATED = ("energy", "free_energy", "forces", "stress", "dipole", "charges", "magmom", "magmoms")
"""What a calculator may have given, as ASE calls it."""


class Request(NamedTuple):
    """Which keys are asked for, and where they are looked up."""

    keys: Mapping[str, bool]  # whether the values of a key belong to atoms
    of_data: frozenset[str]  # keys that name data, even if the calculator gave something of that name


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """Where a row stands."""

    path: Path
    index: int  # in the order of ids, from 0
    id: int

    def __str__(self) -> str:
        return f"{self.path}:{self.index} (id {self.id})"


class Row(NamedTuple):
    """One structure of n atoms in units of the file."""

    place: Place
    numbers: NDArray[Any]  # (n,)
    positions: Floats  # (3 n,)
    cell: Floats  # (9,)
    periodic: int  # 1, 2 and 4 for the vectors a, b and c
    values: Mapping[str, object]  # of the keys that were asked for
    doubles: tuple[str, ...]  # keys of which the row has a second value, which does not count
    keys: tuple[str, ...]  # all that it has besides the geometry
    columns: tuple[str, ...]  # all that it has for each atom


class Labels(NamedTuple):
    """What a row has besides its geometry."""

    values: Mapping[str, object]
    doubles: tuple[str, ...]
    keys: tuple[str, ...]
    columns: tuple[str, ...]


def labels_of(
    calculated: Mapping[str, object], pairs: Mapping[str, object], data: Data, *, request: Request, num_atoms: int, place: Place
) -> Labels:
    """The values of a row that were asked for, and the keys of all."""
    values: dict[str, object] = {}
    doubles = []
    for key in request.keys:
        homes = (data.values, pairs) if key in request.of_data else (calculated, pairs, data.values)
        found = [home[key] for home in homes if key in home]
        if found:
            values[key] = _decoded(found[0], data.block, place=place, key=key)
        if len(found) > 1:
            doubles.append(key)
    columns = [name for name in PER_ATOM if name in calculated and request.keys.get(name, True)]
    columns += [key for key, value in data.values.items() if request.keys.get(key, _is_per_atom(value, num_atoms))]
    keys = dict.fromkeys((*calculated, *pairs, *data.values))
    for name in columns:
        keys.pop(name, None)
    return Labels(values, tuple(doubles), tuple(keys), tuple(dict.fromkeys(columns)))


def _is_per_atom(value: object, num_atoms: int) -> bool:
    """Whether a value looks like an array with a row for each atom."""
    if not isinstance(value, dict) or not is_array(value):
        return False
    description = value["__ndarray__"]
    shape = description[0] if isinstance(description, list) and description else []
    return isinstance(shape, list) and bool(shape) and shape[0] == num_atoms > 1


def _decoded(value: object, block: bytes | None, *, place: Place, key: str) -> object:
    try:
        return decoded(value, block)
    except ValueError as error:
        raise UserError(f"{place}: {key}: {error}") from None
