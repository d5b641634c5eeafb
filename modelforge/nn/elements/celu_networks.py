"""Energies of networks of CELU layers, one for each group of rows, with their gradient by the inputs.

    x_l = f(z_l),  z_l = W_l x_{l-1} + b_l,   e = w x_L + b,        G = de/dx_0:  d_L = w f'_L,  d_{l-1} = (d_l W_l) f'_{l-1}

For a loss with the derivatives E by e and V by G, gradients by all weights come of one pass up and one down:

    up:    t_0 = V,  u_l = W_l t_{l-1},  t_l = f'_l u_l
    down:  s_L = E w,  y_l = s_l f'_l + c_l d_l u_l,  s_{l-1} = y_l W_l
    by W_l:  y_l x_{l-1}^T + d_l t_{l-1}^T;      by b_l:  y_l;      by w:  E x_L + t_L;      by b:  E

With f(z) = max(0, z) + min(0, a (exp(z/a) - 1)), f' is 1 or (x + a)/a and c = f''/f' is 0 or 1/a, for x above and below 0.
Where there is a compiler, `celu_networks.c` does it. N rows, I inputs, L hidden layers; P rows of a group, with some of zeros.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from modelforge.nn.branches import with_branch
from modelforge.nn.elements import native_networks

Plain = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Energies (N,) of inputs, weights and biases by operators that torch differentiates any number of times."""


def celu_energies(
    inputs: Tensor,
    group: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    num_layers: int,
    alpha: float,
    plain: Plain,
) -> Tensor:
    """Energies (N,) of the inputs (N, I) on the CPU; weights and biases are those of all layers of the first group, and so on.

    All groups have as many layers; the last one is linear, with one output.
    Values, first derivatives, and the weights' derivatives of those by the inputs are quick; others are those of `plain`.
    """
    context = _Context(inputs, weights, biases, plain)
    energies, gradients = _Networks.apply(context, group, num_layers, alpha, *weights, *biases)  # type: ignore[no-untyped-call]
    slopes = with_branch(gradients, inputs, context.curvature)
    return cast(Tensor, _Energies.apply(inputs, energies, slopes))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class _Context:
    """What the energies are a function of, and that function."""

    inputs: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    plain: Plain

    def energies_and_gradients(self) -> tuple[Tensor, Tensor]:
        """As the plain function has them."""
        energies = self.plain(self.inputs, self.weights, self.biases)
        return energies, torch.autograd.grad(energies.sum(), self.inputs, create_graph=True)[0]

    def curvature(self, directions: Tensor) -> Tensor:
        """Second derivatives by the inputs times a direction for each row, (N, I)."""
        is_differentiated = torch.is_grad_enabled()
        with torch.enable_grad():
            _, gradients = self.energies_and_gradients()
            return torch.autograd.grad(gradients, self.inputs, directions, create_graph=is_differentiated)[0]


# Energies depend on the inputs through their gradients, which are known. Energies and gradients depend on the weights through
# one node, to which both parts of a loss come, and the gradients on the inputs through a branch of their own.


class _Energies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, energies: Tensor, gradients: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(gradients)
        return energies.view_as(energies)

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradients,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return upstream[0][:, None] * gradients, upstream[0], None


class _Networks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, context: _Context, group: Tensor, num_layers: int, alpha: float, *weights_and_biases: Tensor
    ) -> tuple[Tensor, Tensor]:
        half, inputs = len(weights_and_biases) // 2, context.inputs
        go_through = native_networks.went_through if native_networks.is_native(inputs) else _all_went_through
        weights, biases = weights_and_biases[:half], weights_and_biases[half:]
        found = go_through(inputs, group, weights, biases, num_layers=num_layers, alpha=alpha)
        energies, gradients, ctx.networks = found  # type: ignore[attr-defined]
        ctx.context = context  # type: ignore[attr-defined]
        return energies, gradients

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        context: _Context = ctx.context  # type: ignore[attr-defined]
        if torch.is_grad_enabled():
            of_both, parameters = context.energies_and_gradients(), [*context.weights, *context.biases]
            return None, None, None, None, *torch.autograd.grad(of_both, parameters, upstream, create_graph=True)
        networks: native_networks.NativeNetworks | _Groups = ctx.networks  # type: ignore[attr-defined]
        return None, None, None, None, *networks.weight_gradients(*upstream)


