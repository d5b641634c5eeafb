"""One training step as a function of weights and batch: loss terms, predictions and a loss to differentiate. T loss terms."""

from dataclasses import dataclass

from torch import Tensor

from modelforge.atoms.graph import Batch, Prediction, tensors_of
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.loss import LossSection, term_sums, term_values


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step knows: the weighted loss (differentiable), its unweighted terms, and the prediction."""

    loss: Tensor  # ()
    terms: Tensor  # (T,)
    prediction: Prediction


class EagerStep:
    """The step as torch runs it operation by operation."""

    def __init__(self, model: EnergyModel, loss: LossSection) -> None:
        self.model, self.loss = model, loss

    def __call__(self, batch: Batch, weights: Tensor) -> StepResult:
        """Loss and prediction of a batch for the weights of the terms (T,)."""
        prediction = self.model(batch.graph, forces=self.loss.forces_weight > 0, stress=self.loss.stress_weight > 0)
        terms = term_values(term_sums(self.loss, prediction, batch.labels, batch.graph, batch.weight))
        detached = Prediction(*(tensor.detach() for tensor in tensors_of(prediction)))
        return StepResult((terms * weights).sum(), terms.detach(), detached)
