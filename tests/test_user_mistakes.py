"""What users get wrong, each with the whole message that they read: place, expectation, value, remedy; exit code 2, no traceback.

The data are water molecules with made-up labels; `DIR` stands for the working folder.
"""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from modelforge.cli import main

TOML = """\
[potential]
name = "schnet"
cutoff = 3.0
num_features = 4
num_layers = 1
num_radial = 4
[dataset]
name = "extxyz"
path = "water.xyz"
[dataset.split]
counts = [6, 2, 0]
[training]
max_epochs = 1
batch_size = 4
[runtime]
accelerator = "cpu"
progress_bar = false
"""
PROPERTIES = "Properties=species:S:1:pos:R:3:forces:R:3"
TRAIN = "train --config x.toml"


def water(number: int, *, energy: str = "", header: str = "", symbols: str = "OHH", properties: str = PROPERTIES) -> str:
    """A bent molecule, a little different for each number, with a made-up energy near that of water in eV."""
    positions = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
    positions = positions + 0.02 * np.random.default_rng(number).normal(size=(3, 3))
    forces = -10.0 * (positions - positions.mean(axis=0))
    energy = energy or f"energy={-2079.0 + 0.01 * number:.6f}"
    lines = [f"{symbol} {' '.join(f'{x:.6f}' for x in (*r, *f))}" for symbol, r, f in zip(symbols, positions, forces, strict=True)]
    return "\n".join(["3", f"{properties} {energy} {header}".strip(), *lines]) + "\n"


def waters(num: int = 8, **options: str) -> str:
    return "".join(water(number, **options) for number in range(num))


def replaced(old: str, new: str) -> str:
    """The usual data with a piece of text replaced once."""
    assert old in waters()
    return waters().replace(old, new, 1)


