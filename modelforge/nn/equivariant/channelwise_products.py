"""Products of a tensor with an environment, channel by channel, read backwards: from what is read of the result.

    product:  V'_ocu = sum_p W_pu sqrt(2 l_o + 1) sum_ab C_abc V_sau G_lbu       for paths p = (s, l, o)

with Clebsch-Gordan coefficients C of norm 1. It is linear in V, so that what a sum of r_cu V'_cu reads of V' can be read of V:
by r'_au = sum_p W_pu sqrt(2 l_o + 1) sum_bc C_abc G_bu r_cu. Where many tensors have one environment, r' is all there is to do.
Few of the coefficients are not zero: on the CPU only these are used, elsewhere products of matrices.

N atoms, U channels, P paths; A components of tensors V, B of environments G, C of results V', R = sum of those of V over paths.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modelforge.nn.equivariant.convolutions import Path
from modelforge.nn.equivariant.coupled_products import Couplings, coupled_product, is_native
from modelforge.nn.equivariant.couplings import coupling
from modelforge.nn.equivariant.irreps import Irrep, blocks, irreps_of_product, natural_irreps, num_components

SCALAR = Irrep(0, 1)


def product_paths(sources: Sequence[Irrep], targets: Sequence[Irrep], *, l_max: int) -> list[Path]:
    """All that there are, by target, source, degree of the environment."""
    return [
        Path(source, natural.degree, target)
        for target in targets
        for source in sources
        for natural in natural_irreps(l_max)
        if target in irreps_of_product(source, natural)
    ]


class ChannelwiseProduct(nn.Module):
    """The products of the module's docstring, over all paths between some irreps by environments of degrees 0 to l_max."""

    coefficients: Tensor  # (R, B C) components of the sources, path by path
    source_of_row: Tensor  # (A, R) 1 where a row is of that component
    path_of_row: Tensor  # (R, P) 1 where a row is of that path
    scalar_coefficients: Tensor  # (A, B) of the paths to the scalar
    scalar_paths: Tensor  # (A, P)

    def __init__(self, sources: Sequence[Irrep], targets: Sequence[Irrep], *, l_max: int, num_channels: int) -> None:
        """One number of channels for the weights of each path, or for one channel the same weight in all."""
        super().__init__()
        self.paths = product_paths(sources, targets, l_max=l_max)
        self.weights = nn.Parameter((2.0 * torch.rand(len(self.paths), num_channels) - 1.0) * 3.0**0.5)
        self.sources, self.targets, self.l_max = list(sources), list(targets), l_max
        tables = self.path_coefficients()
        self.couplings = Couplings(tables)
        path, component = tables.flatten(2).abs().sum(dim=2).nonzero(as_tuple=True)  # (R,)
        buffers = {
            "coefficients": tables[path, component].flatten(1),
            "source_of_row": component == torch.arange(tables.shape[1])[:, None],
            "path_of_row": path[:, None] == torch.arange(tables.shape[0]),
            "scalar_coefficients": tables[:, :, :, 0].sum(dim=0),
            "scalar_paths": tables[:, :, :, 0].abs().sum(dim=2).T > 0,
        }
        for name, values in buffers.items():
            self.register_buffer(name, values.double(), persistent=False)

    def path_coefficients(self) -> Tensor:
        """sqrt(2 l_o + 1) C of each path in double precision, (P, A, B, C)."""
        of_sources = dict(zip(self.sources, blocks(self.sources), strict=True))
        of_targets = dict(zip(self.targets, blocks(self.targets), strict=True))
        sizes = (num_components(self.sources), (self.l_max + 1) ** 2, num_components(self.targets))
        tables = torch.zeros(len(self.paths), *sizes, dtype=torch.float64)
        for table, (source, degree, target) in zip(tables, self.paths, strict=True):
            values = target.dimension**0.5 * coupling(source.degree, degree, target.degree)
            table[of_sources[source], degree**2 : (degree + 1) ** 2, of_targets[target]] = values
        return tables

    def scalar(self, environment: Tensor) -> Tensor:
        """What reads the scalar of the results, the first of their components; (B, N, U) -> (A, N, U)."""
        coefficients, paths = self.scalar_coefficients.to(environment.dtype), self.scalar_paths.to(environment.dtype)
        rows = coefficients @ environment.flatten(1)
        return rows.view(-1, *environment.shape[1:]) * (paths @ self.weights)[:, None]

    def before(self, reading: Tensor, environment: Tensor) -> Tensor:
        """What reads the same of the sources as this of the results; (C, N, U), (B, N, U) -> (A, N, U)."""
        if is_native(environment):
            weights = self.weights.expand(-1, environment.shape[2])
            return coupled_product(self.couplings, 0, [environment, reading], weights)
        products = (environment[:, None] * reading).flatten(0, 1).flatten(1)  # (B C, N U)
        tables = (table.to(reading.dtype) for table in (self.coefficients, self.path_of_row, self.source_of_row))
        coefficients, path_of_row, source_of_row = tables
        rows = (coefficients @ products).view(-1, *reading.shape[1:])  # (R, N, U)
        weighted = rows * (path_of_row @ self.weights)[:, None]
        return (source_of_row @ weighted.flatten(1)).view(-1, *reading.shape[1:])
