"""The commands as users call them: check, evaluate, describe, help."""

import json
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest
import tomli
import torch
from toy_experiment import TOML, waters
from typer.testing import CliRunner

from modelforge.cli import app
from modelforge.errors import RunFailure
from modelforge.experiment import load

CHECKED = """\
data: 8 structures, 3 atoms, elements H O
  energy: 8 of 8 structures, from 'energy' in the header keys, unit eV
  forces: 8 of 8 structures, from 'forces' in the per-atom columns, unit eV/angstrom
sets: train 6, validation 2
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an experiment and its data."""
    (tmp_path / "x.toml").write_text(TOML)
    (tmp_path / "water.xyz").write_text(waters())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def output_of(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_check_says_what_would_be_trained_and_writes_nothing(folder: Path) -> None:
    lines = output_of("check", "--config", "x.toml", "--set", "training.batch_size=3")
    assert lines.startswith(CHECKED)
    assert "potential: schnet, 117 parameters" in lines
    assert "training: 1 epochs of 2 steps, batch size 3" in lines
    assert " per epoch eager, about " in lines
    assert f"run folder: {folder}/runs/x (would start from the beginning)" in lines
    command = "modelforge train --config x.toml --set training.batch_size=3"
    assert lines.splitlines()[-1] == f"nothing was trained; start with: {command}"
    assert sorted(path.name for path in folder.iterdir()) == ["water.xyz", "x.toml"]


def test_check_keeps_to_the_split_of_a_run_and_knows_that_it_is_finished(folder: Path) -> None:
    output_of("train", "--config", "x.toml")
    (folder / "water.xyz").write_text(waters())  # the same again: the content counts
    assert "(this run is finished)" in output_of("check", "--config", "x.toml")
    assert "(would go on from its last checkpoint)" in output_of("check", "-c", "x.toml", "-s", "training.max_epochs=2")


def test_evaluate_writes_errors_and_predictions_beside_the_potential(folder: Path) -> None:
    output_of("train", "--config", "x.toml")
    lines = output_of("evaluate", "--model", "runs/x", "--data", "wat*.xyz")
    written = folder / "runs/x/evaluation/water"
    assert lines.splitlines()[-1] == "written to runs/x/evaluation/water"
    results = json.loads((written / "results.json").read_text())
    assert results["metrics"]["water"]["num_structures"] == 8
    assert results["weights"].startswith("best epoch 1")
    assert len(ase.io.read(written / "predictions.extxyz", ":")) == 8
    assert output_of("evaluate", "--model", "runs/x", "--data", "wat*.xyz") == lines


def test_evaluate_predicts_structures_without_labels_and_says_so(folder: Path) -> None:
    output_of("train", "--config", "x.toml")
    (folder / "bare.xyz").write_text("3\n\nO 0 0 0\nH 0 0.7 0.5\nH 0 -0.7 0.5\n")
    lines = output_of("evaluate", "--model", "runs/x/potential.safetensors", "--data", "bare.xyz", "--out", "there")
    assert "note: no errors of forces: 'forces' is in no structure of bare.xyz" in lines
    metrics = json.loads(Path("there/results.json").read_text())["metrics"]["bare"]
    assert metrics["forces_rmse_mev_per_angstrom"] is None
    assert sorted(path.name for path in Path("there").iterdir()) == ["predictions.extxyz", "results.json"]


def test_a_mistake_found_in_the_data_gets_the_place_of_its_key(folder: Path) -> None:
    loaded = load(Path("x.toml"), ["training.batch_size=2"])
    message = "dataset.path: a\ntraining.batch_size: b\ntraining.loss.energy_weight: c\nfile.xyz:3: d"
    assert loaded.with_places(message).split("\n") == [
        "x.toml:9: dataset.path: a",
        "--set training.batch_size=2: training.batch_size: b",
        "x.toml: training.loss.energy_weight: c",
        "file.xyz:3: d",
    ]


def test_the_json_schema_is_json() -> None:
    schema = json.loads(output_of("describe", "--json-schema"))
    assert set(tomli.loads(TOML)) <= set(schema["properties"])


def test_help_imports_no_torch() -> None:
    script = (
        "import sys; sys.argv = ['modelforge', '--help']; import modelforge.cli as c\ntry: c.main()\nexcept SystemExit: pass\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script + "assert 'torch' not in sys.modules"], capture_output=True, check=False
    )
    assert found.returncode == 0, found.stderr.decode()


def test_check_imports_neither_lightning_nor_the_compiler() -> None:
    script = "import sys, modelforge.check; assert not {'pytorch_lightning', 'torch._dynamo'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_weights(folder: Path) -> None:
    words = ["train", "--config", "x.toml", "--set", "training.max_epochs=40", "--set", "training.lr_scheduler.warmup_steps=0"]
    words += ["--set", "training.clipping.name=none", "--set", "training.optimizer.learning_rate=1e30"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert isinstance(result.exception, RunFailure)
    assert "term of the loss is not finite at step 1. The last good weights are in " in str(result.exception)
    assert "The batch of that step is " in str(result.exception)
    checkpoint = folder / "runs" / "x" / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        weights = torch.load(checkpoint, weights_only=True)["task"]["weights"]
        assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_the_log_holds_what_the_console_said_without_control_characters(folder: Path) -> None:
    output = output_of("train", "--config", "x.toml")
    log = (folder / "runs" / "x" / "log.txt").read_text()
    for words in ("potential: schnet", "errors (best epoch 1, EMA)", "validation", f"run folder: {folder}/runs/x"):
        assert words in output
        assert words in log
    assert "\x1b" not in log


def test_event_files_for_tensorboard_are_written_on_request(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    output_of("train", "--config", "x.toml", "--set", "runtime.tensorboard=true")
    assert list((folder / "runs" / "x" / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_other_precisions_train(folder: Path, precision: str) -> None:
    assert "errors (best epoch 1, EMA)" in output_of("train", "--config", "x.toml", "--set", f"runtime.precision={precision}")
