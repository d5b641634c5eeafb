"""Lines of keys in a TOML, and the words for files that are no TOML."""

from pathlib import Path

import pytest

from modelforge.configuration.document import KeyPath, read_toml
from modelforge.errors import UserError

EXAMPLE = '''# comment with [brackets] and = signs
title = "a # no comment"

[training]  # the table
batch_size = 8
loss.energy_weight = 1.0
loss . "forces weight" = 2

[training.optimizer]
betas = [
    0.9,  # first ]
    # a comment between
    0.999,
]
text = """
[not.a.table]
batch_size = 9
"""
literal = \'\'\'
x = 1\'\'\'
after = 1979-05-27 07:32:00
[dataset.test_paths]
"300 K" = ["a.xyz", { path = "b.xyz", keys.energy = "E" }]
'600 K' = {a = 1, "b.c" = [[1], [2,
  3]]}

[[sets]]
name = "one"
[sets.inner]
x = 1
[[sets]]
name = "two"
[[sets.parts]]
y = 1
'''

LINES: list[tuple[KeyPath, int]] = [
    (("title",), 2),
    (("training",), 4),
    (("training", "batch_size"), 5),
    (("training", "loss"), 6),
    (("training", "loss", "energy_weight"), 6),
    (("training", "loss", "forces weight"), 7),
    (("training", "optimizer"), 9),
    (("training", "optimizer", "betas"), 10),
    (("training", "optimizer", "betas", 0), 11),
    (("training", "optimizer", "betas", 1), 13),
    (("training", "optimizer", "text"), 15),
    (("training", "optimizer", "literal"), 19),
    (("training", "optimizer", "after"), 21),
    (("dataset", "test_paths"), 22),
    (("dataset", "test_paths", "300 K"), 23),
    (("dataset", "test_paths", "300 K", 1, "keys", "energy"), 23),
    (("dataset", "test_paths", "600 K"), 24),
    (("dataset", "test_paths", "600 K", "b.c", 1, 0), 24),
    (("dataset", "test_paths", "600 K", "b.c", 1, 1), 25),
    (("sets",), 27),
    (("sets", 0), 27),
    (("sets", 0, "name"), 28),
    (("sets", 0, "inner", "x"), 30),
    (("sets", 1, "name"), 32),
    (("sets", 1, "parts", 0, "y"), 34),
]


def write(folder: Path, text: str) -> Path:
    path = folder / "x.toml"
    path.write_bytes(text.encode())
    return path


def message_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_toml(path)
    return str(caught.value)


@pytest.mark.parametrize(("key", "line"), LINES)
def test_line_of_each_key_is_known(tmp_path: Path, key: KeyPath, line: int) -> None:
    assert read_toml(write(tmp_path, EXAMPLE)).lines[key] == line


def all_paths(value: object, path: KeyPath = ()) -> set[KeyPath]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path}.union(*(all_paths(entry, (*path, key)) for key, entry in entries))


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_no_key_is_without_line(tmp_path: Path, line_end: str, mark: str) -> None:
    document = read_toml(write(tmp_path, mark + EXAMPLE.replace("\n", line_end)))
    assert set(document.lines) == all_paths(document.values) - {()}
    assert document.lines["sets", 1, "parts", 0, "y"] == 34


def test_strings_that_end_in_quotes_hide_nothing(tmp_path: Path) -> None:
    document = read_toml(write(tmp_path, 'a = """"x"\\""""""\nb = \'\'\'\'x\'\'\'\'\'\nc = "\\\\"\nd = 1\n'))
    assert document.values == {"a": '"x"""' + '"', "b": "'x''", "c": "\\", "d": 1}
    assert document.lines["d",] == 4


