"""SOAP network: the power spectrum of the neighbourhood of each atom, and a dense network for each element.

    e_i = MLP_Z(i)(sqrt(64/F) (p_i / |p_i| - m_Z) / s_Z)

The descriptor p is that of `nn/descriptors/soap.py` (Bartok, Kondor, Csanyi, Phys. Rev. B 87, 184115, 2013); networks are
as those of Behler and Parrinello (Phys. Rev. Lett. 98, 146401, 2007). Means m and deviations s, of each feature for each
element of the atom itself, are those of random structures: all features then begin with values of about 1, and with the
factor before them a step of the optimizer changes a network with many of them no more than one with 64. N atoms, F
features, Z elements.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph
from modelforge.errors import UserError
from modelforge.nn.descriptors.soap import SOAP, random_structures
from modelforge.nn.descriptors.soap_radial import SOAPBasisName
from modelforge.nn.elements.per_element import ElementNetworks
from modelforge.nn.layers import ShiftedSoftplus, StateEmbedding
from modelforge.potentials.potential import AtomicOutputs, Potential, PotentialFields
from modelforge.section import Count, CountOrZero, Length, SectionError

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "tanh": nn.Tanh, "shifted_softplus": ShiftedSoftplus}
MOST_FEATURES = 50_000
NUM_STATE_FEATURES = 16  # that tell charge and spin
USUAL_WIDTH = 64  # inputs of a layer that the usual learning rates are made for
SMALLEST_DEVIATION = 1e-3  # of a feature, relative to the largest: smaller ones are rounding
SMALLEST_VARIANCE = 1e-20  # of the feature that varies most: one alone, divided by its length, is always 1
NARROWEST_GTO = 1.2  # angstrom


class SOAPFields(PotentialFields):
    """What describes the neighbourhood of an atom."""

    cutoff: Length = 5.0
    """Distance beyond which atoms do not see each other; their weight falls to zero as a cosine."""
    num_radial: Annotated[int, Field(ge=1, le=10, strict=True)] = 6
    """Radial functions (n_max); more than ten are too much alike for the digits that there are."""
    l_max: CountOrZero = 4
    """Highest degree of the spherical harmonics."""
    gaussian_width: Length = 0.5
    """Standard deviation of the Gaussian that stands for a neighbour."""
    radial_basis: SOAPBasisName = "gto"
    """Radial functions: Gaussians times powers of the distance, or polynomials."""

    @model_validator(mode="after")
    def _radial_functions_differ(self) -> "SOAPFields":
        if self.radial_basis == "gto" and self.cutoff < NARROWEST_GTO:
            at_least = (
                f'must be at least {NARROWEST_GTO} for radial_basis = "gto", whose functions end between 1 and the cutoff'
            )
            raise SectionError(("cutoff", f'{at_least} (got {self.cutoff:g}); use "polynomial"'))
        return self

    def descriptor(self, elements: Sequence[int]) -> SOAP:
        """The power spectrum for these elements; a `UserError` where it has too many features."""
        channels = len(elements) * self.num_radial
        num_features = (self.l_max + 1) * channels * (channels + 1) // 2
        if num_features > MOST_FEATURES:
            raise UserError(
                f"potential.num_radial: the descriptor of {len(elements)} elements must not have more than {MOST_FEATURES:,} "
                f"features, about elements^2 num_radial^2 (l_max + 1)/2 (has {num_features:,}); lower num_radial or l_max"
            )
        return SOAP(
            elements,
            basis_cutoff=self.cutoff,
            num_radial=self.num_radial,
            l_max=self.l_max,
            gaussian_width=self.gaussian_width,
            radial_basis=self.radial_basis,
            cutoff=self.cutoff,
        )


class SOAPSection(SOAPFields):
    """SOAP: a power spectrum of the neighbourhood, and a dense network for each element; simple, no messages."""

    name: Literal["soap"]
    num_features: Count = 64
    """Width of the hidden layers."""
    num_layers: Count = 2
    """Hidden layers."""
    activation: Literal["silu", "tanh", "shifted_softplus"] = "silu"
    """Function after each hidden layer."""
    normalized: bool = True
    """Whether descriptors are divided by their length."""

    def build(self, elements: Sequence[int]) -> "SOAPNetwork":
        """A network with random weights for these elements."""
        return SOAPNetwork(self, elements)


class SOAPNetwork(Potential):
    """The network of the module's docstring."""

    numbers: Tensor  # (Z,)
    mean: Tensor  # (Z, F)
    deviation: Tensor  # (Z, F) times sqrt(F/64)

    def __init__(self, section: SOAPSection, elements: Sequence[int]) -> None:
        super().__init__(section, elements=elements, num_scalars=section.num_features)
        self.descriptor, self.normalized = section.descriptor(elements), section.normalized
        self.register_buffer("numbers", torch.tensor(self.elements), persistent=False)
        mean, deviation = self._standards()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        has_state = section.charge_embedding or section.spin_embedding
        self.state = (
            StateEmbedding(NUM_STATE_FEATURES, charge=section.charge_embedding, spin=section.spin_embedding)
            if has_state
            else None
        )
        self.networks = ElementNetworks(
            elements,
            num_in=self.descriptor.num_features + has_state * NUM_STATE_FEATURES,
            widths={element: section.num_layers * [section.num_features] for element in elements},
            activation=ACTIVATIONS[section.activation](),
        )

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies, and what the last hidden layer gives."""
        features = self._standardized(self._described(graph), graph.atomic_numbers)
        if self.state is not None:
            features = torch.cat([features, self.state(graph)], dim=1)
        energies, hidden = self.networks(features, graph.atomic_numbers)
        return AtomicOutputs.of(energies, hidden)

    def _described(self, graph: AtomicGraph) -> Tensor:
        """(N, F)."""
        spectrum: Tensor = self.descriptor(graph).flatten(1)
        return spectrum / spectrum.norm(dim=1, keepdim=True) if self.normalized else spectrum

    def _standardized(self, features: Tensor, atomic_numbers: Tensor) -> Tensor:
        """Features as deviations from what is usual for the element of the atom."""
        one_hot = (atomic_numbers[:, None] == self.numbers).to(features.dtype)  # (N, Z)
        with torch.autocast(features.device.type, enabled=False):
            return (features - one_hot @ self.mean) / (one_hot @ self.deviation)

    @torch.no_grad()
    def _standards(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each feature for each element in random structures, (Z, F)."""
        graph = random_structures(self.descriptor.elements, cutoff=self.cutoff)
        features = self._described(graph)
        of_element = [features[graph.atomic_numbers == element] for element in self.elements]
        mean = torch.stack([rows.mean(dim=0) for rows in of_element])
        variance = torch.stack([rows.var(dim=0) for rows in of_element])
        smallest = SMALLEST_DEVIATION**2 * variance.amax(dim=1, keepdim=True).clamp(min=SMALLEST_VARIANCE)
        return mean, (variance + smallest).sqrt() * math.sqrt(features.shape[1] / USUAL_WIDTH)
