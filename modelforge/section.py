"""Sections: typed, frozen tables of an experiment's TOML, each standing next to the code that it configures.

A field's type carries its range, `Unit` its unit, and the docstring line beneath it is its reference documentation
(shown by `modelforge describe` and in the JSON schema). `PathText` marks paths: relative ones are relative to the TOML.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True)
class Unit:
    """The unit of a number in a section, as metadata of its type."""

    name: str

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core_schema), "x-unit": self.name}


@dataclass(frozen=True)
class IsPath:
    """Marks a text as a path or glob, as metadata of its type: loading makes it absolute.

    A default may contain `<name>`, which becomes the stem of the TOML's file name.
    """


class Section(BaseModel):
    """A table of the TOML: frozen, strict about unknown keys, documented by the docstrings of its fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )
    other_names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Keys as other packages call them, and as they are called here."""


Problem = tuple[str, str]
"""A dotted key, relative to the section that is checked, and what is wrong with it."""


class SectionError(ValueError):
    """Keys that do not go together; raised in a `model_validator`, reported with the place of each key.

    raise SectionError(("training.batch_size", "must not exceed ... (got 64)"))
    """

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(f"{key}: {message}" for key, message in problems))
        self.problems = problems


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
CountOrZero = Annotated[int, Field(ge=0, strict=True)]
Length = Annotated[float, Field(gt=0), Unit("angstrom")]
PathText = Annotated[str, Field(min_length=1), IsPath()]
