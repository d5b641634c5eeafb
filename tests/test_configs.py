"""Every experiment in configs/ loads, and trains for two steps."""

from pathlib import Path

import pytest
from rich.console import Console

from modelforge.experiment import load
from modelforge.train import train

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_experiments_train_for_two_steps(path, tmp_path, shared_data):
    settings = [f'runtime.run_folder="{tmp_path}"', "runtime.compile=false"]
    if "acac" in path.stem:
        settings += [
            f'dataset.path="{shared_data / "acac/train_300K.xyz"}"',
            f'dataset.test_paths.test_MD_300K="{shared_data / "acac/test_MD_300K.xyz"}"',
        ]
    if path.stem == "alexandria":
        settings.append(f'dataset.path="{shared_data / "periodic/alexandria-random-1k.xyz"}"')
    has_steps = not load(path).experiment.potential.is_closed_form
    settings += ["training.max_steps=2"] if has_steps else ["dataset.split.counts=[20, 10, 0]"]
    results = train(load(path, settings), Console(quiet=True))
    assert results["steps"] == (2 if has_steps else 0)
    assert results["reason"] == ("max_steps reached" if has_steps else "solved in closed form")
    assert all(errors["num_structures"] > 0 for errors in results["metrics"].values())
