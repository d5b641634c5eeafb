"""The saved potential: weights, self-energies (float64), scale, elements, units and experiment in one safetensors file.

It is read as data: nothing in it is executed. N atoms, S structures.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tomli
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from modelforge.atoms.self_energies import SelfEnergies, table_of
from modelforge.data.section import DatasetSection
from modelforge.data.sources.read_report import did_you_mean
from modelforge.data.sources.source import DataSource
from modelforge.data.structures import Floats
from modelforge.errors import UserError
from modelforge.files import replacing
from modelforge.potentials import PotentialSection
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.loss import trains_energies
from modelforge.training.runtime import MatmulPrecision, Precision
from modelforge.training.section import TrainingSection

FORMAT = "modelforge-potential-1"
FILE_NAME = "potential.safetensors"
FIRST_STAGE_FILE_NAME = "potential_first_stage.safetensors"
UNITS = {"energy": "eV", "length": "angstrom", "forces": "eV/angstrom", "stress": "eV/angstrom^3"}

_potentials: TypeAdapter[PotentialSection] = TypeAdapter(PotentialSection)
_datasets: TypeAdapter[DataSource] = TypeAdapter(DatasetSection)
_matmul_precisions: TypeAdapter[MatmulPrecision] = TypeAdapter(MatmulPrecision)
_precisions: TypeAdapter[Precision | None] = TypeAdapter(Precision | None)


@dataclass(frozen=True, eq=False)
class TrainedPotential:
    """A potential ready to predict, in the numbers of its weights: half precision is left to training."""

    model: EnergyModel
    potential: PotentialSection
    dataset: DataSource  # how its training data were read: keys and units
    self_energies: SelfEnergies
    shifts: dict[int, float]  # eV per atom, added with the self-energies
    experiment: str  # the resolved experiment, TOML
    weights: str  # which weights these are, in words
    training_precision: Precision | None  # runtime.precision of the run; older files do not say
    matmul_precision: MatmulPrecision  # of the run, and of predictions

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that it knows, ascending."""
        return self.model.potential.elements

    @cached_property
    def has_energies(self) -> bool:
        """Whether its energies mean something: beside direct forces or charges they may have been left untrained."""
        training = TrainingSection.model_validate(tomli.loads(self.experiment).get("training", {}))
        return trains_energies(training.widest_loss, is_conservative=self.model.is_conservative)

    @property
    def has_forces(self) -> bool:
        """Whether its forces mean something, which as derivatives they do where the energies do."""
        return self.has_energies or not self.model.is_conservative

    @property
    def cutoff(self) -> float:
        """Cutoff in angstrom."""
        return self.model.potential.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Precision of its weights."""
        return self.model.scale.dtype

    def constants(self) -> Floats:
        """Self-energies and shifts by atomic number, eV, (119,)."""
        return self.self_energies.table() + table_of(self.shifts)


def save_potential(path: Path, trained: TrainedPotential) -> None:
    """Write the file at once or not at all."""
    metadata = {
        "format": FORMAT,
        "potential": trained.potential.model_dump_json(),
        "dataset": trained.dataset.model_dump_json(),
        "elements": json.dumps(trained.elements),
        "self_energies": json.dumps(trained.self_energies.by_element),
        "fitted_self_energies": json.dumps(trained.self_energies.fitted),
        "undetermined": json.dumps(trained.self_energies.undetermined.tolist()),
        "shifts": json.dumps(trained.shifts),
        "units": json.dumps(UNITS),
        "precision": str(trained.dtype).removeprefix("torch."),
        "experiment": trained.experiment,
        "weights": trained.weights,
        "matmul_precision": trained.matmul_precision,
        **({"training_precision": trained.training_precision} if trained.training_precision else {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))


def load_potential(
    place: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> TrainedPotential:
    """Load a potential from its file or its run folder, in another precision where asked for."""
    path = file_of(Path(place))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a potential ({error}); it must be a {FILE_NAME} of modelforge") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: is not a modelforge potential (format {metadata.get('format')!r}, expected {FORMAT!r})")
    return _rebuilt(metadata, tensors, torch.device(device), dtype, path)


def _rebuilt(
    metadata: dict[str, str],
    tensors: dict[str, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype | None,
    path: Path,
) -> TrainedPotential:
    try:
        section = _potentials.validate_json(metadata["potential"])
        dataset = _datasets.validate_json(metadata["dataset"])
        training_precision = _precisions.validate_python(metadata.get("training_precision"))
        matmul_precision = _matmul_precisions.validate_python(metadata.get("matmul_precision", "highest"))
    except ValidationError as error:
        raise UserError(f"{path}: was written by a version of modelforge that this one does not understand") from error
    model = EnergyModel(section.build(tuple(json.loads(metadata["elements"]))))
    saved = getattr(torch, metadata["precision"])
    model.to(saved).load_state_dict(tensors)
    by_element = {int(z): float(value) for z, value in json.loads(metadata["self_energies"]).items()}
    undetermined = np.array(json.loads(metadata["undetermined"])).reshape(-1, len(by_element))
    return TrainedPotential(
        model=model.to(device=device, dtype=dtype or saved).eval().requires_grad_(False),
        potential=section,
        dataset=dataset,
        self_energies=SelfEnergies(by_element, tuple(json.loads(metadata["fitted_self_energies"])), undetermined),
        shifts={int(z): float(value) for z, value in json.loads(metadata["shifts"]).items()},
        experiment=metadata["experiment"],
        weights=metadata["weights"],
        training_precision=training_precision,
        matmul_precision=matmul_precision,
    )


def file_of(place: Path) -> Path:
    """The file of a potential, given it or its run folder; a `UserError` if it is not there."""
    if place.is_dir():
        path = place / FILE_NAME
        if not path.is_file():
            raise UserError(
                f"{place}: holds no {FILE_NAME}, which a run writes when it is finished; finish it with the command that "
                "started it, or name another folder"
            )
        return path
    if not place.is_file():
        siblings = sorted(path.name for path in place.parent.iterdir()) if place.parent.is_dir() else []
        raise UserError(f"{place}: no such run folder or file of a potential{did_you_mean(place.name, siblings)}")
    return place
