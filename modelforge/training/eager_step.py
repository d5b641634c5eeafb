"""One training step as a function of weights and batch: loss terms, predictions and a loss to differentiate.

T loss terms, R penalties of the network: 1 or none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from modelforge.atoms.graph import Batch, Prediction, tensors_of
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.loss import NUM_ATOMS, LossSection, term_counts, term_sums, weights_of


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step knows: the weighted loss (differentiable), the sums of its terms, and the prediction."""

    loss: Tensor  # ()
    sums: Tensor  # (T, 2) numerator and denominator of each term, of this batch alone
    prediction: Prediction


def plain_scales(model: EnergyModel, loss: LossSection) -> Tensor:
    """Scales of 1, (T + R,): of steps that are only tried."""
    return model.scale.new_ones(len(weights_of(loss)) + model.has_penalty)


def scales_of(model: EnergyModel, loss: LossSection, weights: Tensor, label_counts: Tensor) -> Tensor:
    """The scales of a step (T + R,) from the weights of the terms (T,) and the numbers of labels (8,)."""
    of_terms = weights / term_counts(loss, label_counts)
    if not model.has_penalty:
        return of_terms
    return torch.cat([of_terms, 1.0 / label_counts[NUM_ATOMS : NUM_ATOMS + 1].clamp(min=1.0)])


class EagerStep:
    """The step as torch runs it operation by operation."""

    def __init__(self, model: EnergyModel, loss: LossSection) -> None:
        self.model, self.loss = model, loss

    def __call__(self, batch: Batch, scales: Tensor) -> StepResult:
        """Loss and prediction of a batch; `scales` (T + R,) multiply the numerators of the terms, then the sum of penalties.

        They are weights over numbers of labels, and one over that of atoms, in all batches of an optimizer step, on all
        processes: gradients of batches then add up to the gradient of the whole.
        """
        prediction, penalties = self.model.with_penalties(
            batch.graph, forces=self.loss.forces_weight > 0, stress=self.loss.stress_weight > 0
        )
        sums = term_sums(self.loss, prediction, batch.labels, batch.graph, batch.weight)
        detached = Prediction(*(tensor.detach() for tensor in tensors_of(prediction)))
        numerators = sums[:, 0]
        if self.model.has_penalty:
            penalty = (penalties * batch.weight[batch.graph.structure_index][:, None]).sum(dim=0)  # (1,)
            numerators = torch.cat([numerators, penalty])
        loss = (numerators * scales).sum()
        for nothing in self._unused(prediction):
            loss = loss + 0.0 * nothing.sum()  # so that each weight has a gradient, as DDP expects
        return StepResult(loss, sums.detach(), detached)

    def _unused(self, prediction: Prediction) -> list[Tensor]:
        """What networks have predicted and no term of the loss may see."""
        unused = [] if self.loss.energy_weight else [prediction.energy]
        return [*unused, prediction.partial_charges] if self.model.has_charges else unused
