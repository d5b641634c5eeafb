"""Energies of networks of CELU layers, one for each group of rows, with their gradient by the inputs.

    x_l = f(z_l),  z_l = W_l x_{l-1} + b_l,   e = w x_L + b,        G = de/dx_0:  d_L = w f'_L,  d_{l-1} = (d_l W_l) f'_{l-1}

For a loss with the derivatives E by e and V by G, gradients by all weights come of one pass up and one down:

    up:    t_0 = V,  u_l = W_l t_{l-1},  t_l = f'_l u_l
    down:  s_L = E w,  y_l = s_l f'_l + c_l d_l u_l,  s_{l-1} = y_l W_l
    by W_l:  y_l x_{l-1}^T + d_l t_{l-1}^T;      by b_l:  y_l;      by w:  E x_L + t_L;      by b:  E

With f(z) = max(0, z) + min(0, a (exp(z/a) - 1)), f' is 1 or (x + a)/a and c = f''/f' is 0 or 1/a, for x above and below 0.
`celu_networks.c` does it, on the CPU. N rows, I inputs, L hidden layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

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
    """Energies (N,) of the inputs (N, I), for which there must be native code.

    Weights and biases are those of all layers of the first group, and so on.
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
        weights, biases = weights_and_biases[:half], weights_and_biases[half:]
        found = native_networks.went_through(inputs, group, weights, biases, num_layers=num_layers, alpha=alpha)
        energies, gradients, ctx.networks = found  # type: ignore[attr-defined]
        ctx.context = context  # type: ignore[attr-defined]
        return energies, gradients

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        context: _Context = ctx.context  # type: ignore[attr-defined]
        if torch.is_grad_enabled():
            of_both, parameters = context.energies_and_gradients(), [*context.weights, *context.biases]
            return None, None, None, None, *torch.autograd.grad(of_both, parameters, upstream, create_graph=True)
        networks: native_networks.NativeNetworks = ctx.networks  # type: ignore[attr-defined]
        return None, None, None, None, *networks.weight_gradients(*upstream)
