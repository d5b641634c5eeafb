"""Fixtures of the tests with SLURM: a cluster of one node for the whole session, and a small experiment."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_slurm import NoSlurm, PrivateSlurm
from small_runs import write_structures

NUM_STRUCTURES = 40
TOML = """\
[potential]
name = "schnet"
cutoff = 3.5
num_features = 8
num_layers = 1
num_radial = 8
[dataset]
name = "extxyz"
path = "train.xyz"
[dataset.split]
counts = [32, 8, 0]
[training]
max_epochs = 2
batch_size = 5
[runtime]
accelerator = "cpu"
num_threads = 1
compile = false
progress_bar = false
"""


@pytest.fixture(scope="session")
def slurm() -> Iterator[PrivateSlurm]:
    """A SLURM that runs; skipped, with the reason, where there can be none."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has at most 107 characters
    try:
        with PrivateSlurm(folder) as cluster:
            yield cluster
    except NoSlurm as reason:
        pytest.skip(str(reason))
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first structures of the bundled data, and a TOML."""
    folder = tmp_path_factory.mktemp("slurm")
    write_structures(folder / "train.xyz", "train", NUM_STRUCTURES)
    (folder / "x.toml").write_text(TOML)
    return folder
