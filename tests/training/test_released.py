"""Files of earlier releases: their potentials give the same predictions, and their runs go on.

A folder of `tests/released` is a run of that release: three epochs on the bundled data, what they left.
"""

import io
import json
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from rich.console import Console
from tolerances import CALCULATOR

from modelforge.calculator import ModelforgeCalculator
from modelforge.experiment import load
from modelforge.model_file import load_potential
from modelforge.train import train
from modelforge.training.checkpoint import SCHEMA, load_checkpoint

RELEASED = Path(__file__).parents[1] / "released"
RELEASES = sorted(path for path in RELEASED.iterdir() if path.is_dir())


def test_each_schema_before_this_one_has_a_release_here():
    found = {torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["schema"] for folder in RELEASES}
    assert found >= set(range(1, SCHEMA))


@pytest.mark.parametrize("folder", RELEASES, ids=lambda folder: folder.name)
def test_a_released_potential_gives_the_predictions_of_its_time(folder: Path):
    calculator = ModelforgeCalculator(folder)
    for atoms in ase.io.read(folder / "predictions" / "test.extxyz", ":"):
        energy, forces = atoms.info["predicted_energy"], atoms.arrays["predicted_forces"]
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=0, abs=CALCULATOR)
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=CALCULATOR)


@pytest.mark.parametrize("folder", RELEASES, ids=lambda folder: folder.name)
@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_released_checkpoint_has_the_weights_of_the_potential(folder: Path, name: str):
    found = load_checkpoint(folder / "checkpoints" / name)
    assert found["schema"] == SCHEMA
    expected = load_potential(folder).model.state_dict()
    assert found["best"][-1]["weights"].keys() == expected.keys()
    for key, weight in expected.items():
        np.testing.assert_array_equal(found["best"][-1]["weights"][key].numpy(), weight.numpy())


@pytest.mark.parametrize("without", ["nothing", "best.ckpt"])
@pytest.mark.parametrize("folder", RELEASES, ids=lambda folder: folder.name)
def test_a_released_run_goes_on(folder: Path, tmp_path: Path, without: str):
    there = tmp_path / "run"
    shutil.copytree(folder, there)
    if without == "best.ckpt":
        (there / "checkpoints" / without).unlink()
    before = json.loads((there / "results.json").read_text())
    rows_before = (there / "metrics.csv").read_text().splitlines()
    overrides = [f"runtime.run_folder={there}", f"training.max_epochs={before['length']['max_epochs'] + 2}"]
    found = train(load(there / "experiment.toml", overrides), Console(file=io.StringIO(), width=200))
    rows = (there / "metrics.csv").read_text().splitlines()
    assert rows[: len(rows_before)] == rows_before
    assert len(rows) == len(rows_before) + 2
    assert found["epochs"] == before["epochs"] + 2
    for name in ("validation", "test_300K"):
        assert found["metrics"][name]["energy_rmse_mev"] < before["metrics"][name]["energy_rmse_mev"]
