"""`[training] freeze`: weights that stay as they are, without gradient, and so without optimizer, average and clipping."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from modelforge.data.sources.read_report import did_you_mean
from modelforge.errors import UserError

KEY = "training.freeze"
POTENTIAL = "potential."  # where the network stands in an energy model; names go without


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze what the patterns name: weights, or modules with all that is in them; `*` stands for anything."""
    weights = {name.removeprefix(POTENTIAL): weight for name, weight in model.named_parameters()}
    for pattern in patterns:
        chosen = [name for name in weights if any(fnmatchcase(part, pattern) for part in _names_of(name))]
        if not chosen:
            raise UserError(f"{KEY}: {_nothing_matches(pattern, list(weights))}")
        for name in chosen:
            weights[name].requires_grad_(False)
    if not any(weight.requires_grad for weight in weights.values()):
        raise UserError(f"{KEY}: must leave some weights to be trained ({', '.join(patterns)} are all of them); remove some")


def num_trained(model: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _names_of(name: str) -> Iterator[str]:
    """A weight's own name, and those of the modules that it is in."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _nothing_matches(pattern: str, weights: Sequence[str]) -> str:
    names = list(dict.fromkeys(part for name in weights for part in _names_of(name)))
    modules = ", ".join(name for name in names if "." not in name)
    near = did_you_mean(pattern, names) or f"; its modules are {modules}"
    return f"{pattern!r} must be the name of a module or weight of the potential, or a pattern that some have{near}"
