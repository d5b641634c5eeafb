"""SOAP: Adam along the axes in which the gradient's components are independent (Vyas et al., arXiv:2409.11321).

Of the gradient G of a matrix, L is the running mean of G G^T and R that of G^T G, with eigenvectors U and V. Adam's mean
squares and steps are those of U^T G V, where they say more than of G itself, and are turned back:
W <- W - lr U Adam(U^T G V) V^T. Tensors of more axes have such a basis for each; vectors, and axes of one entry or of very
many, have none, and with no basis at all it is Adam. The bases follow L and R by one power iteration every few steps, from the
axes of the weight on: they are near the eigenvectors after some dozens of steps, which are those of the warm-up.

Weights of equal shape are stacked and worked on together: a few batched operations in the place of many small ones.

K weights in a stack, of shape `shape`; n entries along an axis.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modelforge.training.precision import matmul_precision

Stack = list[Tensor]
# Along axes that no gradient ever has, as a few elements leave many, there is rounding alone, which Adam would enlarge to full
# steps: divisors are at least this part of their root mean square (float32 rounds to 1e-7 of the largest ones).
FLOOR = 1e-4
RESOLUTION = 1e-3  # part of a mean product's trace below which directions are not told apart: batches and rounding mix them


class SOAP(Optimizer):
    """Adam's running means and steps in bases that turn with the gradients."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        epsilon: float,
        basis_decay: float,
        basis_interval: int,
        largest_axis: int,
    ) -> None:
        """`groups`: parameters and `weight_decay` (times the learning rate, decoupled) of each.

        `betas`: decay of the running means of the gradient and of its square. `basis_decay`: that of the means L and R.
        `basis_interval`: steps from one power iteration to the next. `largest_axis`: entries of an axis that gets a basis.
        """
        options = {"lr": lr, "betas": betas, "epsilon": epsilon, "basis_decay": basis_decay}
        super().__init__(groups, {**options, "basis_interval": basis_interval, "largest_axis": largest_axis})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step against the gradients that the weights have; those without one stay, and count as gradients of zero."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with matmul_precision("highest"):  # the rounding of a faster one would be far above FLOOR and RESOLUTION
            for group in self.param_groups:
                for stack in _stacks(group["params"]):
                    if any(weight.grad is not None for weight in stack):
                        self._step_of(stack, group)
        return loss

    def _step_of(self, stack: Stack, group: dict[str, Any]) -> None:
        gradient = torch.stack([torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in stack])
        axes = [axis for axis in range(1, gradient.ndim) if 1 < gradient.shape[axis] <= group["largest_axis"]]
        axes = axes if gradient.ndim > 2 else []
        state = self.state[stack[0]]  # of the whole stack: torch keeps, saves and loads it by its first weight
        if not state:
            state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
            state.update({f"covariance_{axis}": _covariance(gradient, axis) for axis in axes})
            state.update({f"basis_{axis}": _first_basis(state[f"covariance_{axis}"]) for axis in axes})
        state["step"] += 1
        change = _change(state, gradient, axes, betas=group["betas"], epsilon=group["epsilon"])
        pairs = [pair for pair in zip(stack, change.unbind(), strict=True) if pair[0].grad is not None]
        weights, changes = [weight for weight, _ in pairs], [change for _, change in pairs]
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, changes, alpha=-group["lr"])
        for axis in axes:
            state[f"covariance_{axis}"].lerp_(_covariance(gradient, axis), 1.0 - group["basis_decay"])
        if axes and state["step"] % group["basis_interval"] == 0:
            _turn_bases(state, axes)


