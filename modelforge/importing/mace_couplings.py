"""The basis functions in a file of MACE, products of harmonics, against those of this package.

They are built of those of e3nn 0.4.4, some of which have the other sign, and may be a selection (`use_reduced_cg`). What
leads from them to ours is brought into the weights. P basis functions, n components of all harmonics.
"""

from itertools import permutations

import torch
from torch import Tensor

from modelforge.errors import UserError
from modelforge.importing.e3nn_arrays import CLOSE, signs_between
from modelforge.importing.weights import PREFIX, Weights
from modelforge.nn.equivariant.irreps import Irrep
from modelforge.nn.equivariant.product_basis import coupling_matrices

DEPENDENT = 1e-8  # singular values of functions that depend on others, relative to the largest


def change_of_basis(weights: Weights, name: str, irrep: Irrep, l_in: int, order: int) -> Tensor:
    """(P, their P): their functions as sums of ours; a sign each where they are the same functions."""
    ours = coupling_matrices(l_in, irrep.degree, order)
    theirs = torch.from_numpy(weights.take_any(name)).to(ours.dtype)
    theirs = theirs if irrep.degree else theirs[None]
    if theirs.shape[:-1] != ours.shape[:-1]:
        raise UserError(
            f"{PREFIX}{name}: must be products of {order} harmonics of degrees up to {l_in} by hyper; correct hyper"
        )
    signs = signs_between(theirs, ours)
    if signs is not None:
        return signs.diag()
    of_ours, of_theirs = (_symmetric(functions).flatten(0, -2) for functions in (ours, theirs))
    change: Tensor = torch.linalg.pinv(of_ours, rtol=DEPENDENT) @ of_theirs
    if not torch.allclose(of_ours @ change, of_theirs, rtol=0.0, atol=CLOSE * float(of_theirs.abs().max())):
        raise UserError(
            f"{PREFIX}{name}: must be couplings of harmonics as e3nn has them; write the weights of MACE as they are"
        )
    return change


def _symmetric(functions: Tensor) -> Tensor:
    """The same for any order of the factors, (2l+1, n, .., n, P): their product does not depend on it."""
    last = functions.ndim - 1
    return torch.stack([functions.permute(0, *order, last) for order in permutations(range(1, last))]).mean(dim=0)
