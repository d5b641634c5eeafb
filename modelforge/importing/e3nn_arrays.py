"""Arrays as e3nn keeps them: matrices of irreps in flat arrays, weights of paths in its order, coupling coefficients.

Its versions differ in the signs of some coefficients; where a file has coefficients, the signs that lead to ours are brought
into the weights. P paths, C channels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modelforge.errors import UserError
from modelforge.importing.weights import PREFIX, Weights
from modelforge.nn.equivariant.convolutions import Path
from modelforge.nn.equivariant.couplings import coupling
from modelforge.nn.equivariant.irreps import Irrep
from modelforge.nn.equivariant.unit_variance import ElementLinear, IrrepLinear

CLOSE = 1e-5  # of coefficients, relative to the largest: they may have been in single precision


def irrep_matrices(
    weights: Weights, theirs: str, ours: str, layer: IrrepLinear | ElementLinear, *, order: Sequence[Irrep] | None = None
) -> dict[str, Tensor]:
    """The weights of a layer by our names, from a flat array; `order` is that of its irreps there, where it is not ours."""
    irreps = layer.irreps if order is None else order
    shapes = [tuple(layer.weights[str(irrep)].shape) for irrep in irreps]
    sizes = [math.prod(shape) for shape in shapes]
    parts = torch.split(weights.take(f"{theirs}.weight", sum(sizes)), sizes)
    return {f"{ours}.weights.{irrep}": part.view(shape) for irrep, part, shape in zip(irreps, parts, shapes, strict=True)}


def path_weights(weights: Weights, theirs: str, radial: Tensor, paths: Sequence[Path], *, order: Sequence[Path]) -> Tensor:
    """Radial weights (.., P C) of the tensor product `theirs` in the order of our paths; `order` is the one they have."""
    signs = torch.tensor([_sign_of_path(weights, theirs, path) for path in paths], dtype=radial.dtype)
    columns = torch.unflatten(radial, 1, (len(paths), -1))[:, [order.index(path) for path in paths]]
    return (columns * signs[:, None]).flatten(1)


def _sign_of_path(weights: Weights, theirs: str, path: Path) -> float:
    """That of their coupling coefficients, where the file has them: the others are equal in all versions."""
    degrees = (path.source.degree, path.degree, path.target.degree)
    name = f"{theirs}._compiled_main_left_right._w3j_{'_'.join(map(str, degrees))}"
    if name not in weights:
        return 1.0
    ours = coupling(*degrees)
    coefficients = weights.take(name, *ours.shape).to(ours.dtype)
    signs = signs_between(coefficients[..., None], ours[..., None])
    if signs is None:
        raise UserError(f"{PREFIX}{name}: must be the coupling coefficients of e3nn; write the weights as they are")
    return float(signs)


def signs_between(theirs: Tensor, ours: Tensor) -> Tensor | None:
    """(.., P), (.., P) -> the sign of each column, if they differ in nothing else."""
    if theirs.shape != ours.shape:
        return None
    signs = (theirs * ours).flatten(0, -2).sum(dim=0).sign()
    return signs if torch.allclose(theirs, signs * ours, rtol=0.0, atol=CLOSE * float(ours.abs().max())) else None
