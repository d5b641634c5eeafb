"""Damaged extended XYZ: the right data, or one error that names the file; never a traceback, never fewer structures."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modelforge.data.sources.extxyz import ExtendedXYZ, read_parts
from modelforge.data.structures import Structures, concatenate
from modelforge.errors import UserError

NUM_INPUTS = 6000
SECTION = ExtendedXYZ(
    path=("x.xyz",),
    stress_key="stress",
    dipole_key="dipole",
    total_charge_key="charge",
    partial_charges_key="q",
    group_key="molecule",
    weight_key="config_weight",
)
FRAMES = (
    "2\n"
    'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3:forces:R:3:q:R:1 energy=-1.5 '
    'stress="1 0 0 0 1 0 0 0 1" config_type=bulk molecule=a config_weight=2 pbc="T T T"\n'
    "H 0.0 0.0 0.0 0.1 0.2 0.3 0.5\n"
    "O 0.0 0.0 1.0 -0.1 -0.2 -0.3 -0.5\n",
    '3\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-2.25 charge=-1 dipole="0 0 1.5" molecule="b c"\n'
    "C 1 2 3 4 5 6\nN 2 3 4 nan nan nan\nH 3 4 5 6 7 8\n",
    "1\nenergy=-0.5 pbc=[F, F, F]\nHe 1e-3 -2.5E2 7\n",
)
WORDS = (
    "nan",
    "inf",
    "1e400",
    "-1",
    "0",
    "999999999999",
    "T",
    "é",
    "",
    '"',
    "{",
    "\\",
    "=",
    "H",
    "Xx",
    "1e5",
    "0x10",
    "1_0",
    "\0",
)


def truncated(text: bytes, rng: random.Random) -> bytes:
    return text[: rng.randrange(len(text))]


def with_flipped_bytes(text: bytes, rng: random.Random) -> bytes:
    changed = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def with_another_word(text: bytes, rng: random.Random) -> bytes:
    words = text.split(b" ")
    words[rng.randrange(len(words))] = rng.choice(WORDS).encode()
    return b" ".join(words)


def without_a_line(text: bytes, rng: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def with_a_line_twice(text: bytes, rng: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"".join(lines)


def with_another_count(text: bytes, rng: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    lines[rng.choice([0, 4, 9])] = f"{rng.choice([-1, 0, 1, 2, 3, 4, 10, 10**9, 10**30])}\n".encode()
    return b"".join(lines)


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    truncated,
    with_flipped_bytes,
    with_another_word,
    without_a_line,
    with_a_line_twice,
    with_another_count,
)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_damaged_files_give_data_or_one_error_with_the_place(
    tmp_path: Path, mutation: Callable[[bytes, random.Random], bytes]
) -> None:
    rng, path = random.Random(mutation.__name__), tmp_path / "x.xyz"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(NUM_INPUTS // len(MUTATIONS)):
        text = mutation("".join(FRAMES).encode(), rng)
        path.write_bytes(text)
        structures = outcome(path)
        if isinstance(structures, str):
            assert structures.startswith(str(path)), text
            assert "\n" not in structures, text
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert np.isfinite(structures.positions).all(), text
        assert not np.isinf(structures.energy).any(), text
        assert len(structures.atomic_numbers) == structures.num_atoms.sum(), text
        assert num_atom_lines(text) == structures.num_atoms.sum(), text  # no atom is lost on the way
    assert outcomes["refused"]


def outcome(path: Path) -> Structures | str:
    """The structures, or the error in words."""
    try:
        return concatenate([part.structures for part in read_parts(path, SECTION)])
    except UserError as error:
        return str(error)


def num_atom_lines(text: bytes) -> int:
    """Lines of atoms, found from the counts alone."""
    lines, place, total = text.split(b"\n"), 0, 0
    while place < len(lines):
        if not lines[place].strip():
            place += 1
            continue
        count = int(lines[place])
        total, place = total + count, place + count + 2
    return total
