"""The loss ledger: what each term gives to the loss and to its gradient. T loss terms."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelforge.atoms.graph import Batch
from modelforge.training.eager_step import EagerStep
from modelforge.training.loss import TERMS_OF_CHARGES, LossSection, weights_of
from modelforge.training.step import CompiledStep


@dataclass(frozen=True)
class LedgerEntry:
    """One term of the loss."""

    term: str
    raw: float  # value on the validation set, without its weight
    weight: float
    gradient_share: float | None  # of the sum of the norms of the terms' gradients, on one training batch

    @property
    def weighted(self) -> float:
        """What the term gives to the loss."""
        return self.raw * self.weight

    def row(self) -> dict[str, float | None]:
        """The columns of metrics.csv."""
        return {
            f"loss/{self.term}_raw": self.raw,
            f"loss/{self.term}_weight": self.weight,
            f"loss/{self.term}_weighted": self.weighted,
            f"loss/{self.term}_gradient_share": self.gradient_share,
        }

    def in_words(self) -> str:
        """The entry for a log."""
        share = "" if self.gradient_share is None else f", {100 * self.gradient_share:.0f} % of the gradient"
        return f"{self.term} {self.raw:.4g} x {self.weight:g} = {self.weighted:.4g}{share}"


def ledger(section: LossSection, raw: Sequence[float], weights: Sequence[float], norms: Sequence[float]) -> list[LedgerEntry]:
    """An entry for each term, from its values, weights and gradient norms, each (T,)."""
    total = sum(norms)
    shares = [norm / total if total > 0 else None for norm in norms]
    return [LedgerEntry(*entry) for entry in zip(weights_of(section), raw, weights, shares, strict=True)]


def gradient_norms(step: EagerStep | CompiledStep, batch: Batch, scales: Tensor) -> Tensor:
    """The norm of the gradient of each weighted term (T,), for the weights that the model has now.

    `scales` are those of the step, of which the one of a penalty is left out.
    """
    parameters = [weight for weight in step.model.parameters() if weight.requires_grad]
    norms = []
    num_terms = len(scales) - step.model.has_penalty
    for only in torch.eye(num_terms, len(scales), dtype=scales.dtype, device=scales.device):
        loss = step(batch, scales * only).loss
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        norms.append(torch.stack(torch._foreach_norm(gradients)).norm())
    return torch.stack(norms)


FORMULA = {
    "over_atoms": "{function}(dE / sqrt(N))",
    "per_atom": "{function}(dE / N)",
    "total": "{function}(dE)",
}


def formula(section: LossSection) -> str:
    """The loss in one line; what is in brackets is a mean."""
    function = {"mse": "square", "mae": "abs", "huber": f"huber_{section.huber_delta or 0.1:g}"}[section.function]
    forces = "all components" if section.forces_mean == "component" else "components of a structure, then over structures"
    parts = {
        "energy": f"w_energy mean({FORMULA[section.energy_error].format(function=function)}) over structures",
        "forces": f"w_forces mean({function}(dF)) over {forces}",
        "stress": f"w_stress mean({function}(V dS / sqrt(N))) over components",
        "dipole": f"w_dipole mean({function}(dD)) over components",
        "quadrupole": f"w_quadrupole mean({function}(dQ)) over components without trace",
        "partial_charges": f"w_partial_charges mean({function}(dq)) over atoms",
    }
    terms = weights_of(section)
    units = "eV, angstrom, e" if terms.keys() & set(TERMS_OF_CHARGES) else "eV, angstrom"
    return "loss = " + " + ".join(parts[term] for term in terms) + f" ({units})"
