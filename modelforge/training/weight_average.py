"""Average of the weights, used for validation and for the product: a fading one, or the plain mean of a second stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from modelforge.section import Section


class WeightAverageSection(Section):
    """Average of the weights over the last steps; it stands for a lower learning rate and is on by default."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """What the average keeps of itself at each step; 0 switches it off. Early on less is kept: (1 + t)/(10 + t)."""


class WeightAverage:
    """The averaged weights of a model, beside the raw ones."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.mean_of: int | None = None  # steps in a plain mean, once that has begun
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._names = list(trained)
        self._raw = [weight.detach() for weight in trained.values()]
        self._kept: list[Tensor] | None = None  # the raw weights while the averaged ones are in their place
        self._average = [weight.clone() for weight in self._raw] if decay else self._raw

    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        self.num_updates += 1
        if self.mean_of is not None:
            self.mean_of += 1
            torch._foreach_lerp_(self._average, self._raw, 1.0 / self.mean_of)
        elif self.decay:
            decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
            torch._foreach_lerp_(self._average, self._raw, 1.0 - decay)

    def begin_mean(self) -> None:
        """From now on the plain mean of the weights after each step; until the first of them the raw weights of now."""
        self.mean_of = 0
        self._average = [weight.clone() for weight in self._raw]

    @property
    def name(self) -> str:
        """Which weights these are."""
        return "SWA" if self.mean_of is not None else "EMA" if self.decay else "raw"

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its raw ones again after."""
        self._kept = [weight.clone() for weight in self._raw]
        torch._foreach_copy_(self._raw, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._raw, self._kept)
            self._kept = None

    def raw_weights(self) -> dict[str, Tensor]:
        """The raw weights by name, also while the averaged ones are in their place."""
        return dict(zip(self._names, self._kept or self._raw, strict=True))

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return dict(zip(self._names, self._average, strict=True))

    def load(self, weights: dict[str, Tensor], num_updates: int, mean_of: int | None = None) -> None:
        """Continue from averaged weights and the number of steps in them."""
        self.num_updates = num_updates
        if mean_of is not None:
            self.begin_mean()
            self.mean_of = mean_of
        if self.decay or mean_of is not None:
            torch._foreach_copy_(self._average, [weights[name] for name in self._names])
