"""The inspection as users see it: terminal, page, JSON."""

import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from toy_experiment import waters
from typer.testing import CliRunner

from modelforge.cli import app, main
from modelforge.inspection.histogram import histogram
from modelforge.inspection.terminal import Bars

VOID = {"meta", "br", "hr", "img", "link"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "water.xyz").write_text(waters(header='note="<script>alert(1)</script>" "<b>&x</b>"=1 "[red]k"=2'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def output_of(*words: str) -> str:
    result = CliRunner().invoke(app, ["data", "inspect", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def mistake(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["modelforge", "data", "inspect", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return capsys.readouterr().err


class Checker(HTMLParser):
    """Collects tags and texts; every tag must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_terminal_shows_everything_of_a_small_file(folder: Path) -> None:
    found = output_of("water.xyz").replace(str(folder), "DIR")
    golden = (Path(__file__).parent / "water.txt").read_text()
    begin = "water.xyz: 8 structures"  # before it stands the folder, which may take several lines
    assert stripped(found[found.index(begin) :]) == stripped(golden[golden.index(begin) :])


def stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_no_line_is_wider_than_the_terminal(folder: Path) -> None:
    before = output_of("water.xyz").partition("What to put into the TOML")[0]
    assert max(map(len, before.splitlines())) <= 80
    assert "\x1b" not in before


def test_what_steers_a_terminal_is_shown_as_text(folder: Path) -> None:
    (folder / "water.xyz").write_text(waters(header='"a\x1b[31mb"=1'))
    assert "a\\x1b[31mb" in output_of("water.xyz")


def test_json_holds_the_same_numbers(folder: Path) -> None:
    found = json.loads(output_of("water.xyz", "--json"))
    assert (found["num_structures"], found["num_atoms"]) == (8, 24)
    assert [label["num_structures"] for label in found["labels"]] == [8, 8]
    assert sum(found["forces"]["norms"]["counts"]) == 24
    assert found["stresses"] is None


def test_the_page_is_well_formed_and_needs_nothing_else(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = output_of("water.xyz", "--html", "page.html")
    text = (folder / "page.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert "script" not in checker.tags
    assert "b" not in checker.tags
    assert any("<b>&x</b>" in piece for piece in checker.texts)
    without_namespaces = text.replace('xmlns="http://www.w3.org/2000/svg"', "").replace("http://www.w3.org/1999/xlink", "")
    assert "http://" not in without_namespaces
    assert "https://" not in without_namespaces
    titles = [line for line in shown.splitlines() if line and not line.startswith(" ")][:8]
    assert all(any(title == piece for piece in checker.texts) for title in titles if title[0].isupper())


def test_a_page_replaces_one_of_its_own_and_nothing_else(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    output_of("water.xyz", "--html", "page.html")
    first = (folder / "page.html").read_bytes()
    output_of("water.xyz", "--html", "page.html")
    assert (folder / "page.html").read_bytes() == first
    (folder / "thesis.html").write_text("<p>years of work</p>")
    message = mistake(capsys, monkeypatch, "water.xyz", "--html", "thesis.html")
    assert message.startswith("error: --html: thesis.html was not written by `modelforge data inspect`; remove it")
    assert (folder / "thesis.html").read_text() == "<p>years of work</p>"
    assert "there is no folder" in mistake(capsys, monkeypatch, "water.xyz", "--html", "no/page.html")


def test_without_matplotlib_the_page_says_how_to_get_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = mistake(capsys, monkeypatch, "water.xyz", "--html", "page.html")
    assert "pip install modelforge[plot]" in message
    assert not (folder / "page.html").exists()


def test_a_wrong_file_is_one_message(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean 'water.xyz'?" in mistake(capsys, monkeypatch, "watr.xyz")


def test_bars_are_plain_signs_where_the_terminal_knows_no_others() -> None:
    counts = histogram(np.array([0.0, 1.0, 1.0]), quantity="x", unit="eV", counted="structures")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=stream, width=40, no_color=True)
    console.print(Bars(counts))
    stream.seek(0)
    lines = stream.read().splitlines()
    assert lines[0] == "x (eV), number of structures"
    assert lines[1].endswith(" 1")
    assert lines[-1].endswith("## 2")
    assert 2 * lines[1].count("#") in (lines[-1].count("#") - 1, lines[-1].count("#"), lines[-1].count("#") + 1)
    assert max(map(len, lines)) <= 40
