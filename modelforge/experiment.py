"""`Experiment`: the TOML as typed sections; `load` reads one, `resolved_toml` writes it with the origin of each value.

Checks that need several sections stand in `CHECKS`: functions that yield the dotted key and what is wrong with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import model_validator

from modelforge.configuration.loading import ConfigurationError, load_section
from modelforge.configuration.writing import resolved_toml
from modelforge.data.inputs import Inputs
from modelforge.data.section import DatasetSection
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.potentials import PotentialSection
from modelforge.potentials.potential import PotentialFields
from modelforge.section import Problem, Section, SectionError
from modelforge.training.loss import TERMS_OF_CHARGES, weights_of
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
    loss = experiment.training.widest_loss
    are_direct = _is_direct(experiment) and not loss.stress_weight
    if experiment.runtime.precision == "16-mixed" and loss.needs_derivatives and not are_direct:
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


def _charges_are_predicted_and_trained(experiment: Experiment) -> Iterator[Problem]:
    potential, loss = experiment.potential, experiment.training.widest_loss
    terms = [term for term in TERMS_OF_CHARGES if term in weights_of(loss)]
    for term in terms:
        if not potential.partial_charges:
            place = _weight_key(experiment, term)
            yield (
                place,
                f"is {weights_of(loss)[term]:g}, but this potential has no partial charges, which dipoles and quadrupoles come "
                "from too; set potential.partial_charges = true, or the weight to 0",
            )
    trained_by_energy = potential.coulomb.name != "none" and (loss.energy_weight > 0 or loss.stress_weight > 0)
    trained_by_forces = potential.coulomb.name != "none" and loss.forces_weight > 0 and not _is_direct(experiment)
    if potential.partial_charges and not (terms or trained_by_energy or trained_by_forces or has_own_charges(potential)):
        yield (
            "potential.partial_charges",
            "is true, but nothing trains the charges; give training.loss.partial_charges_weight, dipole_weight or "
            "quadrupole_weight, or a [potential.coulomb] energy of which they are part, or set it to false",
        )


def _direct_forces_are_trained(experiment: Experiment) -> Iterator[Problem]:
    loss = experiment.training.widest_loss
    if not _is_direct(experiment):
        return
    if not loss.forces_weight:
        yield (
            "potential.forces",
            'must not be "direct" where training.loss.forces_weight is 0, as nothing would train them; set a weight above 0, '
            'or use "derivative"',
        )
    if loss.stress_weight and not loss.energy_weight:
        yield (
            _weight_key(experiment, "stress"),
            "must be 0 where forces are direct and training.loss.energy_weight is 0: the stress is a derivative of the energy; "
            "set a weight of the energy above 0",
        )


def _is_direct(experiment: Experiment) -> bool:
    return experiment.potential.forces == "direct"


def _weight_key(experiment: Experiment, term: str) -> str:
    """Where the weight of a term stands."""
    table = "loss" if term in weights_of(experiment.training.loss) else "second_stage"
    return f"training.{table}.{term}_weight"


def has_own_charges(potential: PotentialFields) -> bool:
    """Whether charges are a part of the network and not a head, which is so where they cannot be left out."""
    return get_args(type(potential).model_fields["partial_charges"].annotation) == (True,)  # Literal[True]


def inputs_of(potential: PotentialFields) -> Inputs:
    """What the energies of a potential depend on besides the atoms."""
    return Inputs(
        charge=potential.sees_charge or potential.coulomb.name != "none" or has_own_charges(potential),
        charge_embedding=potential.charge_embedding,
        spin_embedding=potential.spin_embedding,
        partial_charges=potential.partial_charges,
    )


def _closed_forms_are_not_trained(experiment: Experiment) -> Iterator[Problem]:
    """Keys that are given, as they differ from their defaults, and mean nothing where there are no training steps."""
    potential, training = experiment.potential, experiment.training
    if not potential.is_closed_form:
        return
    why = f'"{potential.name}" is solved in closed form'
    for key in ("forces", "partial_charges", "charge_embedding", "spin_embedding"):
        if getattr(potential, key) != PotentialFields.model_fields[key].default:
            yield f"potential.{key}", f"needs weights that are trained, but {why}; remove it"
    for place, section in (("training", training), ("training.loss", training.loss)):
        for key, field in type(section).model_fields.items():
            if key in ("loss", "evaluation_batch_size") or getattr(section, key) == field.default:
                continue
            if key not in ("energy_weight", "forces_weight"):
                yield f"{place}.{key}", f"has no effect, as {why}; remove it"
            elif getattr(section, key):
                yield (
                    f"{place}.{key}",
                    f"can only be 0, to leave the term out, as {why}; remove it: potential.{key.removesuffix('_weight')}_"
                    "regularization says how much these labels count",
                )
    if experiment.runtime.precision not in ("32-true", "64-true"):
        yield "runtime.precision", f'must be "32-true" or "64-true", as {why} (got "{experiment.runtime.precision}")'


CHECKS: tuple[Callable[[Experiment], Iterator[Problem]], ...] = (
    _no_forces_in_half_precision,
    _stress_has_a_key,
    _the_data_set_has_self_energies,
    _charges_are_predicted_and_trained,
    _closed_forms_are_not_trained,
    _direct_forces_are_trained,
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