def _change(
    state: dict[str, Any], gradient: Tensor, axes: Sequence[int], *, betas: tuple[float, float], epsilon: float
) -> Tensor:
    """Adam's step at a rate of -1 in the bases, turned back, (K, *shape); brings the running means up to date."""
    bases, (beta, beta_of_square) = {axis: state[f"basis_{axis}"] for axis in axes}, betas
    turned = _turned(gradient, bases)
    state["mean"].lerp_(turned, 1.0 - beta)
    state["square"].mul_(beta_of_square).addcmul_(turned, turned, value=1.0 - beta_of_square)
    of_mean, of_square = 1.0 - beta ** state["step"], math.sqrt(1.0 - beta_of_square ** state["step"])  # both began with 0
    divisor = (state["square"].sqrt() / of_square).add_(epsilon)
    if axes:
        divisor += FLOOR * divisor.square().mean(dim=tuple(range(1, divisor.ndim)), keepdim=True).sqrt()
    return _turned(state["mean"] / divisor.mul_(of_mean), bases, back=True)


def _stacks(weights: Sequence[Tensor]) -> Iterator[Stack]:
    """Weights of equal shape and type together."""
    stacks: dict[tuple[Any, ...], Stack] = {}
    for weight in weights:
        stacks.setdefault((weight.shape, weight.dtype, weight.device), []).append(weight)
    yield from stacks.values()


def _turn_bases(state: dict[str, Any], axes: Sequence[int]) -> None:
    """Bring the bases up to date by a power iteration, and the running means into the new ones."""
    mean = _turned(state["mean"], {axis: state[f"basis_{axis}"] for axis in axes}, back=True)
    for axis in axes:
        basis, order = _power_iteration(state[f"covariance_{axis}"], state[f"basis_{axis}"])
        state[f"basis_{axis}"], square = basis, state["square"]
        places = order.reshape([-1, *[order.shape[1] if other == axis else 1 for other in range(1, square.ndim)]])
        state["square"] = square.gather(axis, places.expand_as(square))
    state["mean"] = _turned(mean, {axis: state[f"basis_{axis}"] for axis in axes})


def _power_iteration(covariance: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """A basis (K, n, n) nearer to the eigenvectors, and which column of the old one each is next to, (K, n).

    Directions without any gradient stay as they are, but for what makes them orthogonal to the others: they would turn with
    the rounding, and runs that agree to rounding would become different runs.
    """
    trace = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None]
    least = RESOLUTION * trace  # (K, 1)
    products = covariance @ basis
    eigenvalues = (basis * products).sum(dim=1).maximum(least)
    order = eigenvalues.argsort(dim=1, descending=True, stable=True)  # (K, n)
    columns = (products + least[:, :, None] * basis).gather(2, order[:, None, :].expand_as(basis))
    return torch.linalg.qr(columns).Q.contiguous(), order


def _first_basis(covariance: Tensor) -> Tensor:
    """One power iteration from the axes of the weight, (K, n, n)."""
    axes = torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device).expand_as(covariance)
    return _power_iteration(covariance, axes)[0]


def _covariance(gradient: Tensor, axis: int) -> Tensor:
    """Sum of g g^T over all lines g along an axis, (K, n, n)."""
    lines = _by_axis(gradient, axis)
    return lines.mT @ lines if lines.ndim == 3 else (lines @ lines.mT).sum(dim=1)


def _turned(values: Tensor, bases: dict[int, Tensor], *, back: bool = False) -> Tensor:
    """Values (K, *shape) in the bases (K, n, n) of some of their axes, or back from there."""
    for axis, basis in bases.items():
        lines = _by_axis(values, axis)
        columns = basis.mT if back else basis
        turned = lines @ columns if lines.ndim == 3 else columns.mT[:, None] @ lines
        values = turned.reshape(values.shape)
    return values


def _by_axis(values: Tensor, axis: int) -> Tensor:
    """(K, before, n) for the last axis, else (K, before, n, behind)."""
    num, size = values.shape[0], values.shape[axis]
    if axis == values.ndim - 1:
        return values.reshape(num, -1, size)
    return values.reshape(num, math.prod(values.shape[1:axis]), size, -1)
