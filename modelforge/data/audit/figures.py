"""`Figures`: what an audit measured, as plain numbers for a file and as short lines for the log."""

from dataclasses import asdict, dataclass

Plain = float | int | str | None


@dataclass(frozen=True)
class Figures:
    """Numbers of an audit; None where the data cannot tell."""

    num_structures: int
    slope: float | None  # of dE against -F.dx, 1 where energies and forces belong together
    slope_spread: float | None  # its standard error
    slope_num: int | None  # pairs or structures that it comes from
    slope_estimator: str | None
    length_ratio: float | None  # nearest neighbours over sums of covalent radii, about 1
    stiffness_ratio: float | None  # of bonds to hydrogen over the usual force constants, about 1
    stiffness_num_bonds: int | None
    energy_ratio: float | None  # total energies over those of all-electron free atoms; 1, or any number without core electrons
    shortest_distance: float | None  # angstrom
    shortest_distance_place: str | None
    force_median: float | None  # quantiles of the norms, eV/angstrom
    force_quantile_90: float | None
    force_quantile_99: float | None
    force_quantile_999: float | None
    force_typical: float | None  # median over structures of the RMS norm, eV/angstrom
    largest_force: float | None  # eV/angstrom
    largest_force_place: str | None
    farthest_energy: float | None  # eV per atom from what the composition says
    farthest_energy_score: float | None  # the same in robust standard deviations
    farthest_energy_place: str | None
    stress_median: float | None  # of abs(trace)/3, eV/angstrom^3
    stress_slope: float | None  # of dE against V stress:strain, 1 where energies and stresses belong together
    stress_num_pairs: int | None

    def to_json(self) -> dict[str, Plain]:
        """The figures by name."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Two to five short lines for the log."""
        lines = [self._slope_line(), self._scales_line(), self._distance_line(), self._forces_line(), self._stress_line()]
        return [line for line in lines if line]

    def _slope_line(self) -> str:
        if self.largest_force is None:
            return ""
        if self.slope is None:
            return "energy against forces: cannot tell, no structures that are near enough to each other"
        found = f"{self.slope:.3g} +- {self.slope_spread:.2g}, expected 1"
        return f"energy against forces: slope {found} ({self.slope_num} {self.slope_estimator})"

    def _scales_line(self) -> str:
        parts = []
        if self.length_ratio is not None:
            parts.append(f"neighbours at {self.length_ratio:.3g} of the sum of covalent radii")
        if self.stiffness_ratio is not None:
            parts.append(f"bonds to hydrogen {self.stiffness_ratio:.3g} times as stiff as usual")
        if self.energy_ratio is not None:
            parts.append(f"energies {self.energy_ratio:.4g} times those of free atoms")
        return "scales: " + ", ".join(parts) if parts else ""

    def _distance_line(self) -> str:
        if self.shortest_distance is None:
            return ""
        return f"shortest distance: {self.shortest_distance:.3f} angstrom, {self.shortest_distance_place}"

    def _forces_line(self) -> str:
        if self.largest_force is None:
            return ""
        quantiles = f"median {self.force_median:.3g}, 99.9 % below {self.force_quantile_999:.3g}"
        return f"forces: {quantiles}, largest {self.largest_force:.3g} eV/angstrom, {self.largest_force_place}"

    def _stress_line(self) -> str:
        if self.stress_median is None:
            return ""
        slope = "" if self.stress_slope is None else f", slope of the energy against it {self.stress_slope:.3g}, expected 1"
        return f"stress: median {self.stress_median:.3g} eV/angstrom^3{slope}"
