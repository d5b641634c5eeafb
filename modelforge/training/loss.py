"""The loss: weighted errors of energy, forces, stress, moments and charges. S structures, N atoms; N_s in structure s.

    L = 1/S sum_s [ w_E (dE_s)^2 / N_s  +  w_F 1/(3 N_s) sum_i |dF_i|^2  +  w_S sum_ab (V_s d(stress)_ab)^2 / (9 N_s) ]

by default (choderalab/modelforge's formula; the stress enters as the virial, which has the unit of an energy). Each sum over
structures is divided by the number of structures that carry the label: a missing label is masked and never counts as zero.
Where structures have weights of their own, each of their terms in the sums is multiplied with it; the divisors stay.

Dipoles and partial charges enter as they are, without N_s: the mean over all components and over all atoms (PhysNet:
O. Unke, M. Meuwly, J. Chem. Theory Comput. 15, 3678, 2019). Of quadrupoles, second moments sum q r r^T about the
centre of mass, the part without trace is compared: the trace also holds the spread of the electrons about their atoms, which
no point charges have. (Buckingham's quadrupoles are 3/2 of that part.)
"""

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from modelforge.atoms.graph import LABEL_COUNTS, AtomicGraph, Labels, Prediction
from modelforge.atoms.sums import sum_over_atoms
from modelforge.section import NonNegative, Positive, Section, SectionError
from modelforge.training.loss_weights import ConstantWeight, WeightSchedule, largest_weight


class LossSection(Section):
    """Weights and normalisations of the loss terms; errors are in eV, eV/angstrom, e, e*angstrom and e*angstrom^2."""

    energy_weight: NonNegative = 1.0
    """Weight of the energy term; 0 leaves it out."""
    forces_weight: NonNegative = 100.0
    """Weight of the forces term; 0 leaves it out, and forces are then not computed in training."""
    stress_weight: NonNegative = 0.0
    """Weight of the virial term (stress times volume) of periodic structures; 0 leaves it out."""
    dipole_weight: NonNegative = 0.0
    """Weight of the dipoles of structures that are not periodic, which are those of the partial charges; 0 leaves it out."""
    quadrupole_weight: NonNegative = 0.0
    """Weight of the quadrupoles (second moments about the centre of mass, without their trace); 0 leaves it out."""
    partial_charges_weight: NonNegative = 0.0
    """Weight of the term of the atoms' partial charges; 0 leaves it out."""
    function: Literal["mse", "mae", "huber"] = "mse"
    """Function of an error: its square, its magnitude, or Huber's mixture of both."""
    huber_delta: Positive | None = None
    """Error (in the units above) at which Huber's function turns from square to linear; 0.1 where not given. Only for huber."""
    energy_error: Literal["over_atoms", "per_atom", "total"] = "over_atoms"
    """Energy error: (dE)^2/N, (dE/N)^2 or (dE)^2; for mae and huber the function of dE/sqrt(N), dE/N or dE."""
    forces_mean: Literal["structure", "component"] = "structure"
    """Mean of the forces term: over each structure's components, then structures; or over all components of the batch."""
    energy_schedule: WeightSchedule = ConstantWeight()
    """How the weight of the energy term comes to its value, by which validations count; patience waits until it is there."""
    forces_schedule: WeightSchedule = ConstantWeight()
    """How the weight of the forces term comes to its value."""
    stress_schedule: WeightSchedule = ConstantWeight()
    """How the weight of the virial term comes to its value."""
    dipole_schedule: WeightSchedule = ConstantWeight()
    """How the weight of the dipole term comes to its value."""
    quadrupole_schedule: WeightSchedule = ConstantWeight()
    """How the weight of the quadrupole term comes to its value."""
    partial_charges_schedule: WeightSchedule = ConstantWeight()
    """How the weight of the partial charges comes to its value."""

    @model_validator(mode="after")
    def _options_are_used(self) -> "LossSection":
        if self.huber_delta is not None and self.function != "huber":
            raise SectionError(("huber_delta", f'has no effect with function = "{self.function}"; remove it'))
        if not weights_of(self):
            raise SectionError(("energy_weight", "all weights are 0, so nothing would be trained; set one above 0"))
        return self

    @property
    def needs_derivatives(self) -> bool:
        """Whether forces or stress have to be computed; direct forces are no derivatives."""
        return bool({"forces", "stress"} & weights_of(self).keys())


TERMS = ("energy", "forces", "stress", "dipole", "quadrupole", "partial_charges")
TERMS_OF_CHARGES = TERMS[3:]
# Places in Batch.label_counts.
(
    ENERGIES,
    FORCE_STRUCTURES,
    FORCE_COMPONENTS,
    STRESS_COMPONENTS,
    DIPOLES,
    QUADRUPOLES,
    CHARGES,
    NUM_ATOMS,
) = range(len(LABEL_COUNTS))


def trains_energies(section: LossSection, *, is_conservative: bool) -> bool:
    """Whether energies come to mean something: their derivatives train them too, which direct forces are not."""
    derivatives = {"stress", "forces"} if is_conservative else {"stress"}
    return bool(({"energy"} | derivatives) & weights_of(section).keys())


def weights_of(section: LossSection) -> dict[str, float]:
    """The largest weight that each term ever has, of those that are trained on."""
    weights = {
        term: largest_weight(getattr(section, f"{term}_schedule"), float(getattr(section, f"{term}_weight"))) for term in TERMS
    }
    return {term: weight for term, weight in weights.items() if weight > 0}


