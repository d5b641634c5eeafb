"""Optimizers: their sections, and what these build."""

from typing import Annotated, Literal

from pydantic import Field
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from modelforge.section import Count, Fraction, NonNegative, Positive, Section
from modelforge.training.soap import SOAP


class AdamFields(Section):
    """What Adam and AdamW have in common."""

    learning_rate: Positive = 1e-3
    """Learning rate after warm-up."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    epsilon: Positive = 1e-8
    """Added to the root of the mean square gradient."""
    amsgrad: bool = False
    """Divide by the largest mean square so far (AMSGrad)."""


class AdamSection(AdamFields):
    """Adam (Kingma and Ba, arXiv:1412.6980)."""

    name: Literal["adam"] = "adam"


class AdamWSection(AdamFields):
    """AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    weight_decay: NonNegative = 0.0
    """Decay of matrices per step, as a multiple of the learning rate; biases and vectors do not decay."""


class SOAPSection(Section):
    """SOAP: Adam along the eigenvectors of each weight's mean gradient products (Vyas et al., arXiv:2409.11321).

    It asks for more time a step and memory than Adam, and for far fewer steps.
    """

    name: Literal["soap"]
    learning_rate: Positive = 3e-2
    """Learning rate after warm-up; 0.03 to 0.05 is good for MACE, NequIP and Allegro."""
    betas: tuple[Fraction, Fraction] = (0.95, 0.95)
    """Decay rates of the running means of the gradient and of its square."""
    epsilon: Positive = 1e-8
    """Added to the root of the mean square gradient."""
    weight_decay: NonNegative = 0.0
    """Decay of matrices per step, as a multiple of the learning rate; biases and vectors do not decay."""
    basis_decay: Fraction = 0.95
    """Decay rate of the running means of products of gradients, whose eigenvectors are the axes."""
    basis_interval: Count = 10
    """Steps from one update of the eigenvectors to the next."""
    largest_axis: Count = 512
    """Entries of a weight's axis up to which it has eigenvectors; longer ones are taken as they are."""


AnyOptimizer = AdamWSection | AdamSection | SOAPSection
OptimizerSection = Annotated[AnyOptimizer, Field(discriminator="name")]


def build_optimizer(section: AnyOptimizer, model: nn.Module) -> Optimizer:
    """The optimizer of the model's weights, fused where the device has it."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    fused = all(weight.device.type in ("cpu", "cuda") for weight in weights)
    rate, betas, epsilon = section.learning_rate, section.betas, section.epsilon
    if isinstance(section, AdamSection):
        return Adam(weights, lr=rate, betas=betas, eps=epsilon, amsgrad=section.amsgrad, fused=fused)
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": section.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if isinstance(section, AdamWSection):
        return AdamW(groups, lr=rate, betas=betas, eps=epsilon, amsgrad=section.amsgrad, fused=fused)
    return SOAP(
        groups,
        lr=rate,
        betas=betas,
        epsilon=epsilon,
        basis_decay=section.basis_decay,
        basis_interval=section.basis_interval,
        largest_axis=section.largest_axis,
    )
