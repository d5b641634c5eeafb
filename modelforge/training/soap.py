"""SOAP: Adam along the axes in which the gradient's components are independent (Vyas et al., arXiv:2409.11321).

Of the gradient G of a matrix, L is the running mean of G G^T and R that of G^T G, with eigenvectors U and V. Adam's mean
squares and steps are those of U^T G V, where they say more than of G itself, and are turned back:
W <- W - lr U Adam(U^T G V) V^T. Tensors of more axes have such a basis for each; vectors, and axes of one entry or of very
many, have none, and with no basis at all it is Adam. The bases follow L and R by one power iteration every few steps, from the
axes of the weight on: they are near the eigenvectors after some dozens of steps, which are those of the warm-up.

The weights of a potential are small and many: calls would take longer than the arithmetic. So the values of all weights lie one
after the other, and Adam is a few operations on all of them; weights of equal shape are turned together, through buffers whose
views are made once; bases of equal size lie together as well, and follow together.

V values of all weights; K weights of one shape, n entries along an axis, r along its other axes; M bases of one size.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modelforge.training.precision import matmul_precision

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
        self._groups: dict[int, _Group] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also what a loaded state goes through: the next step takes its values over."""
        super().__setstate__(state)
        self._groups = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step against the gradients that the weights have.

        A weight without one stays, and counts as one with a gradient of zero, unless its whole group has none.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with matmul_precision("highest"):  # the rounding of a faster one would be far above FLOOR and RESOLUTION
            for number, options in enumerate(self.param_groups):
                if any(weight.grad is not None for weight in options["params"]):
                    if number not in self._groups:
                        self._groups[number] = _Group(options, self.state)
                    self._groups[number].step(options)
        return loss


class _Group:
    """The weights of a parameter group: what is known of each value, one after the other, and stacks that have views of it."""

    def __init__(self, options: Mapping[str, Any], state: Mapping[Tensor, dict[str, Any]]) -> None:
        """`state`: of the optimizer, held by the first weight of each stack; what it has already is taken over."""
        largest = options["largest_axis"]
        stacks = sorted(_stacks(options["params"]), key=lambda stack: not _axes_with_basis(stack[0], largest))
        sizes = [len(stack) * stack[0].numel() for stack in stacks]
        like = stacks[0][0].detach()
        self.mean, self.square, self.gradient, self.turned = (like.new_zeros(sum(sizes)) for _ in range(4))  # (V,) each
        scratch = (like.new_empty(max(sizes)), like.new_empty(max(sizes)))
        self.states = [state[stack[0]] for stack in stacks]
        self.num_steps = max(known.get("step", 0) for known in self.states)
        self.weights = [weight for stack in stacks for weight in stack]
        self.places: list[Tensor] = []  # of each weight's gradient, and then of its change
        self.stacks: list[_Stack] = []  # those that have bases, whose values come first
        self.bases: dict[int, list[_Basis]] = {}  # by size
        end = 0
        for stack, known, size in zip(stacks, self.states, sizes, strict=True):
            part = slice(end, end := end + size)
            shape = (len(stack), *stack[0].shape)
            views = [buffer[part].view(shape) for buffer in (self.mean, self.square, self.gradient, self.turned)]
            _take_over(known, {"mean": views[0], "square": views[1]})
            self.places += views[2].unbind()
            if axes := _axes_with_basis(stack[0], largest):
                bases = {axis: _Basis(shape[0], shape[axis], like) for axis in axes}
                for axis, basis in bases.items():
                    _take_over(known, {f"covariance_{axis}": basis.covariance, f"basis_{axis}": basis.columns})
                    self.bases.setdefault(basis.size, []).append(basis)
                self.stacks.append(_Stack(bases, *views, scratch=scratch))
        self.num_turned = sum(stack.mean.numel() for stack in self.stacks)

    def step(self, options: Mapping[str, Any]) -> None:
        """A step of all weights that have a gradient."""
        (beta, beta_of_square), basis_decay = options["betas"], options["basis_decay"]
        self._read_gradients()
        if self.num_steps == 0:  # bases of the first gradient
            for stack in self.stacks:
                stack.turn_gradient(basis_decay=0.0)
            self._let_bases_follow()
        self.num_steps += 1
        for stack in self.stacks:
            stack.turn_gradient(basis_decay)
        self.turned[self.num_turned :] = self.gradient[self.num_turned :]
        self.mean.lerp_(self.turned, 1.0 - beta)
        self.square.mul_(beta_of_square).addcmul_(self.turned, self.turned, value=1.0 - beta_of_square)
        of_mean, of_square = 1.0 - beta**self.num_steps, 1.0 - beta_of_square**self.num_steps  # both began with 0
        divisor = torch.sqrt(self.square, out=self.gradient).div_(math.sqrt(of_square)).add_(options["epsilon"])
        for stack in self.stacks:
            stack.raise_divisor()
        torch.div(self.mean, divisor, out=self.turned)
        for stack in self.stacks:
            stack.turn_back()
        self.gradient[self.num_turned :] = self.turned[self.num_turned :]
        self._change_weights(options["lr"] / of_mean, shrink=options["lr"] * options["weight_decay"])
        if self.num_steps % options["basis_interval"] == 0:
            self._let_bases_follow()
        for known in self.states:
            known["step"] = self.num_steps

    def _read_gradients(self) -> None:
        """Gradients of all weights into their places."""
        if any(weight.grad is None for weight in self.weights):
            self.gradient.zero_()
        pairs = [
            (place, weight.grad) for place, weight in zip(self.places, self.weights, strict=True) if weight.grad is not None
        ]
        torch._foreach_copy_([place for place, _ in pairs], [gradient for _, gradient in pairs])

    def _change_weights(self, rate: float, *, shrink: float) -> None:
        """Add the changes, which are in the gradients' places, to the weights that have a gradient."""
        pairs = [pair for pair in zip(self.weights, self.places, strict=True) if pair[0].grad is not None]
        weights, changes = [weight for weight, _ in pairs], [change for _, change in pairs]
        if shrink:
            torch._foreach_mul_(weights, 1.0 - shrink)
        torch._foreach_add_(weights, changes, alpha=-rate)

    def _let_bases_follow(self) -> None:
        """Bring the bases up to date by a power iteration, and the running means into the new ones."""
        for bases in self.bases.values():
            _follow(bases)
        for stack in self.stacks:
            stack.turn_means()
        self.mean[: self.num_turned] = self.turned[: self.num_turned]


