"""The audit of the sets of a run against each other: structures of other sets that training has seen, and repeated ones."""

from collections.abc import Mapping
from dataclasses import dataclass

from modelforge.data.audit.duplicates import SAME_SHAPE, Duplicates, Selection, duplicates_across, duplicates_within
from modelforge.data.audit.findings import Finding

TRAINING = "train"


@dataclass(frozen=True)
class Overlap:
    """How many structures of a set occur in the training set, or earlier in it for the training set itself."""

    num_structures: int
    num_exact: int
    num_near: int  # exact ones included
    num_searched: int  # for which near duplicates were looked for


@dataclass(frozen=True)
class SetsAudit:
    """Overlaps by name of the set, and what the user should know of them."""

    overlaps: dict[str, Overlap]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, dict[str, int]]:
        """The counts by set."""
        return {name: dict(vars(overlap)) for name, overlap in self.overlaps.items()}


def audit_sets(training: Selection, others: Mapping[str, Selection]) -> SetsAudit:
    """Look for structures of the training set in itself and in the other sets."""
    overlaps, findings = {}, []
    within = duplicates_within(training)
    overlaps[TRAINING] = _overlap(training, within)
    findings += _findings_within(training, within)
    for name, other in others.items():
        if len(other):
            found = duplicates_across(training, other)
            overlaps[name] = _overlap(other, found)
            findings += _findings_across(name, training, other, found)
    return SetsAudit(overlaps, tuple(findings))


def _overlap(selection: Selection, found: Duplicates) -> Overlap:
    return Overlap(len(selection), len(found.exact), len(found.near), found.num_searched)


def _findings_within(training: Selection, found: Duplicates) -> list[Finding]:
    if not len(found.exact):
        return []  # near duplicates inside a set are what trajectories consist of
    place = training.structures.place(int(found.exact[0]))
    message = f"{len(found.exact)} of the {len(training)} structures of the training set occur in it before, such as {place}"
    return [
        Finding(
            "note", "dataset.path", f"{message}; they count twice in the loss: remove them from the file if that is not meant"
        )
    ]


def _findings_across(name: str, training: Selection, other: Selection, found: Duplicates) -> list[Finding]:
    is_cut_out = other.structures is training.structures
    key = "dataset.split" if is_cut_out else f"dataset.test_paths.{name}"
    apart = "keep such structures together (dataset.group_key, split.strategy), or remove them"
    remedy = f"so its errors flatter; {apart if is_cut_out else 'remove them from one of the files'}"
    if len(found.exact):
        place = other.structures.place(int(found.exact[0]))
        message = f"{len(found.exact)} of the {len(other)} structures of the set {name!r} are also in the training set"
        return [Finding("note", key, f"{message}, such as {place}, {remedy}")]
    if not len(found.near):
        return []
    first = other.structures.place(int(found.near[0]))
    partner = training.structures.place(int(found.partner[0]))
    message = (
        f"{len(found.near)} of the {len(other)} structures of the set {name!r} are nearly in the training set (distances "
        f"within {SAME_SHAPE} angstrom, whatever the orientation and numbering), such as {first} and {partner}"
    )
    return [Finding("note", key, f"{message}, {remedy}")]
