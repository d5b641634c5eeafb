"""`FaultRecord`: the loss terms and gradient norms of the last steps, kept on the device, to find the first that is not finite.

T loss terms.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 1 << 15  # remembered: more than come between two looks at the loss


class Fault(NamedTuple):
    """What was not finite first."""

    step: int  # number of the batch, from 0
    what: str  # "the forces term of the loss", "the gradient"
    is_term: bool  # and not a gradient, which all processes share


class FaultRecord:
    """Writes a row a step, which waits for nothing; is read only once something has gone wrong."""

    def __init__(self, terms: Sequence[str], like: Tensor) -> None:
        self.terms = tuple(terms)
        self._rows = like.new_zeros(STEPS, len(self.terms) + 1)  # (STEPS, T + 1), the norm last
        self._first = self._next = 0  # steps that are remembered

    def note_terms(self, step: int, terms: Tensor) -> None:
        """Remember the terms (T,) of a step; its norm is finite until another is noted."""
        if step != self._next:  # the beginning, or a run that was resumed
            self._first = step
        self._next = step + 1
        row = self._rows[step % STEPS]
        row[:-1] = terms
        row[-1] = 0.0

    def note_norm(self, norm: Tensor) -> None:
        """Remember the norm of the gradient of the step whose terms came last."""
        self._rows[(self._next - 1) % STEPS, -1] = norm

    def first_fault(self) -> Fault | None:
        """The first step that is remembered and has something that is not finite."""
        steps = torch.arange(max(self._first, self._next - STEPS), self._next)
        wrong = ~torch.isfinite(self._rows.cpu()[steps % STEPS])  # (steps, T + 1)
        faulty = wrong.any(dim=1).nonzero().flatten().tolist()
        if not faulty:
            return None
        first = wrong[faulty[0]].tolist()
        names = [name for name, is_wrong in zip(self.terms, first[:-1], strict=True) if is_wrong]
        what = f"the {' and the '.join(names)} term of the loss" if names else "the gradient"
        return Fault(int(steps[faulty[0]]), what, bool(names))