class _Basis:
    """The bases of an axis of the weights of a stack."""

    def __init__(self, num: int, size: int, like: Tensor) -> None:
        """At first the axes of the weights."""
        self.size = size
        self.covariance = like.new_zeros(num, size, size)  # (K, n, n) running mean of L or R
        self.columns = torch.eye(size, dtype=like.dtype, device=like.device).repeat(num, 1, 1)  # (K, n, n) eigenvectors
        self.rows = self.columns.mT
        self.turn = torch.empty_like(self.columns)  # (K, n, n) into this basis from the one before
        self.order = torch.zeros(num, size, dtype=torch.long, device=like.device)  # (K, n) which of its columns each is next to


class _Stack:
    """Weights of equal shape, whose values are turned by products with the bases of their axes.

    A product takes the first axis to the last place, so that after all axes each is where it was. An axis without basis is
    only moved.
    """

    def __init__(
        self,
        bases: Mapping[int, _Basis],
        mean: Tensor,
        square: Tensor,
        gradient: Tensor,
        turned: Tensor,
        *,
        scratch: tuple[Tensor, Tensor],
    ) -> None:
        """`bases` by axis; `mean`, `square`, `gradient`, `turned`: (K, *shape), `scratch`: for values between two products."""
        self.mean, self.square, self.of_bases = mean, square, bases
        self.divisor = gradient.flatten(1)  # (K, values of a weight)
        axes = [axis for axis in range(1, mean.ndim) if mean.shape[axis] > 1]
        self.bases = [bases.get(axis) for axis in axes]
        sizes = [mean.shape[axis] for axis in axes]
        self.there, self.back, self.over = (
            _way(sizes, source, target, scratch) for source, target in ((gradient, turned), (turned, gradient), (mean, turned))
        )

    def turn_gradient(self, basis_decay: float) -> None:
        """The gradient into the bases, and its products into their running means.

        Products along an axis are the same before and after other axes are turned.
        """
        for (lines, place), basis in zip(self.there, self.bases, strict=True):
            if basis is not None:
                basis.covariance.baddbmm_(lines.mT, lines, beta=basis_decay, alpha=1.0 - basis_decay)
            _multiply(lines, None if basis is None else basis.columns, place)

    def turn_back(self) -> None:
        """What is turned along the axes of the weights again, in the place of the gradient."""
        for (lines, place), basis in zip(self.back, self.bases, strict=True):
            _multiply(lines, None if basis is None else basis.rows, place)

    def raise_divisor(self) -> None:
        """No divisor, in the place of the gradient, is far below those of its weight."""
        norms = torch.linalg.vector_norm(self.divisor, dim=1, keepdim=True)
        self.divisor.add_(norms, alpha=FLOOR / math.sqrt(self.divisor.shape[1]))

    def turn_means(self) -> None:
        """The mean gradient from the bases before into those of now, in the place of the turned one; its square in order."""
        for (lines, place), basis in zip(self.over, self.bases, strict=True):
            _multiply(lines, None if basis is None else basis.turn, place)
        square = self.square
        for axis, basis in self.of_bases.items():
            places = basis.order.reshape([-1, *[basis.size if other == axis else 1 for other in range(1, square.ndim)]])
            square = square.gather(axis, places.expand_as(square))
        self.square.copy_(square)


