"""Which labels there are: a label with a weight in the loss must be somewhere, and what is missing is said."""

from collections.abc import Iterator, Mapping

import numpy as np

from modelforge.data.sources.read_report import ReadReport
from modelforge.data.sources.source import DataSource
from modelforge.data.structures import Integers, Structures, subset_factors
from modelforge.errors import UserError

OPTIONS = {label: f"{label}_key" for label in ("energy", "forces", "stress", "dipole", "quadrupole", "partial_charges")}
MOMENTS = ("dipole", "quadrupole")


def require_labels(report: ReadReport, weights: Mapping[str, float]) -> None:
    """A label with a weight must be in the files; the error names the keys that are there."""
    problems = []
    for label, weight in weights.items():
        origins = report.origins_of(label)
        if not origins:
            expected = f"training.loss.{label}_weight is {weight:g}; name the key if there is one, or set the weight to 0"
            problems.append(f"dataset.{OPTIONS[label]}: missing, but {expected}")
        elif not any(origin.num_carriers or origin.num_incomplete for origin in origins):
            remedy = f"; name the right key, or set training.loss.{label}_weight = 0"
            problems.append(f"dataset.{origins[0].option}: {report.absence(origins[0])}{remedy}")
    if problems:
        raise UserError("\n".join(problems))


def require_training_labels(
    structures: Structures,
    training: Integers,
    report: ReadReport,
    weights: Mapping[str, float],
    subset_weights: Mapping[str, float],
) -> None:
    """A label with a weight must be in the training set, in a structure whose own weight is above 0."""
    factors = subset_factors(structures, subset_weights)
    weighing = training[structures.weight[training] * factors[structures.subset[training]] > 0]
    if not len(weighing):
        raise UserError("dataset.subset_weights: all training structures have the weight 0; give some of them another")
    for label, weight in weights.items():
        origin = report.origins_of(label)[0]
        if label in MOMENTS and not (~structures.periodic[weighing]).all(axis=1).any():
            raise UserError(
                f"training.loss.{label}_weight: is {weight:g}, but all structures of the training set are periodic, where a "
                f"{label} depends on the choice of the cell; set the weight to 0"
            )
        if not _any(structures, weighing, label):
            raise UserError(
                f"dataset.{origin.option}: {origin.key!r} is missing or NaN in all structures of the training set, but "
                f"training.loss.{label}_weight is {weight:g}; name another key, or set the weight to 0"
            )


def refuse_absent_keys(source: DataSource, report: ReadReport) -> None:
    """A key that the experiment names must be somewhere; that a usual one is nowhere means nothing."""
    named = {
        f"{table}{option}"
        for table, section in _sections(source)
        for option in section.model_fields_set
        if getattr(section, option) != type(section).model_fields[option].default  # a resolved experiment names them all
    }
    problems = [
        f"dataset.{origin.option}: {report.absence(origin)}; remove the key, or name another"
        for origin in report.origins
        if origin.option in named and not origin.num_carriers
    ]
    if problems:
        raise UserError("\n".join(problems))


def _sections(source: DataSource) -> Iterator[tuple[str, DataSource]]:
    """The sections whose keys name labels, with the table that they stand in below `[dataset]`."""
    sources = getattr(source, "sources", None)
    if isinstance(sources, Mapping):
        yield from ((f"sources.{name}.", section) for name, section in sources.items())
    else:
        yield "", source


def missing_label_notes(report: ReadReport) -> tuple[str, ...]:
    """How many structures have a key with NaN for its value, and which of several sources lacks a label of the others."""
    incomplete = (
        f"{origin.num_incomplete} structures have NaN for {origin.key!r}: taken as missing"
        for origin in report.origins
        if origin.num_incomplete
    )
    absent = (
        f"dataset.{origin.option}: {report.absence(origin)}"
        for label in OPTIONS
        for origin in report.origins_of(label)
        if not origin.num_carriers and any(other.num_carriers for other in report.origins_of(label))
    )
    return (*incomplete, *absent)


def _any(structures: Structures, training: Integers, label: str) -> bool:
    """Whether any training structure has a label, be it for some of its atoms."""
    if label == "forces":
        return any(piece.has_force.any() for piece in structures.taken(training))
    if label == "partial_charges":
        return any(np.isfinite(piece.partial_charges).any() for piece in structures.taken(training))
    usable = ~structures.periodic.any(axis=1) if label in MOMENTS else True
    return bool((structures.has(label) & usable)[training].any())
