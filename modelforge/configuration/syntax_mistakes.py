"""`explain`: what is wrong with a file that is no TOML, in plain words with the usual remedy."""

import re
from dataclasses import dataclass
from pathlib import Path

import tomli

_DUPLICATE = re.compile("Cannot (declare|overwrite|mutate|redefine)|Duplicate")
_UNCLOSED = re.compile('Unclosed|Unterminated|Expected "[\'\\\\"]')
_NEXT_STATEMENT = re.compile(r"\s*(\[|[\w.-]+\s*=)")


@dataclass(frozen=True)
class _Cause:
    """A usual mistake: tomli's message, the line around the place of the error (marked by ¦), and our words for it."""

    message: str
    line: str
    reason: str
    remedy: str


_CAUSES = tuple(
    _Cause(*words)
    for words in (
        ("Invalid value", r"=\s*¦\s*(#|$)", "no value after =", "give one, or delete the line"),
        ("Invalid value", r"¦(True|False)\b", "true and false are written in lower case", "write true or false"),
        ("Invalid value", r"¦(None|null|nil)\b", "TOML has no value for nothing", "delete the line to leave it unset"),
        ("Invalid value", r"¦([-+]?)(\.\d[\d_e+-]*)", "no digit before the point", r"write \g<1>0\g<2>"),
        ("Invalid value", r"¦[\u201c\u201d\u201e\u2018\u2019]", "curly quotes", 'write straight ones: "'),
        ("Invalid value", r"[\[,]\s*¦\s*$", "a list without closing bracket", "close it with ]"),
        ("Invalid value", r"¦,", "a comma without a value", "delete the comma"),
        ("Invalid value", r"¦([^,\]}#]*[^,\]}#\s])", "a text without quotes", r'write "\1"'),
        ("Expected newline", r"^\s*\[.*¦", "text after a table name", "put the keys on the lines below"),
        ("Expected newline", r"\d¦,\d", "a comma in a number", "write a point"),
        ("Expected newline", r"=\s*0¦\d", "a number with a leading zero", "drop the zero, or put quotes around a text"),
        ("Expected newline", r"([-+\d_]+)¦\.(\D|$)", "no digit after the point", r"write \1.0"),
        ("Expected newline", r"¦,\s*(#|$)", "a comma after the value", "delete it, or put a list in brackets"),
        ("Expected newline", r"¦[^#]*=", "two keys on one line", "give each key its own line"),
        ("Expected newline", r"=.*\d\s*¦", "text after a number", "delete it, or put it in a comment behind #"),
        ("Expected newline", r"", "text after the value", "delete it, or put it in a comment behind #"),
        ("Expected '=' after", r"¦:", "a colon after the key", "write key = value"),
        ("Expected '=' after", r"¦[\w ]+=", "a key of several words", "write _ between them, or put it in quotes"),
        ("Expected '=' after", r"", "no = after the key", "write key = value"),
        ("Expected ']", r"¦[\w ]+\]", "a table name of several words", "write _ between them, or put it in quotes"),
        ("Expected ']", r"", "a table name without closing bracket", "close it with ]"),
        ("Illegal character '\\\\n'|Unterminated|Expected \"", r"", "a text without closing quote", "close the quote"),
        (
            "Unescaped|Invalid hex",
            r"",
            "a backslash in a text",
            "put the text in single quotes, or double the backslash",
        ),
        ("Invalid statement", r"", "neither key = value nor [table]", "put # before a comment"),
        ("Cannot", r"", "the key or table exists already", "keep one of them"),
        ("Unclosed array", r"[^,\s]\s+¦[\w\"']", "no comma between the elements of a list", "separate them by commas"),
        ("Unclosed array", r"", "a list without closing bracket", "close it with ]"),
        ("Unclosed inline", r"", "an inline table without closing brace", "close it with }"),
    )
)


def explain(error: tomli.TOMLDecodeError, *, path: Path, duplicates: dict[int, tuple[str, int]], start: int) -> str:
    """One line: place, reason, the offending line, remedy.

    `duplicates` has the line of each second definition with its key and the first line; `start` is the line on which
    the statement begins that holds the error (an unclosed list is noticed only further down).
    """
    seconds = [line for line in duplicates if line <= error.lineno]
    if _DUPLICATE.match(error.msg) and seconds:
        key, first = duplicates[max(seconds)]
        return _message(path, max(seconds), error, f"{key} is given twice, first on line {first}", "keep one of them")
    before, after = _around(error)
    goes_on = error.pos >= len(error.doc) or _NEXT_STATEMENT.match(before + after)
    if start < error.lineno and (_UNCLOSED.match(error.msg) or goes_on):
        message = error.msg if _UNCLOSED.match(error.msg) else "Unclosed array"
        return _message(path, start, error, *_reason(message, ""))
    return _message(path, _last_written(error), error, *_reason(error.msg, f"{before}¦{after}"))


def _reason(message: str, line: str) -> tuple[str, str]:
    for cause in _CAUSES:
        match = re.search(cause.line, line)
        if match and re.match(cause.message, message):
            return cause.reason, match.expand(cause.remedy)
    return message[:1].lower() + message[1:], ""


def _around(error: tomli.TOMLDecodeError) -> tuple[str, str]:
    """The offending line, before and from the place of the error."""
    line = error.doc.split("\n")[error.lineno - 1]
    return line[: error.colno - 1], line[error.colno - 1 :]


def _last_written(error: tomli.TOMLDecodeError) -> int:
    """The line of the error, or the last one with text where the file ends too early."""
    return error.doc[: error.pos + 1].rstrip().count("\n") + 1 if error.pos >= len(error.doc) else error.lineno


def _message(path: Path, line: int, error: tomli.TOMLDecodeError, reason: str, remedy: str) -> str:
    text = error.doc.split("\n")[line - 1].strip()
    return f"{path}:{line}: {reason}{f' ({text})' if text else ''}{f'; {remedy}' if remedy else ''}"
