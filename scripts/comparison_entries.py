"""What `compare_potentials.py` compares: each potential there is, with its sizes, and the experiment that trains it.

Sizes are those of `benchmark_networks.py`, else those of the first TOML in configs/ that has the potential, else its defaults.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from benchmark_networks import NETWORKS
from pydantic import TypeAdapter, ValidationError

from modelforge.potentials import PotentialSection

ROOT = Path(__file__).resolve().parents[1]
ACAC = ROOT.parent / "shared" / "data" / "acac"
BUNDLED = ROOT / "modelforge" / "data" / "sources" / "quickstart"
LEARNING_RATES = {"painn": 5e-3}  # that of configs/acac.toml; else from a TOML in configs/
OTHER_LEARNING_RATE = 1e-3

_sections: TypeAdapter[PotentialSection] = TypeAdapter(PotentialSection)


@dataclass(frozen=True)
class Task:
    """The data: structures to train on, and the set at 300 K that tells how well."""

    training: Path
    test: Path
    num_validation: int

    @property
    def test_name(self) -> str:
        """Its name among the metrics."""
        return self.test.stem


def task_of(folder: Path | None) -> Task:
    """The acetylacetone data in a folder, or where they usually lie; without them the bundled data."""
    folder = folder or (ACAC if ACAC.is_dir() else BUNDLED)
    if folder.resolve() == BUNDLED.resolve():
        return Task(BUNDLED / "train.xyz", BUNDLED / "test_300K.xyz", 48)
    return Task(folder / "train_300K.xyz", folder / "test_MD_300K.xyz", 50)


@dataclass(frozen=True)
class Entry:
    """A potential with its keys in [potential]."""

    label: str
    potential: Mapping[str, object]
    learning_rate: float

    @property
    def is_closed_form(self) -> bool:
        """Whether it is solved for, and not trained in epochs."""
        return _sections.validate_python(dict(self.potential)).is_closed_form


def all_entries(*, direct: bool) -> tuple[list[Entry], list[str]]:
    """An entry for each potential of the union, with `direct` also with direct forces; and why one is left out."""
    entries, notes = [], []
    configs = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "configs").glob("*.toml"))]
    for name in potential_names():
        config = next((config for config in configs if config["potential"]["name"] == name), {})
        sizes = NETWORKS.get(name) or config.get("potential", {})
        rate = config.get("training", {}).get("optimizer", {}).get("learning_rate", OTHER_LEARNING_RATE)
        entry = Entry(name, {"name": name} | sizes, LEARNING_RATES.get(name, rate))
        entries.append(entry)
        if direct and entry.is_closed_form:
            notes.append(f"{name}, direct forces: it is solved in closed form")
        elif direct:
            other = replace(entry, label=f"{name}, direct forces", potential={**entry.potential, "forces": "direct"})
            try:
                _sections.validate_python(dict(other.potential))
                entries.append(other)
            except ValidationError as error:
                notes.append(f"{other.label}: {error.errors()[0]['msg']}")
    return entries, notes


def potential_names() -> list[str]:
    """The names of all potentials."""
    union = get_args(PotentialSection)[0]
    return sorted(get_args(section.model_fields["name"].annotation)[0] for section in get_args(union) or (union,))


def experiment_of(entry: Entry, task: Task, *, num_train: int, threads: int, compiled: bool) -> str:
    """The experiment as TOML, without what decides when it ends."""
    potential = "\n".join(f"{key} = {toml(value)}" for key, value in entry.potential.items())
    settings = "[runtime]" if entry.is_closed_form else _training(entry.learning_rate) + f"compile = {toml(compiled)}"
    return f"""
[potential]
{potential}
[dataset]
name = "extxyz"
path = {toml(str(task.training))}
[dataset.split]
counts = [{num_train}, {task.num_validation}, 0]
{settings}
accelerator = "cpu"
num_threads = {threads}
progress_bar = false
"""


def _training(learning_rate: float) -> str:
    return f"""[training]
batch_size = 5
[training.loss]
energy_weight = 1.0
forces_weight = 20.0
[training.optimizer]
learning_rate = {learning_rate}
[training.lr_scheduler]
name = "cosine"
[training.ema]
decay = 0.995
[runtime]
"""


def toml(value: object) -> str:
    """A value as TOML: as in JSON, but for tables."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value)