@dataclass(frozen=True)
class Case:
    """A mistake: what is different in the TOML and the files, the command, and the message."""

    name: str
    message: str
    toml: tuple[tuple[str, str], ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    command: str = TRAIN
    needs_run: bool = False


def value(old: str, new: str) -> tuple[tuple[str, str], ...]:
    return ((old, new),)


def added(text: str) -> tuple[tuple[str, str], ...]:
    """Text above [dataset.split], in [dataset]."""
    return (("[dataset.split]", f"{text}\n[dataset.split]"),)


LAST_ATOM = water(7).splitlines()[-1]
CASES = [
    Case("a misspelt key", "?", value("batch_size", "batchsize")),
    Case("a wrong type", "?", value("batch_size = 4", 'batch_size = "4"')),
    Case("an unknown choice", "?", value('"schnet"', '"shnet"')),
    Case("a negative cutoff", "?", value("3.0", "-3.0")),
    Case("a missing table", "?", value('[potential]\nname = "schnet"\ncutoff = 3.0\nnum_features = 4\nnum_layers = 1\nnum_radial = 4\n', "")),
    Case("an unknown table", "?", value("[training]", "[trainig]")),
    Case("no TOML", "?", value('"water.xyz"', "water.xyz")),
    Case("several at once", "?", (("batch_size", "batchsize"), ("3.0", "-3.0"))),
    Case("an override without a value", "?", command=TRAIN + " --set training.batch_size"),
    Case("an override of an unknown key", "?", command=TRAIN + " --set training.batchsize=8"),
    Case("an override with a wrong value", "?", command=TRAIN + " --set training.batch_size=many"),
    Case("no such TOML", "?", command="train --config y.toml"),
    Case("no such data", "?", value("water.xyz", "watr.xyz")),
    Case("no such data by override", "?", command=TRAIN + " --set dataset.path=data/water.xyz"),
    Case("a glob that matches nothing", "?", value("water.xyz", "md_*.xyz")),
    Case("no such test file", "?", added('test_paths = { hot = "hot.xyz" }')),
    Case("an empty file", "?", files={"water.xyz": ""}),
    Case("a folder instead of a file", "?", value("water.xyz", "data"), {"data/a.xyz": waters()}),
    Case("a truncated frame", "?", files={"water.xyz": waters().rsplit("\n", 2)[0] + "\n"}),
    Case("an unknown element", "?", files={"water.xyz": replaced(LAST_ATOM, LAST_ATOM.replace("H", "Hx"))}),
    Case("a coordinate that is no number", "?", files={"water.xyz": replaced(LAST_ATOM, LAST_ATOM.replace("H -", "H x-"))}),
    Case("no forces", "?", added('forces_key = "force"')),
    Case("no energies", "?", added('energy_key = "E"')),
    Case("all labels NaN", "?", files={"water.xyz": waters(energy="energy=nan")}),
    Case("an atom twice", "?", files={"water.xyz": waters().replace(LAST_ATOM, water(7).splitlines()[-2])}),
    Case("periodic without a cell", "?", files={"water.xyz": waters(header='pbc="T T T"')}),
    Case("a singular cell", "?", files={"water.xyz": waters(header='Lattice="5 0 0 5 0 0 0 0 5"')}),
    Case("a unit in another case", "?", added('energy_unit = "Hartree"')),
    Case(
        "energies in hartree",
        "?",
        added('self_energies = { source = "values", values = { H = -13.6, O = -2041.8 } }'),
        {"water.xyz": waters(energy="energy=-76.4")},
    ),
    Case("self-energy of no element", "?", added('self_energies = { source = "values", values = { H = -13.6, Ox = -2041.8 } }')),
    Case("no isolated atoms", "?", added('self_energies = { source = "isolated_atoms" }')),
    Case("self-energies of the data set that has none", "?", added('self_energies = { source = "dataset" }')),
    Case("the test file is the training file", "?", added('test_paths = { again = "water.xyz" }')),
    Case("a test set with an unknown element", "?", added('test_paths = { heavy = "heavy.xyz" }'), {"heavy.xyz": waters(symbols="SHH")}),
    Case("a test set named validation", "?", added('test_paths = { validation = "hot.xyz" }'), {"hot.xyz": waters(4)}),
    Case("fractions that do not sum to 1", "?", value("counts = [6, 2, 0]", "fractions = [0.9, 0.1, 0.1]")),
    Case("counts beyond the data", "?", value("[6, 2, 0]", "[8, 2, 0]")),
    Case("fractions and counts", "?", value("[6, 2, 0]", "[6, 2, 0]\nfractions = [0.9, 0.1, 0.0]")),
    Case("no validation", "?", value("counts = [6, 2, 0]", "fractions = [1.0, 0.0, 0.0]")),
    Case("no validation after rounding", "?", value("counts = [6, 2, 0]", "fractions = [0.97, 0.03, 0.0]")),
    Case("a file in the place of the run folder", "?", files={"runs/x": ""}),
    Case("a huber_delta without huber", "?", value("[runtime]", "loss.huber_delta = 0.1\n[runtime]")),
    Case("all weights 0", "?", value("[runtime]", "loss = { energy_weight = 0, forces_weight = 0 }\n[runtime]")),
    Case("16-mixed with forces", "?", value('accelerator = "cpu"', 'precision = "16-mixed"')),
    Case("stress without a key", "?", value("[runtime]", "loss.stress_weight = 1.0\n[runtime]")),
    Case("a run folder of another experiment", "?", command=TRAIN + " --set training.batch_size=2", needs_run=True),
    Case(
        "data that changed under a run",
        "?",
        files={"water.xyz": waters(9)},
        command=TRAIN + " --set training.max_epochs=2",
        needs_run=True,
    ),
    Case("a missing run folder", "?", command="evaluate --model runs/y --data water.xyz"),
    Case("a run that is not finished", "?", files={"runs/x/log.txt": ""}, command="evaluate --model runs/x --data water.xyz"),
    Case("a model that is none", "?", command="evaluate --model water.xyz --data water.xyz"),
    Case(
        "an element that the potential does not know",
        "?",
        files={"heavy.xyz": waters(1) + waters(symbols="SHH")},
        command="evaluate --model runs/x --data heavy.xyz",
        needs_run=True,
    ),
    Case("no such file to evaluate", "?", command="evaluate --model runs/x --data hot*.xyz", needs_run=True),
    Case("no such device", "?", command="evaluate --model runs/x --data water.xyz --device gpu", needs_run=True),
    Case("an unknown section", "?", command="describe training.los"),
]


def stderr_of(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that is a user's mistake writes to stderr."""
    monkeypatch.setattr(sys, "argv", ["modelforge", *command.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an experiment, its data and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "x.toml").write_text(TOML)
    (folder / "water.xyz").write_text(waters())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["modelforge", *TRAIN.split()])
        main()
    assert stopped.value.code == 0
    yield folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_told_with_its_place_and_remedy(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    toml = TOML
    for old, new in case.toml:
        assert old in toml
        toml = toml.replace(old, new, 1)
    if case.needs_run:
        copy_run(request.getfixturevalue("finished_run"), tmp_path)
    for name, text in {"x.toml": toml, "water.xyz": waters(), **case.files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    message = stderr_of(case.command, monkeypatch, capsys).replace(str(tmp_path), "DIR")
    assert message == f"error: {case.message}\n"


def copy_run(finished: Path, folder: Path) -> None:
    """A finished run as if it had been made here."""
    shutil.copytree(finished / "runs", folder / "runs")
    experiment = folder / "runs/x/experiment.toml"
    experiment.write_text(experiment.read_text().replace(str(finished), str(folder)))
