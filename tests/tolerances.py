"""The tolerances of tests, in one table. "Relative" is relative to the largest value of the reference."""

EXACT_SUM = 1e-12  # relative; float64 sums in another order
FINITE_DIFFERENCE = 1e-6  # relative; central differences in float64 with the step below
SHARED_CHARGE = 1e-5  # relative; AIMNet2 divides by a sum over all atoms + 1e-6, so that two copies are not exactly twice one
STEP = 1e-4  # angstrom, or strain
SINGLE_PRECISION = 2e-4  # relative; float32 against float64
JUMP = 1e-6  # relative to the interaction well inside the cutoff
CUTOFF_MARGIN = 1e-5  # angstrom to either side of the cutoff
LABEL_ROUNDING = 1e-7  # relative; one cast to float32
SELF_ENERGY = 1e-9  # eV, recovered from exact data with energies of -5e4 eV
SHIFTED_METRIC = 1e-3  # meV/atom, by which a metric may change when labels are shifted by 1e4 eV/atom
RECOMPUTED_METRIC = 1e-6  # relative; from files with finitely many decimals
CALCULATOR = 1e-5  # eV and eV/angstrom; a batch of one against a batch of many in float32
DRIFT = 2e-3  # eV per atom; energy of velocity Verlet with a step of 0.5 fs, largest minus smallest
