"""ANI: networks of the atoms, one for each element, on symmetry functions of their surroundings.

Smith, Isayev, Roitberg, Chem. Sci. 8, 3192 (2017); ANI-1x: J. Chem. Phys. 148, 241733 (2018); ANI-2x: Devereux et al.,
J. Chem. Theory Comput. 16, 4192 (2020). The atomic environment vector (AEV) of an atom i has, with f_c the cosine cutoff,

    radial, for each element of j:        sum_j 0.25 exp(-eta (d_ij - R_s)^2) f_c(d_ij)
    angular, for each pair of elements:   sum_{j<k} 2 ((1 + cos(theta - theta_s))/2)^zeta exp(-eta' ((d_ij + d_ik)/2 - R_s')^2)
                                                    f_c(d_ij) f_c(d_ik),     cos theta = 0.95 u_ij . u_ik

The factors are those of the authors' program, NeuroChem, whose weights it reproduces. N atoms, E edges, M triples, Z elements,
P = Z (Z + 1)/2 pairs of them, R radial shifts, A shells of mean distances, T angles.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Literal

import torch
from ase.data import atomic_numbers, chemical_symbols
from pydantic import Field, model_validator
from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import at_atoms, at_rows, elements_of_edges, sum_over_segments
from modelforge.atoms.triple_sums import edges_of_triples, element_pairs_of_triples
from modelforge.nn.cutoffs import cosine_cutoff
from modelforge.nn.descriptors.native_symmetry import NativeSlopes, Senders, is_native
from modelforge.nn.descriptors.symmetry_functions import (
    COSINE_FACTOR,
    SMALLEST_SQUARE,
    Surroundings,
    SymmetryConstants,
    symmetry_functions,
)
from modelforge.nn.elements.per_element import ElementNetworks
from modelforge.nn.known_slopes import Slopes, with_slopes
from modelforge.potentials.potential import AtomicOutputs, Potential, PotentialFields
from modelforge.section import Count, Length, Positive, SectionError, Unit

Widths = Annotated[tuple[Count, ...], Field(min_length=1)]
InverseArea = Annotated[float, Field(gt=0), Unit("1/angstrom^2")]
CELU_ALPHA = 0.1

ANI1X: Mapping[str, object] = {
    "cutoff": 5.2,
    "radial_eta": 16.0,
    "first_shift": 0.9,
    "angular_eta": 8.0,
    "zeta": 32.0,
    "num_shells": 4,
    "num_angles": 8,
    "widths": {"H": (160, 128, 96), "C": (144, 112, 96)},
    "other_widths": (128, 112, 96),
}


class ANISection(PotentialFields):
    """ANI: a small network for each element on fixed functions of distances and angles; fast, for few elements."""

    name: Literal["ani"]
    constants: Literal["ani2x", "ani1x"] = "ani2x"
    """The published set that all keys below have their defaults from; those shown are of ANI-2x."""
    cutoff: Length = 5.1
    """Distance beyond which atoms do not see each other."""
    angular_cutoff: Length = 3.5
    """Distance up to which neighbours count for angles; at most the cutoff."""
    num_radial: Count = 16
    """Gaussians in which distances are expanded, from `first_shift` in equal steps to a step before the cutoff."""
    radial_eta: InverseArea = 19.7
    """Steepness of the Gaussians of distances."""
    first_shift: Length = 0.8
    """Centre of the first Gaussian of distances and of mean distances."""
    num_shells: Count = 8
    """Gaussians of the mean distance of two neighbours, to a step before the angular cutoff."""
    angular_eta: InverseArea = 12.5
    """Steepness of the Gaussians of mean distances."""
    num_angles: Count = 4
    """Angles about which that between two neighbours is expanded, in equal steps, a half one from 0 and from 180 degrees."""
    zeta: Positive = 14.1
    """Steepness about these angles."""
    widths: dict[str, Widths] = {"H": (256, 192, 160), "C": (224, 192, 160), "N": (192, 160, 128), "O": (192, 160, 128)}
    """Hidden layers of the network of each element."""
    other_widths: Widths = (160, 128, 96)
    """Hidden layers of elements that are not named; as many layers for all."""

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: object) -> object:
        is_ani1x = isinstance(values, dict) and values.get("constants") == "ani1x"
        return {**ANI1X, **values} if isinstance(values, dict) and is_ani1x else values

    @model_validator(mode="after")
    def _keys_go_together(self) -> "ANISection":
        if self.angular_cutoff > self.cutoff:
            raise SectionError(("angular_cutoff", f"must not exceed the cutoff of {self.cutoff} (got {self.angular_cutoff})"))
        if self.first_shift >= self.angular_cutoff:
            at_most = f"must be less than the angular cutoff of {self.angular_cutoff} (got {self.first_shift})"
            raise SectionError(("first_shift", at_most))
        unknown = [symbol for symbol in self.widths if atomic_numbers.get(symbol, 0) == 0]
        if unknown:
            raise SectionError(("widths", f"must name elements by their symbols (got {', '.join(unknown)})"))
        depth = len(self.other_widths)
        unequal = [symbol for symbol, widths in self.widths.items() if len(widths) != depth]
        if unequal:
            place, got = f"widths.{unequal[0]}", len(self.widths[unequal[0]])
            raise SectionError((place, f"must be {depth} widths, as many as in other_widths (got {got})"))
        return self

    @property
    def triples_cutoff(self) -> float:
        """Distance up to which pairs of neighbours of an atom matter, angstrom."""
        return self.angular_cutoff

    @property
    def symmetry(self) -> SymmetryConstants:
        """What the symmetry functions are made of."""
        return SymmetryConstants(**{field.name: getattr(self, field.name) for field in fields(SymmetryConstants)})

    def widths_of(self, element: int) -> tuple[int, ...]:
        """Hidden layers of the network of an element."""
        return self.widths.get(chemical_symbols[element], self.other_widths)

    def build(self, elements: Sequence[int]) -> "ANI":
        """A network with random weights for these elements."""
        return ANI(self, elements)


class ANI(Potential):
    """The network of the module's docstring; the AEV has the elements by atomic number, in whatever order they are given."""

    column: Tensor

    def __init__(self, section: ANISection, elements: Sequence[int]) -> None:
        ordered = sorted(elements)
        super().__init__(section, elements=elements, num_scalars=max(section.widths_of(element)[-1] for element in ordered))
        self.constants = section
        num_state = section.charge_embedding + section.spin_embedding
        self.networks = ElementNetworks(
            ordered,
            num_in=aev_length(section, num_elements=len(ordered)) + num_state,
            widths={element: section.widths_of(element) for element in ordered},
            activation=nn.CELU(CELU_ALPHA),
        )

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies, and the last hidden layer as features where a head reads them."""
        inputs = [self._features(graph)]
        inputs += [at_atoms(graph.total_charge, graph)[:, None]] if self.constants.charge_embedding else []
        inputs += [at_atoms(graph.spin_multiplicity - 1.0, graph)[:, None]] if self.constants.spin_embedding else []
        features = torch.cat(inputs, dim=1)
        if self.constants.partial_charges or self.constants.forces == "direct":
            return AtomicOutputs.of(*self.networks(features, graph.atomic_numbers))
        return AtomicOutputs.of(self.networks.energies(features, graph.atomic_numbers), features[:, :0])

    def aev(self, graph: AtomicGraph) -> tuple[Tensor, Tensor]:
        """Radial part, by element of the neighbour, then shift, (N, Z R); angular part, by pair, shell, angle, (N, P A T)."""
        features, num_radial = self._features(graph), len(self.elements) * self.constants.num_radial
        return features[:, :num_radial], features[:, num_radial:]

    def _features(self, graph: AtomicGraph) -> Tensor:
        """The AEV, (N, Z R + P A T)."""
        return self._features_of(graph.edge_vectors, graph)

    def _features_of(self, vectors: Tensor, graph: AtomicGraph) -> Tensor:
        """Of these edge vectors (E, 3), by native code where there is any: it needs no tables of triples."""
        constants = self.constants.symmetry
        values: Tensor
        slopes: Slopes
        with torch.no_grad():
            if is_native(vectors, constants):
                slopes = NativeSlopes(vectors, self._senders(graph), constants)
                values = slopes.values()
            else:
                values, slopes = symmetry_functions(vectors, self._surroundings(graph), constants)
        return with_slopes(vectors, values, slopes, lambda vectors: self._aev(vectors, self._surroundings(graph)))

    def _senders(self, graph: AtomicGraph) -> Senders:
        elements = self.networks.column[graph.atomic_numbers]
        return Senders(graph.first_edge, graph.senders, elements, len(self.elements))

    def _surroundings(self, graph: AtomicGraph) -> Surroundings:
        column, num_elements = self.networks.column, len(self.elements)
        return Surroundings(
            num_atoms=graph.num_atoms,
            num_elements=num_elements,
            triples=graph.triples,
            of_edges=edges_of_triples(graph),
            by_element=elements_of_edges(graph, column, num_elements=num_elements),
            by_pair=element_pairs_of_triples(graph, column, num_elements=num_elements),
        )

    def _aev(self, vectors: Tensor, surroundings: Surroundings) -> Tensor:
        """The formula as it is, differentiable any number of times."""
        distance = vectors.square().sum(dim=1).clamp(min=SMALLEST_SQUARE).sqrt()  # (E,)
        radial = sum_over_segments(radial_terms(distance, self.constants), surroundings.by_element)  # (N Z, R)
        terms = self._angular_terms(distance, vectors, surroundings)
        angular = sum_over_segments(terms, surroundings.by_pair)  # (N P, A T)
        return torch.cat([part.reshape(surroundings.num_atoms, -1) for part in (radial, angular)], dim=1)

    def _angular_terms(self, distance: Tensor, vectors: Tensor, surroundings: Surroundings) -> Tensor:
        """(M, A T)."""
        envelope = cosine_cutoff(distance, self.constants.angular_cutoff)
        of_edges = torch.cat([vectors / distance[:, None], distance[:, None], envelope[:, None]], dim=1)  # (E, 5)
        first, second = at_rows(of_edges, surroundings.of_edges).chunk(2)  # (M, 5)
        cosine = (first[:, :3] * second[:, :3]).sum(dim=1)
        mean_distance, envelopes = 0.5 * (first[:, 3] + second[:, 3]), first[:, 4] * second[:, 4]
        return angular_terms(cosine, mean_distance, envelopes, self.constants)


def aev_length(section: ANISection, *, num_elements: int) -> int:
    """Z R + P A T."""
    num_pairs = num_elements * (num_elements + 1) // 2
    return num_elements * section.num_radial + num_pairs * section.num_shells * section.num_angles


def radial_terms(distance: Tensor, section: ANISection) -> Tensor:
    """Terms of the radial part of the AEV, (E,) -> (E, R)."""
    envelope = 0.25 * cosine_cutoff(distance, section.cutoff)[:, None]
    return gaussians(distance, section.first_shift, section.cutoff, section.num_radial, eta=section.radial_eta) * envelope


def angular_terms(cosine: Tensor, mean_distance: Tensor, envelopes: Tensor, section: ANISection) -> Tensor:
    """Terms of the angular part, of cosine, mean distance and product of both cutoff functions, (M,) -> (M, A T).

    cos(theta - theta_s) is written out by cos theta and sin theta; (1 + it)/2 is at least 0.02, so its logarithm is harmless.
    """
    steps = torch.arange(section.num_angles, dtype=cosine.dtype, device=cosine.device)
    angles = (steps + 0.5) * (math.pi / section.num_angles)  # (T,)
    cosine = COSINE_FACTOR * cosine[:, None]
    sine = (1.0 - cosine.square()).sqrt()
    nearness = 0.5 + 0.5 * (cosine * angles.cos() + sine * angles.sin())  # (M, T)
    of_angle = (section.zeta * nearness.log()).exp() * (2.0 * envelopes[:, None])
    options = (section.first_shift, section.angular_cutoff, section.num_shells)
    of_distance = gaussians(mean_distance, *options, eta=section.angular_eta)  # (M, A)
    return outer_products(of_distance, of_angle)


def outer_products(x: Tensor, y: Tensor) -> Tensor:
    """x_a y_t of each row, (M, A), (M, T) -> (M, A T).

    Both are first repeated by a product with zeros and ones. The derivatives then have products of matrices where those of a
    broadcast product have sums over a few numbers each, which take several times as long.
    """
    num_x, num_y = x.shape[1], y.shape[1]
    with torch.autocast(x.device.type, enabled=False):
        repeated = x @ torch.eye(num_x, dtype=x.dtype, device=x.device).repeat_interleave(num_y, dim=1)
        return repeated * (y @ torch.eye(num_y, dtype=y.dtype, device=y.device).repeat(1, num_x))


def gaussians(distance: Tensor, begin: float, end: float, num: int, *, eta: float) -> Tensor:
    """exp(-eta (d - R_s)^2), R_s in equal steps from the begin to a step before the end, (E,) -> (E, num)."""
    steps = torch.arange(num, dtype=distance.dtype, device=distance.device)
    shifts = begin + steps * ((end - begin) / num)
    return (-eta * (distance[:, None] - shifts).square()).exp()
