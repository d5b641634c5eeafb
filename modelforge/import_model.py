"""`modelforge import`: a model that another package has trained becomes an ordinary potential.safetensors.

The file is an `.npz` with `hyper` (JSON), the weights as `w/<name>`, and, if it likes, `about` (JSON, with `units`) and
`mean_per_atom`; other arrays are left alone. Nothing in it is executed.
"""

import json
import lzma
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from modelforge.atoms.self_energies import SelfEnergies
from modelforge.atoms.unit_names import factor_of
from modelforge.atoms.units import ENERGY_IN_EV, LENGTH_IN_ANGSTROM
from modelforge.configuration.writing import toml_key, toml_value
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.npz.arrays import FAULTS
from modelforge.data.sources.read_report import did_you_mean
from modelforge.errors import UserError
from modelforge.importing.hyper import PLACE
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential
from modelforge.importing.registry import FORMATS
from modelforge.importing.weights import PREFIX
from modelforge.model_file import TrainedPotential, save_potential
from modelforge.potentials import PotentialSection
from modelforge.potentials.energy_model import EnergyModel
from modelforge.section import Section

DTYPES = {"float32": torch.float32, "float64": torch.float64}
UNITS = {"energy_unit": "energy", "length_unit": "length"}  # what each measures
USUAL: Mapping[str, tuple[str, ...]] = {"energy": tuple(ENERGY_IN_EV), "length": tuple(LENGTH_IN_ANGSTROM)}
ZIP = b"PK"  # what an .npz begins with
MOST_ELEMENTS = 12  # that are named one by one


@dataclass(frozen=True, eq=False)
class PeerFile:
    """What a file of another package says."""

    hyper: Hyper
    weights: Arrays
    about: str  # as it stands there


def import_model(
    path: Path,
    out: Path,
    *,
    format_name: str,
    options: Mapping[str, str | None],
    precision: str | None = None,
    force: bool = False,
) -> Iterator[str]:
    """Write the potential of a file; gives lines about it.

    `options` take the place of hyper-parameters: `energy_unit`, `length_unit`, and `elements` as "H,C,O".
    """
    _refuse_place(out, force=force)
    if format_name not in FORMATS:
        near = did_you_mean(format_name, list(FORMATS))
        raise UserError(f"--format: must be one of {', '.join(FORMATS)} (got {format_name!r}){near}")
    if precision is not None and precision not in DTYPES:
        raise UserError(f"--precision: must be one of {', '.join(DTYPES)} (got {precision!r}); without it that of the weights")
    read, given = read_peer_file(path), {key: value for key, value in options.items() if value is not None}
    hyper = _with_options(path, read, given)
    try:
        found = FORMATS[format_name](hyper, read.weights)
    except UserError as error:
        if other := next((name for name in FORMATS if _reads(name, hyper, read.weights)), None):
            raise UserError(f"{path}: is no {format_name} model; it reads as {other}: use --format {other}") from error
        raise UserError("\n".join(_with_place(line, path, given) for line in str(error).split("\n"))) from error
    dtype = DTYPES[precision] if precision else None
    trained = trained_potential(found, origin=f"{path.name} ({format_name})", about=read.about, dtype=dtype)
    save_potential(out, trained)
    yield from _summary(trained, hyper)
    yield from (f"note: {note}" for note in found.notes)
    yield f"written to {out}; to train it further (training.start_from), an experiment needs:"
    yield from potential_toml(trained.potential)


