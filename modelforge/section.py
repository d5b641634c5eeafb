"""Sections: typed, frozen tables of an experiment's TOML, each standing next to the code that it configures.

A field's type carries its range, `Unit` its unit, and the docstring line beneath it is its reference documentation
(shown by `modelforge describe` and in the JSON schema).
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Unit:
    """The unit of a number in a section, as metadata of its type."""

    name: str


class Section(BaseModel):
    """A table of the TOML: frozen, strict about unknown keys, documented by the docstrings of its fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
CountOrZero = Annotated[int, Field(ge=0, strict=True)]
Length = Annotated[float, Field(gt=0), Unit("angstrom")]
