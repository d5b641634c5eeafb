"""Units that follow from others: those of forces from the units of energy and length, and so on."""

from collections.abc import Collection, Mapping

from modelforge.atoms.unit_names import factor_of
from modelforge.data.sources.conversion import unit_labels
from modelforge.data.sources.file_source import FileSource
from modelforge.errors import UserError

DERIVED = {
    "forces": "{energy}/{length}",
    "stress": "{energy}/{length}/{length}/{length}",
    "virial": "{energy}",
    "dipole": "e*{length}",
    "quadrupole": "e*{length}*{length}",
}
ATOMIC = {"energy": "hartree", "length": "bohr"}


def usual_units(
    section: FileSource, *, present: Collection[str], stated: Mapping[str, str], layout: Mapping[str, str], place: str
) -> dict[str, str]:
    """The unit of each label where neither the file nor the experiment states it.

    That of the forces is the energy over the length, in the units in which this file has these, whoever states them. A
    unit of a label that is present and cannot be known is a `UserError`.
    """
    usual = {**layout} if "energy" in present else {"energy": "eV", **layout}  # of nothing, it does not matter
    for label in unit_labels(section):
        if label in DERIVED and label in present and label not in stated and not getattr(section, f"{label}_unit", None):
            needed = [quantity for quantity in ATOMIC if f"{{{quantity}}}" in DERIVED[label]]
            units = {quantity: _unit_of(section, quantity, stated, layout, place) for quantity in needed}
            usual[label] = DERIVED[label].format(**units)
            _check(usual[label], label, place)
    return usual


def _unit_of(section: FileSource, quantity: str, stated: Mapping[str, str], layout: Mapping[str, str], place: str) -> str:
    """The name of the unit of energy or length."""
    text = stated.get(quantity) or getattr(section, f"{quantity}_unit") or layout.get(quantity, "")
    section.unit_of(quantity, stated=stated.get(quantity, ""), usual=text, place=place)  # says what is wrong, or missing
    return ATOMIC[quantity] if text.lower() in ("au", "a.u.", "atomic") else text


def _check(unit: str, label: str, place: str) -> None:
    """A unit that is put together of odd names may be none."""
    try:
        factor_of(unit, label)
    except (ValueError, OverflowError) as error:
        option = f"dataset.{label}_unit" if label != "virial" else "dataset.energy_unit"
        raise UserError(f"{place}: {label}: {error}; state the unit in {option}") from None
