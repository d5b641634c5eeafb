"""`Finding`: one thing that an audit of labelled structures found wrong or odd."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["stop", "note"]


@dataclass(frozen=True)
class Finding:
    """Something that the user should change, or know."""

    severity: Severity  # "stop": training with it would be wasted
    key: str  # the TOML key that the remedy concerns, such as "dataset.energy_unit"
    message: str  # place, what was expected, what was found, remedy
