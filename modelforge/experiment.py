"""`Experiment`: the TOML as typed sections; `load` reads one, `resolved_toml` writes it with the origin of each value.

Checks that need several sections stand in `CHECKS`: functions that yield the dotted key and what is wrong with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import model_validator

from modelforge.configuration.loading import ConfigurationError, load_section
from modelforge.configuration.writing import resolved_toml
from modelforge.data.section import DatasetSection
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.potentials import PotentialSection
from modelforge.section import Problem, Section, SectionError
from modelforge.training.runtime import RuntimeSection
from modelforge.training.section import TrainingSection

__all__ = ["CHECKS", "ConfigurationError", "Experiment", "LoadedExperiment", "load", "resolved_toml"]


class Experiment(Section):
    """An experiment: a potential, the data to fit it to, how to fit it, and where to run."""

    potential: PotentialSection
    """The network: species and positions in, energy out."""
    dataset: DatasetSection
    """Labelled structures, and how they are split."""
    training: TrainingSection = TrainingSection()
    """How the potential is fitted."""
    runtime: RuntimeSection = RuntimeSection()
    """Where and how the experiment runs."""

    @model_validator(mode="after")
    def sections_fit_together(self) -> "Experiment":
        """All of `CHECKS`, reported together."""
        if problems := [problem for check in CHECKS for problem in check(self)]:
            raise SectionError(*problems)
        return self


def _no_forces_in_half_precision(experiment: Experiment) -> Iterator[Problem]:
    """Some steps would be left out at any scale of the loss, and all of them where a structure has an unlucky geometry."""
    if experiment.runtime.precision == "16-mixed" and experiment.training.widest_loss.needs_derivatives:
        yield (
            "runtime.precision",
            'must not be "16-mixed" where forces or stress are trained: their second derivatives leave the range of float16 '
            '(6e-8 to 65504), and such steps are left out; use "bf16-mixed", which has the range of float32, or "32-true"',
        )


def _stress_has_a_key(experiment: Experiment) -> Iterator[Problem]:
    dataset, weight = experiment.dataset, experiment.training.widest_loss.stress_weight
    if isinstance(dataset, ExtendedXYZ) and weight and not (dataset.stress_key or dataset.virial_key):
        yield (
            "dataset.stress_key",
            f"missing, but training.loss.stress_weight is {weight:g}; name the key of the stress, or set the weight to 0",
        )


def _the_data_set_has_self_energies(experiment: Experiment) -> Iterator[Problem]:
    if experiment.dataset.self_energies.source == "dataset" and not experiment.dataset.self_energy_table():
        yield (
            "dataset.self_energies.source",
            f'must not be "dataset", as "{experiment.dataset.name}" brings no table of self-energies; '
            'use "regression", "values" or "isolated_atoms"',
        )


CHECKS: tuple[Callable[[Experiment], Iterator[Problem]], ...] = (
    _no_forces_in_half_precision,
    _stress_has_a_key,
    _the_data_set_has_self_energies,
)
"""What sections ask of each other."""


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment, where it was read from, and for each dotted key where its value stands."""

    experiment: Experiment
    origins: dict[str, str]
    """As the resolved experiment names them: `x.toml:14`, `--set`, `default` or `derived`."""
    places: dict[str, str]
    """As messages name them: `configs/x.toml:14`, `--set training.batch_size=8`; none for defaults."""
    path: Path
    overrides: tuple[str, ...] = ()

    def with_places(self, message: str) -> str:
        """A message whose lines may begin with dotted keys, each preceded by the place of its key."""
        return "\n".join(self._with_place(line) for line in message.split("\n"))

    def _with_place(self, line: str) -> str:
        key, colon, _ = line.partition(": ")
        place = self.places.get(key) or (str(self.path) if key in self.origins else "") if colon else ""
        return f"{place}: {line}" if place else line


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedExperiment:
    """Read an experiment; `overrides` are texts such as `training.batch_size=8`.

    All mistakes come together in one `ConfigurationError`, each with its line.
    """
    loaded = load_section(Experiment, path, overrides)
    return LoadedExperiment(loaded.section, loaded.origins, loaded.places, path, tuple(overrides))
