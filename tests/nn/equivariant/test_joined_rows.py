"""`joined` and `parted` against torch's own. About 0.1 s."""

import torch

from modelforge.nn.equivariant.joined_rows import joined, parted

LENGTHS = (1, 3, 2)


def test_parts_are_joined_and_parted_again_with_all_derivatives():
    parts = [torch.randn(length, 2, 3, dtype=torch.float64, requires_grad=True) for length in LENGTHS]
    whole = joined(parts)
    assert torch.equal(whole, torch.cat(parts))
    assert all(torch.equal(got, part) for got, part in zip(parted(whole, LENGTHS), parts, strict=True))
    assert torch.autograd.gradgradcheck(lambda *given: joined(given) ** 3, parts)
    assert torch.autograd.gradgradcheck(lambda given: tuple(part**3 for part in parted(given, LENGTHS)), whole)


def test_a_part_that_nothing_depends_on_has_no_slope():
    whole = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    _, used, _ = parted(whole, LENGTHS)
    (slope,) = torch.autograd.grad(used.sum(), whole)
    assert slope.sum(dim=1).tolist() == [0.0, 2.0, 2.0, 2.0, 0.0, 0.0]
