"""Under which names files hold labels, besides the usual ones, and which keys of a file look like them."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from modelforge.data.sources.file_source import LABEL_OF_OPTION, PER_ATOM_OPTIONS
from modelforge.data.sources.read_report import ReadReport

ORIGINS = ("reference", "ref", "dft", "qm", "scf", "pbe", "wb97xdz", "ccsdt", "ccsd", "gfn2", "xtb", "target", "true")
"""What may stand before a name and says where the label comes from."""

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "energy_key": (
        *("energy", "energies", "totalenergy", "totalenergies", "energytotal", "etot", "toten", "potentialenergy", "epot"),
        *("freeenergy", "electronicenergy", "correctedtotalenergy", "uncorrectedtotalenergy", "formationenergy"),
        *("internalenergyat0k", "energyu0", "u0", "e0", "e"),
    ),
    "forces_key": ("forces", "force", "f", "frc", "atomicforces", "totalforces", "negdy"),
    "gradient_key": ("gradient", "gradients", "grad", "grads", "totalgradient", "energygradient", "dedr", "dedx"),
    "stress_key": ("stress", "stresses", "stresstensor"),
    "virial_key": ("virial", "virials", "virialtensor"),
    "total_charge_key": ("totalcharge", "charge", "netcharge", "systemcharge", "molecularcharge", "totcharge"),
    "spin_multiplicity_key": ("spinmultiplicity", "multiplicity", "spin", "mult", "spinmultiplicitiespersystem"),
    "dipole_key": ("dipole", "dipoles", "dipolemoment", "dipolemomentpersystem", "totaldipole"),
    "quadrupole_key": ("quadrupole", "quadrupoles", "quadrupolemoment", "quadrupolemomentpersystem"),
    "partial_charges_key": (
        *("partialcharges", "charges", "atomiccharges", "q", "mullikencharges", "mulliken", "lowdincharges", "nbocharges"),
        *("npacharges", "hirshfeldcharges", "hirshfeld", "mbischarges", "cm5charges", "espcharges", "respcharges"),
        *("badercharges", "chelpgcharges", "charge"),
    ),
    "weight_key": ("configweight", "weight", "sampleweight"),
    "subset_key": ("configtype", "subset", "datasetname"),
    "group_key": ("group", "groupid", "molecule", "moleculeid", "molid", "trajectory", "trajectoryid", "trajid", "smiles"),
}


def looks_like(key: str, *, per_atom: bool) -> str:
    """The option whose label a key looks like by its name, "" for none; atoms have no energies or stresses of their own."""
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    names = {plain, *(plain.removeprefix(origin) for origin in ORIGINS)}
    options = (option for option, spellings in SPELLINGS.items() if not names.isdisjoint(spellings))
    return next((option for option in options if not per_atom or option in PER_ATOM_OPTIONS), "")


class FileKey(NamedTuple):
    """A key of files: structures and atoms may have one of the same name each."""

    name: str
    per_atom: bool


def unread(report: ReadReport, used: Collection[FileKey]) -> dict[FileKey, int]:
    """The keys besides those in use, and how many structures have each."""
    homes = ((report.keys, False), (report.columns, True))
    counts = {FileKey(name, per_atom): count for home, per_atom in homes for name, count in home.items()}
    return {key: count for key, count in counts.items() if key not in used}


def candidates(report: ReadReport, label: str, used: Collection[FileKey]) -> dict[str, str]:
    """Keys that look like a label, with the option of each; the one that is called like the label is the only one."""
    found = {key: looks_like(key.name, per_atom=key.per_atom) for key in unread(report, used)}
    fitting = {key.name: option for key, option in found.items() if option and label_of(option) == label}
    return {label: fitting[label]} if label in fitting else fitting


def label_of(option: str) -> str:
    """The label, or what else an option names the key of."""
    return LABEL_OF_OPTION.get(option, option.removesuffix("_key"))


def missing_labels(report: ReadReport, options: Iterable[str]) -> list[str]:
    """The labels that some options name and no structure has."""
    found = {origin.label for origin in report.origins if origin.num_carriers}
    return [label for label in dict.fromkeys(LABEL_OF_OPTION[o] for o in options if o in LABEL_OF_OPTION) if label not in found]
