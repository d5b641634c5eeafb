"""`Weights`: the arrays of a file, each of which has to be asked for: nothing is dropped in silence."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelforge.data.sources.read_report import did_you_mean
from modelforge.errors import UserError
from modelforge.importing.imported import Arrays

PREFIX = "w/"  # of the names of weights in a file
MOST_NAMES = 6  # that a message lists


class Weights:
    """Arrays by name, and which of them have been taken."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    @property
    def names(self) -> list[str]:
        """All names, also of those that have been taken."""
        return list(self._arrays)

    def take(self, name: str, *shape: int) -> Tensor:
        """The weights of that name, which must have this shape, as single or double precision."""
        array = self.take_any(name)
        if array.shape != shape:
            raise UserError(
                f"{PREFIX}{name}: must have the shape {shape} (has {array.shape}) by hyper; correct hyper, or write the "
                "weights of that very network"
            )
        return torch.from_numpy(array)

    def take_any(self, name: str) -> NDArray[np.floating[Any]]:
        """The weights of that name in whatever shape they have."""
        if name not in self._arrays:
            near = did_you_mean(name, list(self._arrays))
            raise UserError(f"{PREFIX}{name}: missing{near}; write the whole state_dict() of the network that hyper describes")
        array = self._arrays[name]
        if array.dtype.kind != "f":
            raise UserError(f"{PREFIX}{name}: must be real numbers (is {array.dtype}); write the weights as they are")
        if not np.isfinite(array).all():
            raise UserError(f"{PREFIX}{name}: must be finite, and has NaN or infinity; write another checkpoint of the network")
        self._taken.add(name)
        return np.array(array, dtype=np.float64 if array.dtype.itemsize > 4 else np.float32)

    def num_rows(self, name: str) -> int:
        """How many rows the weights of that name have, which must be at least one."""
        array = self.take_any(name)
        if array.size == 0 or array.ndim == 0:
            raise UserError(f"{PREFIX}{name}: must have rows (has the shape {array.shape}); write the weights as they are")
        return len(array)

    def take_layer(self, theirs: str, ours: str, num_in: int, num_out: int, *, bias: bool = True) -> dict[str, Tensor]:
        """A linear layer by our names; theirs is `<theirs>.weight` (out, in) and `<theirs>.bias`."""
        layer = {f"{ours}.weight": self.take(f"{theirs}.weight", num_out, num_in)}
        return layer | ({f"{ours}.bias": self.take(f"{theirs}.bias", num_out)} if bias else {})

    def refuse_rest(self, what: str) -> None:
        """Stop where there are weights that nothing has asked for; arrays without a number, as e3nn's, are none."""
        if rest := sorted(name for name in self._arrays.keys() - self._taken if self._arrays[name].size):
            listed = ", ".join(f"{PREFIX}{name}" for name in rest[:MOST_NAMES])
            more = f" and {len(rest) - MOST_NAMES} more" if len(rest) > MOST_NAMES else ""
            raise UserError(
                f"{listed}{more}: no part of {what}; a network with other parts than hyper says cannot be imported, so correct "
                "hyper, or import a network without them"
            )