def _all_went_through(
    inputs: Tensor, group: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, num_layers: int, alpha: float
) -> "tuple[Tensor, Tensor, _Groups]":
    """As `native_networks.went_through`, by operators of torch."""
    energies, gradients, networks = inputs.new_empty(inputs.shape[0]), torch.empty_like(inputs), []
    for first in range(0, len(weights), num_layers):
        rows, layers = (group == first // num_layers).nonzero()[:, 0], slice(first, first + num_layers)
        energy, gradient, network = _went_through(_filled(inputs, rows), weights[layers], biases[layers], alpha)
        energies.index_copy_(0, rows, energy[: rows.shape[0], 0])
        gradients.index_copy_(0, rows, gradient[: rows.shape[0]])
        networks.append((rows, network))
    return energies, gradients, _Groups(networks, alpha)


@dataclass(frozen=True, eq=False)
class _Groups:
    """The rows of each group, and its network."""

    networks: "list[tuple[Tensor, _Network]]"
    alpha: float

    def weight_gradients(self, by_energies: Tensor, by_gradients: Tensor) -> list[Tensor]:
        """As those of `NativeNetworks`."""
        of_weights, of_biases = [], []
        for rows, network in self.networks:
            parts = _filled(by_energies[:, None], rows), _filled(by_gradients, rows)
            by_weights, by_biases = _weight_gradients(network, *parts, self.alpha)
            of_weights += by_weights
            of_biases += by_biases
        return [*of_weights, *of_biases]


@dataclass(frozen=True, eq=False)
class _Network:
    """One group: its weights, and x_0 ... x_L and d_1 ... d_L of P rows."""

    weights: Sequence[Tensor]
    x: Sequence[Tensor]
    d: Sequence[Tensor]


def _went_through(
    inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], alpha: float
) -> tuple[Tensor, Tensor, _Network]:
    """Energies (P, 1), their gradients (P, I), and what the gradients by the weights need."""
    *hidden, last = weights
    x, d = [inputs], []
    for weight, bias in zip(hidden, biases, strict=False):
        x.append(torch.celu_(rows_times(x[-1], weight, bias), alpha))
    gradient = last.expand_as(x[-1])
    for weight, above in zip(hidden[::-1], x[:0:-1], strict=True):
        d.append(_times_slope(gradient, above, alpha))
        gradient = rows_times(d[-1], weight.T)
    return functional.linear(x[-1], last, biases[-1]), gradient, _Network(weights, x, d[::-1])


def _weight_gradients(
    network: _Network, by_energies: Tensor, by_gradients: Tensor, alpha: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients by all weights and by all biases of a network, by E (P, 1) and V (P, I)."""
    x, d, (*hidden, last) = network.x, network.d, network.weights
    t, u = [by_gradients], []
    for weight, above in zip(hidden, x[1:], strict=True):
        u.append(rows_times(t[-1], weight))
        t.append(_times_slope(u[-1], above, alpha))
    by_weights, by_biases = [by_energies.T @ x[-1] + t[-1].sum(dim=0)], [by_energies.sum(dim=0)]
    s = by_energies * last
    for place in reversed(range(len(hidden))):
        above = x[place + 1]
        # That backward function passes on what stands where x is between the two numbers.
        curved = torch.ops.aten.hardtanh_backward(d[place] * u[place], above, -math.inf, 0.0)
        y = _times_slope(s, above, alpha).add_(curved, alpha=1.0 / alpha)
        by_weights.append(rows_times(torch.cat([y, d[place]]).T, torch.cat([x[place], t[place]]).T))
        by_biases.append(y.sum(dim=0))
        s = rows_times(y, hidden[place].T) if place else s
    return by_weights[::-1], by_biases[::-1]


def _times_slope(values: Tensor, x: Tensor, alpha: float) -> Tensor:
    """The values times f', which x says."""
    return cast(Tensor, torch.ops.aten.elu_backward(values, alpha, 1.0, 1.0 / alpha, True, x))


def rows_times(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows matrix^T + bias, (P, I), (O, I), (O,) -> (P, O), by oneDNN where it can: MKL has half its speed on AMD."""
    if rows.dtype == torch.float32 and rows.shape[0] and rows.shape[1] and torch._C._has_mkldnn:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], ""))
    return functional.linear(rows, matrix, bias)


def _filled(values: Tensor, rows: Tensor) -> Tensor:
    """The values of rows (N, ...), then zeros, (P, ...)."""
    result = values.new_empty(_padded(rows.shape[0]), values.shape[1])
    torch.index_select(values, 0, rows, out=result[: rows.shape[0]])
    result[rows.shape[0] :].zero_()
    return result


def _padded(num_rows: int) -> int:
    """A number of rows that is not much larger: oneDNN makes a program for each size, and there should be few."""
    step = max(8, 1 << max(num_rows.bit_length() - 4, 0))
    return -(-num_rows // step) * step
