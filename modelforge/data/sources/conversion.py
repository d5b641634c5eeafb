"""From the units and signs of a file to eV, angstrom, forces and tension-positive stress."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from modelforge.atoms.unit_names import factor_of
from modelforge.data.sources.file_source import FileSource
from modelforge.data.structures import LABELS, Array, Floats, Structures, is_constant
from modelforge.errors import UserError

ATOMIC = {"energy": "hartree", "length": "bohr"}
FOLLOWING = {
    "forces": "{energy}/{length}",
    "stress": "{energy}/{length}/{length}/{length}",
    "virial": "{energy}",
    "dipole": "e*{length}",
    "quadrupole": "e*{length}*{length}",
}
"""Units of labels where nobody states them."""


def with_units(
    structures: Structures,
    section: FileSource,
    *,
    stated: Mapping[str, str] | None = None,
    usual: Mapping[str, str] | None = None,
    place: str,
) -> tuple[Structures, dict[str, str]]:
    """Structures in units of the file become ones in eV and angstrom, forces and stress with our signs; units by label.

    The column of forces may hold gradients, and that of stresses virials, where the section has such a key. `stated` are
    the units that the file states (for "length" and labels), `usual` those of its layout where it states none.
    """
    stated = stated or {}
    usual = {**_following(section, stated, usual or {}), **(usual or {})}
    found = {
        label: section.unit_of(label, stated=stated.get(label, ""), usual=usual.get(label, ""), place=place)
        for label in ("length", *unit_labels(section))
    }
    factors = {label: factor for label, (factor, _) in found.items()}
    length = factors["length"]
    factors |= {"positions": length, "cell": length}
    factors["forces"] = factors.get("forces", 1.0) * (-1.0 if section.gradient_key else 1.0)
    factors["stress"] = factors.get("stress", 1.0) * (-1.0 if section.stress_convention == "compression_positive" else 1.0)
    converted = structures.with_columns(lambda name, values: _scaled(values, factors.get(name, 1.0)))
    if section.virial_key:
        virial = structures.stress * factors["virial"]
        converted = replace(converted, stress=_stress_of(virial, converted, key=section.virial_key, place=place))
    units = {label: name for label, (_, name) in found.items()}
    return converted, units | ({"stress": units["virial"]} if section.virial_key else {})


def unit_labels(section: FileSource) -> tuple[str, ...]:
    """The labels that a section asks for and that have a unit."""
    asked = {option.removesuffix("_key") for option in section.label_keys()}
    labels = [label for label in LABELS if label in asked]
    if "gradient" in asked:
        labels.append("forces")
    return (*labels, "virial") if "virial" in asked else tuple(labels)


def _following(section: FileSource, stated: Mapping[str, str], usual: Mapping[str, str]) -> dict[str, str]:
    """The units that follow from those of energy and length where a file states one of these, by label."""
    if not (stated.get("energy") or stated.get("length")):
        return {}  # those that follow from the section
    texts = {
        quantity: stated.get(quantity) or getattr(section, f"{quantity}_unit") or usual.get(quantity, "") for quantity in ATOMIC
    }
    units = {quantity: _simple(text, quantity) for quantity, text in texts.items()}
    found = {label: form.format(**units) for label, form in FOLLOWING.items() if all(units[q] for q in ATOMIC if q in form)}
    return {label: unit for label, unit in found.items() if _is_unit(unit, label)}


def _simple(text: str, quantity: str) -> str:
    """A unit such that more can be appended to it."""
    return ATOMIC[quantity] if text.lower() in ("au", "a.u.", "atomic") else text.strip().strip("()")


def _is_unit(text: str, label: str) -> bool:
    try:
        factor_of(text, label)
    except ValueError:
        return False
    return True


def _scaled(values: Array, factor: float) -> Array:
    """A column times a factor; columns in which everything is missing stay without memory."""
    return values if is_constant(values) or factor == 1.0 else values * factor


def _stress_of(virial: Floats, structures: Structures, *, key: str, place: str) -> Floats:
    """Stresses (S, 3, 3) of virials in eV: minus the virial over the volume."""
    volumes = np.abs(np.linalg.det(structures.cell))
    has = np.isfinite(virial).all(axis=(1, 2))
    for structure in np.flatnonzero(has & (volumes == 0)).tolist():
        raise UserError(f"{place}: structure {structures.index_in_file[structure]}: has a {key}, but no cell; remove one")
    stress: Floats = -virial / np.where(volumes > 0, volumes, np.nan)[:, None, None]
    return stress