MISTAKES = [
    ("name = painn", '2: a text without quotes (name = painn); write "painn"'),
    ("elements = [H, C]", '2: a text without quotes (elements = [H, C]); write "H"'),
    ("path = ../my data.xyz # x", '2: a text without quotes (path = ../my data.xyz # x); write "../my data.xyz"'),
    ("name = “painn”", '2: curly quotes (name = “painn”); write straight ones: "'),
    ('name = "painn', '2: a text without closing quote (name = "painn); close the quote'),
    ('name = """painn\nb = 1', '2: a text without closing quote (name = """painn); close the quote'),
    (
        'path = "C:\\data"',
        '2: a backslash in a text (path = "C:\\data"); put the text in single quotes, or double the backslash',
    ),
    ("ema = True", "2: true and false are written in lower case (ema = True); write true or false"),
    ("a = [\n1,\nFalse]", "4: true and false are written in lower case (False]); write true or false"),
    ("a = None", "2: TOML has no value for nothing (a = None); delete the line to leave it unset"),
    ("a =  # none", "2: no value after = (a =  # none); give one, or delete the line"),
    ("a = -.5", "2: no digit before the point (a = -.5); write -0.5"),
    ("a = 5.", "2: no digit after the point (a = 5.); write 5.0"),
    ("a = 0,5", "2: a comma in a number (a = 0,5); write a point"),
    ("a = 5,", "2: a comma after the value (a = 5,); delete it, or put a list in brackets"),
    ("a = 007", "2: a number with a leading zero (a = 007); drop the zero, or put quotes around a text"),
    ("a = 5.0 eV", "2: text after a number (a = 5.0 eV); delete it, or put it in a comment behind #"),
    ('a = "b" c', '2: text after the value (a = "b" c); delete it, or put it in a comment behind #'),
    ("a = 1 b = 2", "2: two keys on one line (a = 1 b = 2); give each key its own line"),
    ("a: 1", "2: a colon after the key (a: 1); write key = value"),
    ("a 1", "2: no = after the key (a 1); write key = value"),
    ("batch size = 1", "2: a key of several words (batch size = 1); write _ between them, or put it in quotes"),
    ("[training\na = 1", "2: a table name without closing bracket ([training); close it with ]"),
    ("[training] a = 1", "2: text after a table name ([training] a = 1); put the keys on the lines below"),
    ("[my table]", "2: a table name of several words ([my table]); write _ between them, or put it in quotes"),
    ("a = [1, 2\nb = 3", "2: a list without closing bracket (a = [1, 2); close it with ]"),
    ("a = [1, 2,\n\n[training]\nb = 3", "2: a list without closing bracket (a = [1, 2,); close it with ]"),
    ("a = [1,", "2: a list without closing bracket (a = [1,); close it with ]"),
    ('a = ["b" "c"]', '2: no comma between the elements of a list (a = ["b" "c"]); separate them by commas'),
    ("a = [1,, 2]", "2: a comma without a value (a = [1,, 2]); delete the comma"),
    ("a = {b = 1", "2: an inline table without closing brace (a = {b = 1); close it with }"),
    ("a = 1\n\na = 2", "4: a is given twice, first on line 2 (a = 2); keep one of them"),
    ("[t]\na.b = 1\na.b = 2", "4: t.a.b is given twice, first on line 3 (a.b = 2); keep one of them"),
    ("[t]\n[u]\n[t]", "4: t is given twice, first on line 2 ([t]); keep one of them"),
    ("a = 1\n[a]", "3: a is given twice, first on line 2 ([a]); keep one of them"),
    ("a.b = 1\n[a]", "3: the key or table exists already ([a]); keep one of them"),
    ("- a - b", "2: no = after the key (- a - b); write key = value"),
    ("= 3", "2: neither key = value nor [table] (= 3); put # before a comment"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_what_is_no_toml_is_explained(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, f"# first line\n{text}\n")
    assert message_of(path) == f"{path}:{message}"


def test_an_unclosed_list_at_the_very_end_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path, "a = [1,")
    assert message_of(path) == f"{path}:1: a list without closing bracket (a = [1,); close it with ]"


@pytest.mark.parametrize("number", ["1e-3", "1E5", "+1.5", "1_000", "0x1f", "-0.0"])
def test_usual_numbers_are_no_mistakes(tmp_path: Path, number: str) -> None:
    assert read_toml(write(tmp_path, f"a = {number}")).lines == {("a",): 1}


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "a = 1")
    assert message_of(tmp_path / "y.toml") == f"{tmp_path / 'y.toml'}: no such file (did you mean x.toml?)"
    assert message_of(tmp_path / "quite-else") == f"{tmp_path / 'quite-else'}: no such file (the folder has: x.toml)"
    assert message_of(tmp_path / "no" / "x.toml") == (
        f"{tmp_path / 'no' / 'x.toml'}: no such file (there is no folder {tmp_path / 'no'})"
    )


def test_a_folder_names_the_files_in_it(tmp_path: Path) -> None:
    write(tmp_path, "a = 1")
    assert message_of(tmp_path) == f"{tmp_path}: a folder; give the TOML file: x.toml"


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    assert message_of(path) == f"{path}: cannot be read: File name too long"


@pytest.mark.parametrize("text", ["", "# nothing\n\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert message_of(path) == f"{path}: an empty file; expected tables of keys, such as [potential]"


def test_other_encodings_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes("a = 1\nb = 'ö'".encode("latin-1"))
    assert message_of(path) == f"{path}:2: not UTF-8 text (byte 0xf6); save the file with the encoding UTF-8"
