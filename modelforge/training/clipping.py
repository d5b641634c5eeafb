"""Gradient clipping: its sections, and the function that scales gradients down in place."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from modelforge.section import Positive, Section


class RunningNorm(Section):
    """Clip the norm of the gradient at a multiple of its running mean: one limit for all data sets and all of a run."""

    name: Literal["running_norm"] = "running_norm"
    factor: Annotated[float, Field(gt=1)] = 3.0
    """Largest norm, as a multiple of the running mean of the clipped norms."""


class FixedNorm(Section):
    """Clip the norm of the gradient at a fixed value."""

    name: Literal["fixed_norm"] = "fixed_norm"
    limit: Positive = 10.0
    """Largest norm."""


class NoClipping(Section):
    """Leave gradients as they are."""

    name: Literal["none"] = "none"


ClippingSection = Annotated[RunningNorm | FixedNorm | NoClipping, Field(discriminator="name")]


class Clipping:
    """Scales gradients down in place; the running mean stays on the device."""

    MEMORY = 0.98  # what the running mean keeps of itself at each step

    def __init__(self, section: RunningNorm | FixedNorm | NoClipping) -> None:
        self.section = section
        self.state: Tensor | None = None  # (2,) sum of norms and of weights, both fading

    def __call__(self, gradients: list[Tensor]) -> Tensor:
        """Clip in place; gives the norm before, ()."""
        norm: Tensor = torch.stack(torch._foreach_norm(gradients)).norm()
        if isinstance(self.section, NoClipping):
            return norm
        limit = torch.full_like(norm, self.section.limit) if isinstance(self.section, FixedNorm) else self._limit(norm)
        kept = torch.minimum(norm, limit)
        torch._foreach_mul_(gradients, kept / norm.clamp(min=1e-30))
        if isinstance(self.section, RunningNorm):
            assert self.state is not None
            newest = torch.stack([kept, torch.ones_like(kept)])
            self.state = self.MEMORY * self.state + (1 - self.MEMORY) * newest
        return norm

    def forget(self) -> None:
        """Begin the running mean anew: the gradient is another one from now on."""
        self.state = None

    def _limit(self, norm: Tensor) -> Tensor:
        assert isinstance(self.section, RunningNorm)
        self.state = torch.zeros(2, dtype=norm.dtype, device=norm.device) if self.state is None else self.state.to(norm)
        total, weight = self.state[0], self.state[1]
        return torch.where(total > 0, self.section.factor * total / weight.clamp(min=1e-12), norm)  # no norm so far, no limit
