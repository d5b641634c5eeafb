"""`read_toml`: a TOML file as values, with the line on which each key stands.

tomli parses and judges the file; it does not tell where keys stand. A small scanner, which trusts what tomli has
accepted, finds the lines: of tables, arrays of tables, dotted and quoted keys, and elements of arrays. On a file that
tomli rejects, the scanner stops at the mistake and knows where the unfinished statement began.
"""

import datetime
import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tomli

from modelforge.configuration.syntax_mistakes import explain
from modelforge.errors import UserError

TomlValue = str | int | float | datetime.datetime | datetime.date | datetime.time | list["TomlValue"] | dict[str, "TomlValue"]
TomlTable = dict[str, TomlValue]
KeyPath = tuple[str | int, ...]
"""Names of tables and keys from the top down; numbers count the elements of arrays from 0."""


@dataclass(frozen=True)
class TomlDocument:
    """A parsed TOML file; `lines` knows each table, key and array element, counted from 1."""

    path: Path
    values: TomlTable
    lines: dict[KeyPath, int]


def read_toml(path: Path) -> TomlDocument:
    """Read a TOML file; everything that is wrong with it is a `UserError` with file and line."""
    text = _read_text(path)
    scanner = _Scanner(text)
    scanner.scan()
    try:
        values = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise UserError(explain(error, path=path, duplicates=scanner.duplicates(), start=scanner.start)) from None
    if not values:
        raise UserError(f"{path}: an empty file; expected tables of keys, such as [potential]")
    return TomlDocument(path, values, scanner.lines)


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_near_files(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; give the TOML file{_choices(_toml_files(path))}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return _decode(content, path).replace("\r\n", "\n")


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: not UTF-8 text (byte 0x{content[error.start]:02x}); save the file with the encoding UTF-8"
        ) from None


def _toml_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.toml"))


def _choices(names: list[str]) -> str:
    return f": {', '.join(names[:8])}" if names else ""


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    names = [file.name for file in path.parent.iterdir() if file.is_file()]
    near = difflib.get_close_matches(path.name, names, n=3)
    if near:
        return f" (did you mean {' or '.join(near)}?)"
    tomls = _toml_files(path.parent)
    return f" (the folder has{_choices(tomls)})" if tomls else ""


_STRING = r'"""(?:\\.|[^\\])*?"{3,5}|' + r"'''.*?'{3,5}|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'"
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART = re.compile(rf"[ \t]*({_STRING}|[A-Za-z0-9_-]+)[ \t]*", re.DOTALL)
_SCALAR = re.compile(rf"(?:{_STRING}|[^,\]}}#\n\[{{'\"]+)", re.DOTALL)
_END_OF_LINE = re.compile(r"[ \t]*(#[^\n]*)?(\n|\Z)")
_HEADER = re.compile(r"\[\[?")


class _UnreadableError(Exception):
    """The text goes on in a way that no valid TOML does; tomli says what is wrong."""


class _Scanner:
    """Walks once over the text of a TOML and notes the line of each key."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.start = 1
        """Line on which the last statement begins."""
        self.lines: dict[KeyPath, int] = {}
        self.definitions: defaultdict[KeyPath, list[int]] = defaultdict(list)
        self.array_tables: Counter[KeyPath] = Counter()

    def scan(self) -> None:
        """Note all lines, up to the first thing that is no TOML."""
        try:
            self._statements()
        except _UnreadableError:
            return

    def duplicates(self) -> dict[int, tuple[str, int]]:
        """Line of a second definition -> the key and the line of the first one."""
        return {
            second: (".".join(str(part) for part in path), first)
            for path, (first, *others) in self.definitions.items()
            for second in others
        }

    def _statements(self) -> None:
        table: KeyPath = ()
        self._match(_BLANK)
        while self.position < len(self.text):
            self.start = self._line()
            if self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)
            self._match(_END_OF_LINE)
            self._match(_BLANK)

    def _header(self) -> KeyPath:
        line = self._line()
        brackets = self._match(_HEADER)
        *parents, last = self._key()
        path: KeyPath = (*self._resolve((), parents, line), last)
        if brackets == "[[":
            self.array_tables[path] += 1
            self.lines.setdefault(path, line)
            path = (*path, self.array_tables[path] - 1)
        self._define(path, line)
        self._match(re.compile(re.escape("]" * len(brackets))))
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        *parents, last = self._key()
        path = (*self._resolve(table, parents, line), last)
        self._match(re.compile("="))
        self._match(re.compile("[ \t]*"))
        self._define(path, line)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        opener = self._peek()
        if opener == "[":
            self._items("]", lambda index: self._element((*path, index)))
        elif opener == "{":
            self._items("}", lambda _: self._pair(path))
        else:
            self._match(_SCALAR)

    def _items(self, closer: str, read_item: Callable[[int], None]) -> None:
        self.position += 1
        self._match(_BLANK)
        index = 0
        while self._peek() != closer:
            read_item(index)
            index += 1
            self._match(_BLANK)
            if self._peek() != closer:
                self._match(re.compile(","))
                self._match(_BLANK)
        self.position += 1

    def _element(self, path: KeyPath) -> None:
        self.lines[path] = self._line()
        self._value(path)

    def _key(self) -> list[str]:
        parts = [_unquote(self._match(_KEY_PART))]
        while self._peek() == ".":
            self.position += 1
            parts.append(_unquote(self._match(_KEY_PART)))
        return parts

    def _resolve(self, path: KeyPath, parts: list[str], line: int) -> KeyPath:
        """The path of the table that `parts` names; within arrays of tables it is in the last one."""
        for part in parts:
            path = (*path, part)
            self.lines.setdefault(path, line)
            if path in self.array_tables:
                path = (*path, self.array_tables[path] - 1)
        return path

    def _define(self, path: KeyPath, line: int) -> None:
        if path not in self.definitions:
            self.lines[path] = line
        self.definitions[path].append(line)

    def _peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.position)
        if match is None:
            raise _UnreadableError
        self.position = match.end()
        return match[0]

    def _line(self) -> int:
        return self.text.count("\n", 0, self.position) + 1


def _unquote(key: str) -> str:
    key = key.strip(" \t")
    if key[0] not in "\"'":
        return key
    try:
        return str(tomli.loads(f"key = {key}")["key"])
    except tomli.TOMLDecodeError:
        raise _UnreadableError from None
