"""The second line of a structure in extended XYZ: `key=value` pairs, split in the way of `ase.io.extxyz`.

Values and keys may be quoted by "", '', {} or []; a backslash makes the next character ordinary; blanks may surround an
equals sign; a key without a value means true. Values stay text until someone asks for them.
"""

import re

ORDINARY = r"""[^\s=\\"'{\[]"""
QUOTED = r""""(?:[^"\\]++|\\.)*+"?|'(?:[^'\\]++|\\.)*+'?|\{(?:[^}\\]++|\\.)*+\}?|\[(?:[^\]\\]++|\\.)*+\]?"""
WORD = rf"(?:{ORDINARY}++|\\.|{QUOTED})++"
# The first alternatives of key and value are special cases of the last, tried before it because they are fast.
PAIR = re.compile(
    rf"({ORDINARY}++(?![^\s=])|{WORD})"
    rf'(?:\s*+=\s*+("[^"\\]*+"(?!\s*=|\S)|{ORDINARY}++(?!\s*=|\S)|{WORD}(?:\s*=\s*{WORD})*+))?+'
)
PIECE = re.compile(rf"{ORDINARY}++|=|\\.|{QUOTED}")
SPECIAL = re.compile(rf"(?!{ORDINARY}).", re.DOTALL)
CLOSING = {'"': '"', "'": "'", "{": "}", "[": "]"}
LIST_MARKS = str.maketrans(",[]", "   ")

Header = dict[str, str]
"""Key and value of each pair; values as they stand in the file, with their quotes."""


def split_header(line: str) -> Header:
    """Split a header into its pairs; where a key comes twice, the last one counts."""
    header: Header = dict(PAIR.findall(line))
    if '"=' in line or "'=" in line:
        return {unquoted(key): value for key, value in header.items()}
    return header


def unquoted(value: str) -> str:
    """The text of a value without quotes and backslashes; `T` for a key without a value."""
    if not value:
        return "T"
    if not SPECIAL.search(value):
        return value
    if value[0] == '"' and value.find('"', 1) == len(value) - 1 and "\\" not in value:
        return value[1:-1]
    return "".join(map(unquoted_piece, PIECE.findall(value)))


def unquoted_piece(piece: str) -> str:
    """One quoted or unquoted stretch of a value."""
    if piece[0] in CLOSING:
        end = -1 if len(piece) > 1 and piece[-1] == CLOSING[piece[0]] else None  # an open quote reaches to the end
        piece = piece[1:end]
    return re.sub(r"\\(.)", r"\1", piece)


def numbers(value: str) -> list[float]:
    """The numbers of a value, divided by blanks or commas, or as the nested lists that ASE writes after `_JSON`."""
    words = unquoted(value).removeprefix("_JSON ").translate(LIST_MARKS).split()
    return [float(word) for word in words]


def number(value: str) -> float:
    """The one number of a value."""
    try:
        return float(value)  # as nearly all are written
    except ValueError:
        (single,) = numbers(value)
        return single


def truths(value: str) -> list[bool]:
    """The truth values of a value: `T T F`, `True`, `[1, 0, 1]`."""
    words = unquoted(value).removeprefix("_JSON ").translate(LIST_MARKS).split()
    return [TRUTHS[word.lower()] for word in words]


TRUTHS = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}