def term_sums(
    section: LossSection, prediction: Prediction, labels: Labels, graph: AtomicGraph, weight: Tensor | None = None
) -> Tensor:
    """Numerator and denominator of each term that has a weight, (T, 2): they add up over batches, means do not.

    `weight` (S,) multiplies what each structure gives to the numerators; 1 by default.
    """
    weight = torch.ones_like(labels.energy) if weight is None else weight
    sums = (_energy_sums, _forces_sums, _stress_sums, _dipole_sums, _quadrupole_sums, _charges_sums)
    terms = dict(zip(TERMS, sums, strict=True))
    return torch.stack([terms[name](section, prediction, labels, graph, weight) for name in weights_of(section)])


def term_values(sums: Tensor) -> Tensor:
    """Unweighted terms of sums (T, 2), (T,); zero where there was no label."""
    return sums[:, 0] / sums[:, 1].clamp(min=1.0)


def term_counts(section: LossSection, label_counts: Tensor) -> Tensor:
    """What the numerator of each term is divided by, (T,), from the numbers of labels of `Batch.label_counts`."""
    forces = FORCE_COMPONENTS if section.forces_mean == "component" else FORCE_STRUCTURES
    columns = dict(zip(TERMS, (ENERGIES, forces, STRESS_COMPONENTS, DIPOLES, QUADRUPOLES, CHARGES), strict=True))
    return torch.stack([label_counts[columns[name]] for name in weights_of(section)]).clamp(min=1.0)


def _energy_sums(section: LossSection, prediction: Prediction, labels: Labels, graph: AtomicGraph, weight: Tensor) -> Tensor:
    num_atoms = atoms_per_structure(graph)
    divisor = {"over_atoms": num_atoms.sqrt(), "per_atom": num_atoms, "total": torch.ones_like(num_atoms)}
    errors, known = _masked(prediction.energy, labels.energy)
    return _sums(_function(section, errors / divisor[section.energy_error]), known, weight)


def _forces_sums(section: LossSection, prediction: Prediction, labels: Labels, graph: AtomicGraph, weight: Tensor) -> Tensor:
    errors, known = _masked(prediction.forces, labels.forces)
    values = _function(section, errors)
    if section.forces_mean == "component":
        return _sums(values, known, weight[graph.structure_index][:, None])
    sums = sum_over_atoms(torch.stack([(values * known).sum(1), known.sum(1)], dim=1), graph)  # (S, 2)
    return _sums(sums[:, 0] / sums[:, 1].clamp(min=1.0), (sums[:, 1] > 0).to(sums.dtype), weight)


def _stress_sums(section: LossSection, prediction: Prediction, labels: Labels, graph: AtomicGraph, weight: Tensor) -> Tensor:
    factor = (graph.volume / atoms_per_structure(graph).sqrt())[:, None, None]
    errors, known = _masked(prediction.stress * factor, labels.stress * factor)
    return _sums(_function(section, errors), known, weight[:, None, None])


def _dipole_sums(section: LossSection, prediction: Prediction, labels: Labels, _: AtomicGraph, weight: Tensor) -> Tensor:
    errors, known = _masked(prediction.dipole, labels.dipole)
    return _sums(_function(section, errors), known, weight[:, None])


def _quadrupole_sums(section: LossSection, prediction: Prediction, labels: Labels, _: AtomicGraph, weight: Tensor) -> Tensor:
    errors, known = _masked(without_trace(prediction.quadrupole), without_trace(labels.quadrupole))
    return _sums(_function(section, errors), known, weight[:, None, None])


def _charges_sums(section: LossSection, prediction: Prediction, labels: Labels, graph: AtomicGraph, weight: Tensor) -> Tensor:
    errors, known = _masked(prediction.partial_charges, labels.partial_charges)
    return _sums(_function(section, errors), known, weight[graph.structure_index])


def without_trace(moments: Tensor) -> Tensor:
    """Second moments (S, 3, 3) minus a third of their trace on the diagonal."""
    third = moments.diagonal(dim1=1, dim2=2).mean(dim=1)  # (S,)
    identity = torch.eye(3, dtype=moments.dtype, device=moments.device)
    return moments - third[:, None, None] * identity


def _function(section: LossSection, errors: Tensor) -> Tensor:
    if section.function == "mse":
        return errors.square()
    if section.function == "mae":
        return errors.abs()
    delta = section.huber_delta or 0.1
    magnitude = errors.abs()
    return torch.where(magnitude < delta, 0.5 * errors.square(), delta * (magnitude - 0.5 * delta))


def _masked(predicted: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Errors with zeros where there is no label, and a mask of ones and zeros of the same shape."""
    known = torch.isfinite(reference)
    return torch.where(known, predicted - reference, torch.zeros_like(reference)), known.to(reference.dtype)


def _sums(values: Tensor, known: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([(values * known * weight).sum(), known.sum()])


def atoms_per_structure(graph: AtomicGraph) -> Tensor:
    """Number of atoms of each structure in the precision of the batch, (S,)."""
    # No slice of S-1 elements: the compiler would take a batch of two for a case of its own.
    bounds = torch.cat([graph.first_atom, graph.first_atom.new_full((1,), graph.num_atoms)])  # (S+1,)
    return bounds.diff().to(graph.edge_vectors.dtype)
