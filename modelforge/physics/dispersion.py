"""The sections of the dispersion energy: which one, and with which parameters.

D3(BJ): Grimme et al., J. Chem. Phys. 132, 154104 (2010), and J. Comput. Chem. 32, 1456 (2011). Parameters of functionals
are those of tad-dftd3, which takes them from s-dftd3.
"""

import difflib
from importlib.resources import files
from typing import Annotated, Literal

import tomli
import torch
from pydantic import Field, model_validator

from modelforge.atoms.units import BOHR
from modelforge.errors import UserError
from modelforge.physics.d3 import Damping, d3_energy, refuse_missing_library
from modelforge.physics.pairs import Arrangements, FixedEnergy
from modelforge.section import Length, NonNegative, Section, SectionError, Unit

KEY = "potential.dispersion"
OWN = ("a1", "a2", "s8")


class NoDispersion(Section):
    """No dispersion besides what the network learns."""

    name: Literal["none"] = "none"


class D3BJ(Section):
    """The dispersion energy D3(BJ) of Grimme and others, not trained; needs `pip install modelforge[dispersion]`."""

    name: Literal["d3bj"] = "d3bj"
    method: str | None = None
    """Functional whose published parameters are used, such as b3lyp, pbe or wb97m; without it a1, a2 and s8 are needed."""
    a1: float | None = None
    """Scale of the damping radius."""
    a2: Annotated[float, Unit("bohr")] | None = None
    """Length that is added to the scaled damping radius."""
    s6: NonNegative | None = None
    """Scale of the terms in r^-6; without it that of the functional, or 1."""
    s8: float | None = None
    """Scale of the terms in r^-8."""
    s9: NonNegative = 0.0
    """Scale of the three-body term (Axilrod, Teller, Muto), for molecules only; D3(BJ) without further words means 0."""
    cutoff: Length = 60 * BOHR
    """Distance beyond which pairs are left out, by default 60 bohr as in s-dftd3; the energy jumps there, by very little."""

    @model_validator(mode="after")
    def _one_set_of_parameters(self) -> "D3BJ":
        own = {name: getattr(self, name) for name in (*OWN, "s6")}
        given = [name for name, value in own.items() if value is not None]
        if self.method is not None and given:
            raise SectionError(*((name, "has no effect together with method; remove one of them") for name in given))
        if self.method is None and not given:
            raise SectionError(("method", 'missing; name the functional of the labels, such as "pbe", or set a1, a2 and s8'))
        absent = [name for name in OWN if self.method is None and own[name] is None]
        if absent:
            raise SectionError(*((name, "missing; without method, a1, a2 and s8 have to be set") for name in absent))
        return self


DispersionSection = Annotated[NoDispersion | D3BJ, Field(discriminator="name")]


def dispersion_of(section: D3BJ, structures: Arrangements) -> FixedEnergy:
    """Energy, forces and stress of structures; a `UserError` where there are no parameters for them."""
    refuse_unusable(section, structures)
    return d3_energy(structures, damping_of(section), three_body=section.s9, cutoff=section.cutoff)


def refuse_unusable(section: D3BJ, *sets: Arrangements) -> None:
    """A `UserError` where the functional is unknown, the package is missing, or a structure is out of reach."""
    damping_of(section)
    for structures in sets if section.s9 else ():
        if structures.periodic.any():
            first = structures.place(int(structures.periodic.any(axis=1).argmax()))
            raise UserError(
                f"{KEY}.s9: the three-body term is for molecules only (got {section.s9:g}), but {first} is periodic; "
                "remove s9, or leave periodic structures out"
            )


def damping_of(section: D3BJ) -> Damping:
    """The parameters of the section, or of its functional; a `UserError` where the functional is unknown."""
    refuse_missing_library()
    if section.method is None:
        a1, a2, s8 = (float(getattr(section, name)) for name in OWN)
        return Damping(a1, a2, 1.0 if section.s6 is None else section.s6, s8)
    from tad_dftd3.param import get_functional_params

    try:
        found = get_functional_params(section.method, damping="bj", dtype=torch.float64)
    except (KeyError, ValueError):
        raise UserError(
            f"{KEY}.method: must be a functional with D3(BJ) parameters (got {section.method!r}; {_meant(section.method)}); "
            "or set a1, a2 and s8 instead"
        ) from None
    return Damping(*(float(found[name]) for name in ("a1", "a2", "s6", "s8")))


def _meant(method: str) -> str:
    """The functionals with a name like this one, or all."""
    table = tomli.loads(files("tad_dftd3.param").joinpath("parameters.toml").read_text(encoding="utf-8"))["parameter"]
    names = sorted(name for name, dampings in table.items() if "bj" in dampings.get("d3", {}))
    near = difflib.get_close_matches(method.lower().replace("-", ""), names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
