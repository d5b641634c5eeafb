"""What to put into the TOML, so that `modelforge check` reads exactly these files as they were read here."""

from collections.abc import Iterator
from math import ceil, floor, log10

import numpy as np

from modelforge.configuration.writing import toml_value
from modelforge.data.audit.audit import Audit
from modelforge.data.sources.source import DataSource
from modelforge.data.split import SplitSection, split
from modelforge.data.structures import Structures
from modelforge.errors import UserError
from modelforge.inspection.label_names import candidates
from modelforge.inspection.oddities import force_limit
from modelforge.inspection.reading import Look

FEWEST_GROUPS = 20  # below, whole groups cannot be shared out in the right proportions
TABLES = ("split", "filter", "self_energies", "subset_weights", "test_paths")


def toml_advice(found: Look, audit: Audit) -> tuple[str, ...]:
    """The lines of `[dataset]`, and of `[training.loss]` where its defaults ask for labels that are not there."""
    structures = found.opened.structures
    lines = ["[dataset]", *_options(found), *_candidate_lines(found)]
    lines.append('# test_paths = {test = "..."}  # files to test on that are not trained on')
    if any(finding.severity == "stop" for finding in audit.findings):
        lines.append('# audit = "report"  # without it the findings above stop the run')
    return (*lines, *_tables(found.source, structures, audit), *_loss(structures))


def _options(found: Look) -> Iterator[str]:
    """Everything that is not a default."""
    values = found.source.model_dump(mode="json", exclude_unset=True)
    yield f"name = {toml_value(values.pop('name'))}"
    paths = values.pop("path")
    if len(paths) == 1:
        yield f"path = {toml_value(paths[0])}"
    else:
        yield from ("path = [", *(f"    {toml_value(path)}," for path in paths), "]")
    for key, value in values.items():
        if key not in TABLES and value is not None:
            yield f"{key} = {toml_value(value)}{_remark(found, key)}"


def _remark(found: Look, key: str) -> str:
    if key in found.provisional:
        return "  # provisional: no file states it"
    if key in found.fitted:
        return "  # guessed: it fits the numbers"
    return "  # guessed by its name" if key in found.guessed else ""


def _candidate_lines(found: Look) -> Iterator[str]:
    """Options between which the names of the keys do not decide."""
    have = {origin.label for origin in found.opened.report.origins if origin.num_carriers}
    for label in ("energy", "forces", "stress"):
        fitting = candidates(found.opened.report, label, found.used_keys)
        if label not in have and len(fitting) > 1:
            yield f"# {label}: one of"
            yield from (f"#   {option} = {toml_value(key)}" for key, option in fitting.items())


def _tables(source: DataSource, structures: Structures, audit: Audit) -> Iterator[str]:
    given = source.model_dump(mode="json", exclude_unset=True)
    values = {name: dict(given[name]) for name in TABLES if given.get(name)}
    if any(finding.key == "dataset.filter.max_force" for finding in audit.findings):
        values.setdefault("filter", {}).setdefault("max_force", _rounded_up(force_limit(audit.figures)))
    if "split" not in values:
        values |= {"split": found} if (found := _split(structures)) else {}
    for name, entries in values.items():
        known = {key: value for key, value in entries.items() if value is not None}
        yield from ("", f"[dataset.{name}]", *(f"{key} = {toml_value(value)}" for key, value in known.items()))


def _split(structures: Structures) -> dict[str, object]:
    """The keys of a split that these structures allow, none where the default does."""
    if _groups_can_be_split(structures):
        return {"strategy": "group"}
    try:
        split(SplitSection(), structures, np.arange(len(structures)))
    except UserError:  # too few for a tenth of them
        return {"counts": [len(structures) - 1, 1, 0]} if len(structures) > 1 else {}
    return {}


def _groups_can_be_split(structures: Structures) -> bool:
    """Whether there are groups of several structures, and sets of whole groups would have all elements in training."""
    num_groups = len(np.unique(structures.group))
    if num_groups == len(structures) or num_groups < FEWEST_GROUPS:
        return False
    try:
        sets = split(SplitSection(strategy="group"), structures, np.arange(len(structures)))
    except UserError:
        return False
    trained, validated = (
        {int(z) for piece in structures.taken(some) for z in np.unique(piece.atomic_numbers)}
        for some in (sets.train, sets.validation)
    )
    return validated <= trained


def _loss(structures: Structures) -> Iterator[str]:
    """Labels that the loss asks for by default and that are not there."""
    absent = [label for label in ("energy", "forces") if not structures.has(label).any()]
    if len(absent) == 2:
        yield "# neither energies nor forces were found: nothing can be trained before their keys are named"
    elif absent:
        yield from ("", "[training.loss]", f"{absent[0]}_weight = 0.0  # no structure has {_words(absent[0])}")
    elif structures.has("stress").any():
        yield from ("", "# [training.loss]", "# stress_weight = 1.0  # to train on the stress too")


def _words(label: str) -> str:
    return "an energy" if label == "energy" else label


def _rounded_up(value: float) -> float:
    """Two digits are enough for a limit."""
    unit = 10.0 ** (floor(log10(value)) - 1)
    return ceil(value / unit - 1e-9) * unit
