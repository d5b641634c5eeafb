"""One training step as a function of weights and batch: loss terms, predictions and a loss to differentiate. T loss terms."""

from dataclasses import dataclass

from torch import Tensor

from modelforge.atoms.graph import Batch, Prediction, tensors_of
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.loss import LossSection, term_sums


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step knows: the weighted loss (differentiable), the sums of its terms, and the prediction."""

    loss: Tensor  # ()
    sums: Tensor  # (T, 2) numerator and denominator of each term, of this batch alone
    prediction: Prediction


class EagerStep:
    """The step as torch runs it operation by operation."""

    def __init__(self, model: EnergyModel, loss: LossSection) -> None:
        self.model, self.loss = model, loss

    def __call__(self, batch: Batch, scales: Tensor) -> StepResult:
        """Loss and prediction of a batch; `scales` (T,) multiply the numerators of the terms: weights over numbers of labels.

        The numbers are those of all batches of an optimizer step, on all processes: gradients of batches then add up to the
        gradient of the whole.
        """
        prediction = self.model(batch.graph, forces=self.loss.forces_weight > 0, stress=self.loss.stress_weight > 0)
        sums = term_sums(self.loss, prediction, batch.labels, batch.graph, batch.weight)
        detached = Prediction(*(tensor.detach() for tensor in tensors_of(prediction)))
        loss = (sums[:, 0] * scales).sum()
        for nothing in self._unused(prediction):
            loss = loss + 0.0 * nothing.sum()  # so that each weight has a gradient, as DDP expects
        return StepResult(loss, sums.detach(), detached)

    def _unused(self, prediction: Prediction) -> list[Tensor]:
        """What networks have predicted and no term of the loss may see."""
        unused = [] if self.loss.energy_weight else [prediction.energy]
        return [*unused, prediction.partial_charges] if self.model.has_charges else unused