def read_peer_file(path: Path) -> PeerFile:
    """Hyper-parameters and weights of a file; a `UserError` if they are not there."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name an .npz with hyper (JSON) and the weights as {PREFIX}<name>")
    with path.open("rb") as stream:
        if (start := stream.read(16))[: len(ZIP)] != ZIP:
            raise UserError(
                f"{path}: is no .npz file, as it is no zip archive (it begins with {start!r}); write it with numpy.savez"
            )
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays: dict[str, NDArray[Any]] = {name: file[name] for name in file.files if _is_wanted(name)}
    except (*FAULTS, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be read as an .npz ({error}); write it with numpy.savez") from error
    if "hyper" not in arrays:
        raise UserError(f"{path}: {PLACE}: missing; give the hyper-parameters of the network as JSON in this array")
    hyper, about = _json(path, arrays, "hyper"), _json(path, arrays, "about")
    if "mean_per_atom" in arrays:
        hyper.setdefault("mean_per_atom", arrays["mean_per_atom"].tolist())
    for key, unit in _units_of(about).items():
        hyper.setdefault(key, unit)
    weights = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
    if not weights:
        raise UserError(f"{path}: holds no weights; write each array of the network's state_dict() as {PREFIX}<name>")
    return PeerFile(hyper, weights, str(arrays.get("about", "")))


def trained_potential(
    found: ImportedPotential, *, origin: str, about: str = "", dtype: torch.dtype | None = None
) -> TrainedPotential:
    """An imported potential as one that is trained, in the precision of its weights where no other is asked for."""
    model = EnergyModel(found.section.build(found.elements))
    own = {found.state[name].dtype for name, _ in model.potential.named_parameters()}
    dtype = dtype or (torch.float64 if torch.float64 in own else torch.float32)
    model.to(torch.float64)
    model.potential.load_state_dict(_matching(found.state, model.potential.state_dict()))
    model.scale.fill_(found.scale)
    elements = tuple(sorted(found.elements))
    return TrainedPotential(
        model=model.to(dtype).eval().requires_grad_(False),
        potential=found.section,
        dataset=ExtendedXYZ(path=("*.xyz",), stress_key="stress"),
        self_energies=SelfEnergies({z: found.self_energies[z] for z in elements}, (), np.zeros((0, len(elements)))),
        shifts={},
        experiment=f"# imported from {origin}\n# {about}\n",
        weights=f"imported from {origin}",
        training_precision=None,
        matmul_precision="highest",
    )


def potential_toml(section: PotentialSection) -> list[str]:
    """The table `[potential]` of a section, without keys that are at their defaults."""
    return ["[potential]", *(f"{toml_key(key)} = {toml_value(value)}" for key, value in _given(section).items())]


def _given(section: Section) -> dict[str, object]:
    """The values of a section that are not its defaults, and what it is called."""
    values: dict[str, object] = {"name": section.name} if hasattr(section, "name") else {}
    for key, value in section.model_dump(mode="json", exclude_defaults=True).items():
        part = getattr(section, key)
        values[key] = _given(part) if isinstance(part, Section) else value
    return values


def _refuse_place(out: Path, *, force: bool) -> None:
    if out.is_dir():
        raise UserError(f"--out: must be a file (got the folder {out}); name one, such as {out / 'model.safetensors'}")
    if out.exists() and not force:
        raise UserError(f"--out: must not exist yet (got {out}); remove it, choose another name, or add --force")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {out.absolute().parent}; make it, or choose another")


def _is_wanted(name: str) -> bool:
    return name in ("hyper", "about", "mean_per_atom") or name.startswith(PREFIX)


def _json(path: Path, arrays: Mapping[str, NDArray[Any]], name: str) -> dict[str, object]:
    """A JSON object in a text; nothing where there is no text."""
    try:
        found = json.loads(str(arrays[name])) if name in arrays else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: {name}: must be JSON ({error}); write json.dumps(...) of a dict") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: {name}: must be a JSON object (got {type(found).__name__}); write json.dumps(...) of a dict")
    return found


def _units_of(about: Mapping[str, object]) -> dict[str, str]:
    """Units that `about` states, as far as they name any: some say that there is none."""
    stated = about.get("units")
    units = stated if isinstance(stated, dict) else {}
    return {key: str(units[label]) for key, label in UNITS.items() if label in units and _is_unit(units[label], label)}


def _is_unit(text: object, label: str) -> bool:
    try:
        factor_of(str(text), label)
    except ValueError:
        return False
    return True


def _with_options(path: Path, read: PeerFile, options: Mapping[str, str]) -> Hyper:
    """Hyper-parameters with options above them."""
    for key, label in UNITS.items():
        if key in options:
            _refuse_unit(options[key], read.hyper.get(key), label=label, option=_option(key), path=path)
    given: dict[str, object] = dict(options)
    if "elements" in options:
        given["elements"] = [symbol.strip() for symbol in options["elements"].split(",")]
    return {**read.hyper, **given}


def _refuse_unit(given: str, stated: object, *, label: str, option: str, path: Path) -> None:
    """A `UserError` where a unit measures something else, or is not the one that the file states."""
    if not _is_unit(given, label):
        raise UserError(f"{option}: must be a unit of {label}, such as {', '.join(USUAL[label])} (got {given!r})")
    if _is_unit(stated, label) and not math.isclose(factor_of(given, label), factor_of(str(stated), label), rel_tol=1e-3):
        remedy = f"leave the option out ({path})"
        raise UserError(f"{option}: must be the unit that the file states, {stated!r} (got {given!r}); {remedy}")


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _with_place(line: str, path: Path, options: Mapping[str, str]) -> str:
    """What is wrong, beginning with the option whose value it is, or with the file."""
    key, _, message = line.removeprefix(f"{PLACE}.").partition(": ")
    return f"{_option(key)}: {message} ({path})" if key in options else f"{path}: {line}"


def _reads(format_name: str, hyper: Hyper, weights: Arrays) -> bool:
    """Whether a file is one of this format."""
    try:
        FORMATS[format_name](hyper, weights)
    except UserError:
        return False
    return True


def _matching(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state that fits to the network; that it does is the duty of the format's file."""
    assert state.keys() == ours.keys(), sorted(state.keys() ^ ours.keys())
    assert all(state[name].shape == ours[name].shape for name in ours)
    return state


def _summary(trained: TrainedPotential, hyper: Hyper) -> Iterator[str]:
    size = sum(weight.numel() for weight in trained.model.parameters())
    symbols = [chemical_symbols[z] for z in trained.elements]
    named = " ".join(symbols[:MOST_ELEMENTS]) + (f" ... {symbols[-1]} ({len(symbols)})" if len(symbols) > MOST_ELEMENTS else "")
    dtype = str(trained.dtype).removeprefix("torch.")
    yield f"potential: {trained.potential.name}, {size:,} parameters in {dtype}, cutoff {trained.cutoff:g} A"
    yield f"elements: {named}"
    units = ", ".join(f"{label} in {hyper[key]}" for key, label in UNITS.items() if key in hyper)
    origin = f" (it was trained with {units})" if units else ""
    yield f"units: eV and angstrom{origin}, scale {float(trained.model.scale):.6g} eV"
