"""Optimizers: their sections, and what these build."""

from typing import Annotated, Literal

from pydantic import Field
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from modelforge.section import Fraction, NonNegative, Positive, Section


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


OptimizerSection = Annotated[AdamWSection | AdamSection, Field(discriminator="name")]


def build_optimizer(section: AdamSection | AdamWSection, model: nn.Module) -> Optimizer:
    """The optimizer of the model's weights, fused where the device has it."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    fused = all(weight.device.type in ("cpu", "cuda") for weight in weights)
    if isinstance(section, AdamSection):
        return Adam(
            weights,
            lr=section.learning_rate,
            betas=section.betas,
            eps=section.epsilon,
            amsgrad=section.amsgrad,
            fused=fused,
        )
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": section.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(
        groups, lr=section.learning_rate, betas=section.betas, eps=section.epsilon, amsgrad=section.amsgrad, fused=fused
    )
