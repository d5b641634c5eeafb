"""Coulomb energy of partial charges over all pairs, or up to a cutoff. S structures, L far edges."""

from typing import Literal

from modelforge.section import Section


class NoCoulomb(Section):
    """No Coulomb energy."""

    name: Literal["none"] = "none"

    @property
    def far_cutoff(self) -> float:
        """No far edges are needed."""
        return 0.0


CoulombSection = NoCoulomb
