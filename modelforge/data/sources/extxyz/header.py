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
PLAIN_KEY = re.compile(rf"{ORDINARY}++")
SIMPLE_VALUE = rf'"[^"\\]*+"|{ORDINARY}++'
WORTH_A_PATTERN = 30  # headers with the same keys: it takes as long to make one as to search some fifty
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


class HeaderSplitter:
    """Splits the headers of a file: in a long row of those with the same keys, each is one match instead of a search.

    The pattern is what `PAIR` makes of plain keys with plain values or ones in double quotes; other headers are searched.
    """

    def __init__(self) -> None:
        self._keys: tuple[str, ...] = ()
        self._row = 0
        self._pattern: re.Pattern[str] | None = None

    def split(self, line: str) -> Header:
        """The pairs of the next header, as `split_header` finds them."""
        if self._pattern is not None and (match := self._pattern.fullmatch(line)):
            return dict(zip(self._keys, match.groups(), strict=True))
        header = split_header(line)
        keys = tuple(header)
        self._row = self._row + 1 if keys == self._keys else 0
        self._keys, self._pattern = keys, None
        if self._row == WORTH_A_PATTERN and all(map(PLAIN_KEY.fullmatch, keys)):
            pairs = r"\s++".join(rf"{re.escape(key)}=({SIMPLE_VALUE})" for key in keys)
            self._pattern = re.compile(rf"\s*+{pairs}\s*+")
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