def _stacks(weights: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """Weights of equal shape together."""
    stacks: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        stacks.setdefault(weight.shape, []).append(weight)
    return stacks.values()


def _axes_with_basis(weight: Tensor, largest: int) -> list[int]:
    """Axes, from 1, that have more than one entry and not too many; vectors have none."""
    return [axis for axis, size in enumerate(weight.shape, start=1) if 1 < size <= largest] if weight.ndim > 1 else []


def _take_over(known: dict[str, Any], places: Mapping[str, Tensor]) -> None:
    """From now on a state has these tensors, with the values that it had before, if any."""
    for name, place in places.items():
        if name in known:
            assert known[name].shape == place.shape, f"{name} of other weights"
            place.copy_(known[name])
        known[name] = place


def _way(sizes: Sequence[int], source: Tensor, target: Tensor, scratch: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each axis the lines along it and the place of their products, both (K, r, n): from source over scratch to target."""
    between = [scratch[number % 2][: source.numel()] for number in range(len(sizes) - 1)]
    values, num = [source, *between, target], len(source)
    return [
        (before.view(num, size, -1).mT, after.view(num, -1, size))
        for size, before, after in zip(sizes, values[:-1], values[1:], strict=True)
    ]


def _multiply(lines: Tensor, matrices: Tensor | None, place: Tensor) -> None:
    """Lines (K, r, n) times matrices (K, n, n), into their place; without matrices they are only moved there."""
    if matrices is None:
        place.copy_(lines)
    else:
        torch.bmm(lines, matrices, out=place)


def _follow(bases: Sequence[_Basis]) -> None:
    """A power iteration of bases of one size."""
    before = torch.cat([basis.columns for basis in bases])
    columns, order = _power_iteration(torch.cat([basis.covariance for basis in bases]), before)
    turns, end = before.mT @ columns, 0
    for basis in bases:
        part = slice(end, end := end + len(basis.columns))
        basis.columns.copy_(columns[part])
        basis.turn.copy_(turns[part])
        basis.order.copy_(order[part])


def _power_iteration(covariance: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """A basis (M, n, n) nearer to the eigenvectors, and which column of the old one each is next to, (M, n).

    Directions without any gradient stay as they are, but for what makes them orthogonal to the others: they would turn with
    the rounding, and runs that agree to rounding would become different runs.
    """
    trace = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None]
    least = RESOLUTION * trace  # (M, 1)
    products = covariance @ basis
    eigenvalues = (basis * products).sum(dim=1).maximum(least)
    order = eigenvalues.argsort(dim=1, descending=True, stable=True)  # (M, n)
    columns = (products + least[:, :, None] * basis).gather(2, order[:, None, :].expand_as(basis))
    return torch.linalg.qr(columns).Q, order
