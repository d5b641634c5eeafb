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


CHECKS: tuple[Callable[[Experiment], Iterator[Problem]], ...] = ()
"""What sections ask of each other."""


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment, and for each dotted key the origin of its value: `x.toml:14`, `--set`, `default` or `derived`."""

    experiment: Experiment
    origins: dict[str, str]


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedExperiment:
    """Read an experiment; `overrides` are texts such as `training.batch_size=8`.

    All mistakes come together in one `ConfigurationError`, each with its line.
    """
    loaded = load_section(Experiment, path, overrides)
    return LoadedExperiment(loaded.section, loaded.origins)
