"""SAKE of its authors' package sake-gnn (`DenseSAKEModel`), which sees all pairs of a molecule and knows no cutoff.

Flax kernels are (in, out). What does nothing in their code is left out: `log_gamma`, and where the last layer moves the atoms.
F features, H heads, K radial functions, T layers.
"""

from typing import Annotated, Literal

import torch
from ase.data import chemical_symbols
from pydantic import Field, field_validator
from torch import Tensor

from modelforge.importing.hyper import PeerHyper, read_hyper
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential
from modelforge.importing.weights import Weights
from modelforge.potentials.sake import SAKESection
from modelforge.section import Count

State = dict[str, Tensor]

NO_CUTOFF = 1e8  # angstrom; the envelope is then 1 to the last digit
RADIAL_RANGE = 5.0  # angstrom: their radial functions are of exp(-d)


class SAKEHyper(PeerHyper):
    """Options of a SAKE; those with one choice can only be imported with that."""

    hidden_features: Count
    depth: Count
    n_heads: Count = 4
    species: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Atomic numbers, in the order of the one-hot inputs."""
    update: bool = True
    out_features: Literal[1] = 1
    cutoff: None = None
    use_semantic_attention: Literal[True] = True
    use_euclidean_attention: Literal[True] = True
    use_spatial_attention: Literal[True] = True

    @field_validator("length_unit")
    @classmethod
    def is_angstrom(cls, text: str) -> str:
        """Its layers see plain distances."""
        if text.lower() not in ("angstrom", "ang", "a"):
            raise ValueError(f"must be angstrom (got {text!r}): the layers see distances as they are; train in angstrom")
        return text

    @field_validator("species")
    @classmethod
    def are_elements(cls, species: tuple[int, ...]) -> tuple[int, ...]:
        """Each once."""
        if len(set(species)) < len(species) or max(species) >= len(chemical_symbols):
            raise ValueError(f"must be atomic numbers, each once (got {', '.join(map(str, species))})")
        return species


def imported(hyper: Hyper, weights: Arrays) -> ImportedPotential:
    """The network that `hyper` describes."""
    options = read_hyper(SAKEHyper, hyper)
    theirs = Kernels(weights, options)
    elements = options.elements_among(options.species)
    section = SAKESection(
        name="sake",
        cutoff=NO_CUTOFF,
        num_features=options.hidden_features,
        num_layers=options.depth,
        num_heads=options.n_heads,
        num_radial=theirs.num_radial,
        radial_range=RADIAL_RANGE,
        update_positions=options.update,
    )
    features = options.hidden_features
    state = theirs.embedding(elements) | theirs.two_layers("embedding_out", "readout", features, features, 1)
    for t in range(options.depth):
        state |= theirs.interaction(t)
    velocities = [theirs.velocity(t) for t in range(options.depth)] if options.update else []
    for velocity in velocities[:-1]:  # nothing sees where the last layer moves the atoms
        state |= velocity
    theirs.weights.refuse_rest("a SAKE")
    note = "it sees all pairs of atoms of a molecule, however far apart: structures that are periodic cannot be predicted"
    constants = options.constants(elements)
    return ImportedPotential(section, elements, state, constants, options.energy, (note, *options.unit_notes))


class Kernels:
    """Their weights by our names."""

    def __init__(self, arrays: Arrays, options: SAKEHyper) -> None:
        self.weights = Weights({name.removeprefix("params/"): array for name, array in arrays.items()})
        self.options = options
        self.num_radial = self.weights.num_rows("d0/edge_model/kernel/means")

    def layer(self, theirs: str, ours: str, num_in: int, num_out: int, *, bias: bool = True) -> State:
        """A dense layer."""
        state = {f"{ours}.weight": self.weights.take(f"{theirs}/kernel", num_in, num_out).T}
        return state | ({f"{ours}.bias": self.weights.take(f"{theirs}/bias", num_out)} if bias else {})

    def two_layers(self, theirs: str, ours: str, num_in: int, num_hidden: int, num_out: int) -> State:
        """dense -> activation -> dense."""
        first = self.layer(f"{theirs}/layers_0", f"{ours}.0", num_in, num_hidden)
        return first | self.layer(f"{theirs}/layers_2", f"{ours}.2", num_hidden, num_out)

    def embedding(self, elements: tuple[int, ...]) -> State:
        """A row for each element, with the bias in it."""
        species = self.options.species
        layer = self.layer("embedding_in", "all", len(species), self.options.hidden_features)
        table = layer["all.weight"].T + layer["all.bias"]
        return {"embedding.weight": table[[species.index(z) for z in elements]]}

    def interaction(self, t: int) -> State:
        """A block without its velocities."""
        options, old, new = self.options, f"d{t}", f"interactions.{t}"
        features, coefficients = options.hidden_features, options.hidden_features * options.n_heads
        self.weights.take(f"{old}/log_gamma", options.n_heads)
        state = self.edge_features(f"{old}/edge_model", f"{new}.edge_features")
        state |= self.layer(f"{old}/semantic_attention_mlp/layers_0", f"{new}.logits", features, options.n_heads)
        state |= self.two_layers(f"{old}/post_norm_mlp", f"{new}.of_norms", coefficients, features, features)
        state |= self.two_layers(f"{old}/node_mlp", f"{new}.update", 2 * features + coefficients, features, features)
        mixing = self.layer(f"{old}/x_mixing/layers_0", "mixing", coefficients, coefficients, bias=False)
        state[f"{new}.mixing.weight"] = by_heads(mixing["mixing.weight"], num_features=features)
        of_atom, of_messages, of_norms = state[f"{new}.update.0.weight"].tensor_split((features, -features), dim=1)
        ordered = [of_atom, by_heads(of_messages, num_features=features), of_norms]
        state[f"{new}.update.0.weight"] = torch.cat(ordered, dim=1)
        return state

    def edge_features(self, old: str, new: str) -> State:
        """Their layers on [h_j, h_i, ...], divided into what acts on each."""
        features, num_radial = self.options.hidden_features, self.num_radial
        gates = self.layer(f"{old}/mlp_in", "gates", 2 * features, num_radial)
        hidden = self.layer(f"{old}/mlp_out/layers_0", "hidden", 2 * features + num_radial + 1, features)
        of_atoms = torch.cat([gates["gates.weight"], hidden["hidden.weight"][:, : 2 * features]])  # (K + F, 2F)
        return {
            f"{new}.of_sender.weight": of_atoms[:, :features],
            f"{new}.of_sender.bias": torch.cat([gates["gates.bias"], hidden["hidden.bias"]]),
            f"{new}.of_receiver.weight": of_atoms[:, features:],
            f"{new}.of_distance.weight": hidden["hidden.weight"][:, 2 * features :],
            f"{new}.radial_basis.centres": self.weights.take(f"{old}/kernel/means", num_radial),
            f"{new}.radial_basis.steepness": self.weights.take(f"{old}/kernel/betas", num_radial),
            **self.layer(f"{old}/mlp_out/layers_2", f"{new}.output", features, features),
        }

    def velocity(self, t: int) -> State:
        """How a block moves the atoms; the first has no velocity to go on from."""
        options, old, new = self.options, f"d{t}", f"velocities.{t}"
        features = options.hidden_features
        state = self.layer(f"{old}/v_mixing", f"{new}.mixing", features * options.n_heads, 1, bias=False)
        if t:
            state |= self.layer(f"{old}/velocity_mlp/layers_0", f"{new}.gate.0", features, features)
            state |= self.layer(f"{old}/velocity_mlp/layers_2", f"{new}.gate.2", features, 1, bias=False)
        return state


def by_heads(weight: Tensor, *, num_features: int) -> Tensor:
    """Columns (out, F H) feature by feature as (out, H F), head by head."""
    return torch.unflatten(weight, 1, (num_features, -1)).transpose(1, 2).flatten(1)
