"""`modelforge import`: what it writes is an ordinary potential, which predicts what the other package does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from golden_files import read
from typer.testing import CliRunner

from modelforge.atoms.units import ENERGY_IN_EV
from modelforge.calculator import ModelforgeCalculator
from modelforge.cli import app
from modelforge.errors import UserError
from modelforge.evaluate import evaluate_files
from modelforge.import_model import import_model
from modelforge.model_file import load_potential

RELATIVE = 1e-8  # of the largest value, in float64 through all of the command line; without files it is 1e-10
KCAL = ENERGY_IN_EV["kcal/mol"]

CASES = {  # file: format, unit of energy in eV, key of the energies, options
    "schnet_random": ("schnetpack", 1.0, "energy", ["--energy-unit", "eV"]),
    "painn_random": ("schnetpack", 1.0, "energy", ["--elements", "H,C,O,Si"]),
    "painn_ethanol_1": ("schnetpack", KCAL, "energy_total", ["--elements", "O, H, C"]),
    "tensornet_random_o3": ("torchmdnet", 1.0, "energy", []),
    "tensornet_expected_f32": ("torchmdnet", 1.0, "energy", []),
    "sake_random": ("sake", 1.0, "energy", []),
    "sake_random_noupdate": ("sake", ENERGY_IN_EV["hartree"], "energy", ["--energy-unit", "hartree"]),
    "ani1x_weights_0": ("torchani", ENERGY_IN_EV["hartree"], "energy", []),
    "ani2x_weights_0": ("torchani", ENERGY_IN_EV["hartree"], "energy", ["--elements", "H,C,N,O,S,F,Cl"]),
    "aimnet2_random": ("aimnet", 1.0, "energy", ["--elements", "H,C,O"]),
    "nequip_l1_noparity": ("nequip", 1.0, "energy", ["--elements", "Si,H,C,O"]),
    "nequip_l2_parity": ("nequip", KCAL, "energy", ["--energy-unit", "kcal/mol"]),
    "allegro_l2_parity": ("allegro", 1.0, "energy", ["--length-unit", "angstrom"]),
    "mace_L1_nu3": ("mace", 1.0, "energy", []),
}
PREDICTED = {"ani1x_weights_0": "ani1x_neurochem", "ani2x_weights_0": "ani2x_reference_0"}  # where the file has weights alone


def atoms_of(golden: Mapping[str, np.ndarray]) -> list[Atoms]:
    ends = np.cumsum(golden["n_atoms"])
    found = []
    for place, (end, num) in enumerate(zip(ends, golden["n_atoms"], strict=True)):
        part = slice(end - num, end)
        found.append(
            Atoms(
                golden["atomic_numbers"][part],
                positions=golden["positions"][part],
                cell=golden["cell"][place],
                pbc=golden["pbc"][place],
            )
        )
    return found


def run(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("file", CASES)
def test_an_imported_potential_predicts_what_the_package_does(file: str, shared_data: Path, tmp_path: Path) -> None:
    """In evaluate, from a file of structures, and in the calculator."""
    name, unit, key, options = CASES[file]
    golden, out = read(shared_data / "golden" / f"{PREDICTED.get(file, file)}.npz"), tmp_path / "imported.safetensors"
    told = run(
        "import", "--format", name, shared_data / "golden" / f"{file}.npz", "--out", out, "--precision", "float64", *options
    )
    assert "parameters in float64" in told
    structures = atoms_of(golden)[:20]
    energy, forces = unit * golden[key][:20], unit * golden["forces"][: sum(map(len, structures))]
    (tmp_path / "x.xyz").write_text("".join(_exact(atoms) for atoms in structures))
    evaluate_files(out, [str(tmp_path / "x.xyz")])
    predicted = ase.io.read(tmp_path / "evaluation" / "imported" / "x" / "predictions.extxyz", ":")
    got = np.array([atoms.info["predicted_energy"] for atoms in predicted])
    assert np.abs(got - energy).max() < RELATIVE * np.abs(energy).max()
    calculator = ModelforgeCalculator(out)
    found = []
    for place, atoms in enumerate(structures):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(energy[place], abs=RELATIVE * np.abs(energy).max())
        found.append(atoms.get_forces())
        if "stress" in golden and np.isfinite(golden["stress"][place]).all():
            expected = unit * golden["stress"][place]
            np.testing.assert_allclose(atoms.get_stress(voigt=False), expected, rtol=0, atol=RELATIVE * np.abs(expected).max())
    assert np.abs(np.concatenate(found) - forces).max() < RELATIVE * np.abs(forces).max()


@pytest.mark.parametrize(("charge", "end"), [(1, "_charge1"), (-1, "_charge_minus1")])
def test_an_imported_aimnet2_knows_ions(charge: int, end: str, shared_data: Path, tmp_path: Path) -> None:
    """By `info["charge"]`, as ASE's other calculators do."""
    path = shared_data / "golden" / "aimnet2_random.npz"
    run("import", "--format", "aimnet", path, "--out", tmp_path / "x", "--precision", "float64")
    golden, calculator = read(path), ModelforgeCalculator(tmp_path / "x")
    found = []
    for atoms in atoms_of(golden):
        atoms.info["charge"], atoms.calc = charge, calculator
        found.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_charges()))
    energy, forces, charges = zip(*found, strict=True)
    assert np.abs(golden[f"forces{end}"] - golden["forces"]).max() > 1e-3, "the charge does nothing, so this could not fail"
    for got, key in ((np.array(energy), "energy"), (np.concatenate(forces), "forces"), (np.concatenate(charges), "charges")):
        assert np.abs(got - golden[f"{key}{end}"]).max() < RELATIVE * np.abs(golden[f"{key}{end}"]).max()


def _exact(atoms: Atoms) -> str:
    """A frame of extended XYZ that reads back to the same bits; ASE writes 8 decimals."""
    lattice = f'Lattice="{" ".join(repr(float(x)) for x in atoms.cell.array.ravel())}" ' if atoms.pbc.any() else ""
    periodic = " ".join("T" if axis else "F" for axis in atoms.pbc)
    lines = [str(len(atoms)), f'{lattice}pbc="{periodic}" Properties=species:S:1:pos:R:3']
    lines += [f"{s} {' '.join(repr(float(x)) for x in r)}" for s, r in zip(atoms.symbols, atoms.positions, strict=True)]
    return "\n".join(lines) + "\n"


def test_it_tells_what_was_imported_and_how_to_go_on(shared_data: Path, tmp_path: Path) -> None:
    path, out = shared_data / "golden" / "painn_ethanol_1.npz", tmp_path / "painn.safetensors"
    told = run("import", "--format", "schnetpack", path, "--out", out, "--elements", "H,C,O")
    # 589,057 of the package have a row for each of 100 atomic numbers
    assert "potential: painn, 576,641 parameters in float32, cutoff 5 A\n" in told
    assert "elements: H C O\n" in told
    assert "it was trained with energy in kcal/mol, length in A), scale 0.0433641 eV" in told
    assert told.endswith('[potential]\nname = "painn"\n')
    found = load_potential(out)
    assert found.dtype == torch.float32
    assert found.weights == "imported from painn_ethanol_1.npz (schnetpack)"


def test_elements_that_nobody_names_are_all_taken_over_and_that_is_told(shared_data: Path, tmp_path: Path) -> None:
    told = run("import", "--format", "schnetpack", shared_data / "golden" / "schnet_random.npz", "--out", tmp_path / "x")
    assert "note: all 99 elements of its table are taken over, also those that it was never trained on" in told
    assert "note: no unit of energy is stated: eV is taken" in told
    assert load_potential(tmp_path / "x").elements == tuple(range(1, 100))


def test_a_file_that_is_there_is_replaced_only_by_force(shared_data: Path, tmp_path: Path) -> None:
    path, out = shared_data / "golden" / "schnet_random.npz", tmp_path / "x.safetensors"
    out.write_text("precious")
    with pytest.raises(UserError, match="--out: must not exist yet"):
        list(import_model(path, out, format_name="schnetpack", options={}))
    assert out.read_text() == "precious"
    assert list(import_model(path, out, format_name="schnetpack", options={}, force=True))
    assert load_potential(out).potential.name == "schnet"


def changed(path: Path, to: Path, *, hyper: Mapping[str, Any] = {}, without: str = "", **arrays: np.ndarray) -> Path:
    """A copy of a file with other hyper-parameters (None: removed) and other arrays."""
    golden = read(path)
    values = {**json.loads(str(golden["hyper"])), **hyper}
    golden["hyper"] = np.array(json.dumps({key: value for key, value in values.items() if value is not None}))
    golden |= {name.replace("__", "."): array for name, array in arrays.items()}
    np.savez(to, **{name: array for name, array in golden.items() if name != without})
    return to


REFUSED = {  # file, hyper-parameters, and what is said
    "option that we do not have": ("painn_random", {"cutoff_fn": "mollifier"}, "hyper.cutoff_fn: unknown choice 'mollifier'"),
    "option that nobody knows": (
        "painn_random",
        {"n_atom_bases": 3},
        "hyper.n_atom_bases: no option .*did you mean 'n_atom_basis'",
    ),
    "missing": ("painn_random", {"cutoff": None}, "hyper.cutoff: missing"),
    "three layers of the head": ("schnet_random", {"head_layers": 3}, r"hyper.head_layers: .*2.*\(got 3\)"),
    "mean over atoms": ("schnet_random", {"aggregation_mode": "avg"}, "hyper.aggregation_mode: unknown choice 'avg'"),
    "another epsilon": ("painn_random", {"epsilon": 1e-6}, r"hyper.epsilon: must be 1e-08 \(got 1e-06\)"),
    "another model": ("painn_random", {"model": "so3net"}, "hyper.model: unknown choice 'so3net'"),
    "another cutoff": ("painn_random", {"cutoff": 5.0}, "hyper.cutoff: must be that of w/representation.cutoff_fn.cutoff, 4.5"),
    "other sizes": ("painn_random", {"n_rbf": 13}, r"w/representation.filter_net.weight: must have the shape \(144, 13\)"),
    "fewer blocks": (
        "schnet_random",
        {"n_interactions": 2},
        "w/representation.interactions.2.f2out.0.bias, .*: no part of schnet",
    ),
    "more blocks": ("schnet_random", {"n_interactions": 4}, "w/representation.interactions.3.filter_network.0.weight: missing"),
    "unknown element": ("schnet_random", {"elements": ["Hx"]}, "hyper.elements: unknown element 'Hx'"),
    "an element twice": ("schnet_random", {"elements": ["H", "H"]}, "hyper.elements: must name each element once"),
    "no such row": ("tensornet_random_o3", {"elements": ["Br"]}, "hyper.elements: the network has no Br"),
    "too few self-energies": ("sake_random", {"self_energies": {"H": -0.5}}, r"hyper.self_energies: .*lacks C, O, Si"),
    "no unit": ("schnet_random", {"energy_unit": "furlong"}, "hyper.energy_unit: unknown unit 'furlong'"),
    "unit of something else": ("schnet_random", {"energy_unit": "nm"}, "hyper.energy_unit: 'nm' is no unit of energy"),
    "SO(3)": ("tensornet_random_o3", {"group": "SO(3)"}, r"hyper.group: unknown choice 'SO\(3\)'"),
    "lower cutoff": ("tensornet_random_o3", {"cutoff_lower": 0.5}, "hyper.cutoff_lower: must be at most 0"),
    "Gaussian radial functions": ("tensornet_random_o3", {"rbf_type": "gauss"}, "hyper.rbf_type: unknown choice 'gauss'"),
    "sigmoid": ("tensornet_random_o3", {"activation": "sigmoid"}, "hyper.activation: unknown choice 'sigmoid'"),
    "a cutoff that is not that of the means": (
        "tensornet_random_o3",
        {"cutoff": 5.0},
        r"hyper.cutoff: must be 4.5, as w/representation_model.distance_expansion.means says \(got 5\)",
    ),
    "another first shift": ("aimnet2_random", {"rmin": 0.9}, r"hyper.rmin: must be 0.8, as w/aev.shifts_s says \(got 0.9\)"),
    "SAKE in bohr": ("sake_random", {"length_unit": "bohr"}, "hyper.length_unit: must be angstrom"),
    "SAKE with a cutoff": ("sake_random", {"cutoff": 5.0}, "hyper.cutoff: "),
    "SAKE without attention": ("sake_random", {"use_semantic_attention": False}, "hyper.use_semantic_attention: must be true"),
    "SAKE whose atoms stay": ("sake_random", {"update": False}, "w/d0/v_mixing/kernel, .* no part of a SAKE"),
}


@pytest.mark.parametrize(("file", "hyper", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_imported_is_refused(
    file: str, hyper: Mapping[str, Any], message: str, shared_data: Path, tmp_path: Path
) -> None:
    path = changed(shared_data / "golden" / f"{file}.npz", tmp_path / "x.npz", hyper=hyper)
    with pytest.raises(UserError, match=f"x.npz: {message}"):
        list(import_model(path, tmp_path / "x.safetensors", format_name=CASES[file][0], options={}))
    assert not (tmp_path / "x.safetensors").exists()


WRONG_WEIGHTS = {
    "unknown": (
        {"w/representation__electronic_embeddings__0__weight": np.zeros((2, 2))},
        "w/representation.electronic.*: no part",
    ),
    "not finite": ({"w/output_modules__0__outnet__1__bias": np.array([np.nan])}, "outnet.1.bias: must be finite"),
    "whole numbers": ({"w/output_modules__0__outnet__1__bias": np.array([1])}, "outnet.1.bias: must be real numbers"),
    "mean twice": (
        {
            "w/postprocessors__0__mean": np.array([1.0]),
            "w/postprocessors__0__atomref": np.zeros(100),
            "mean_per_atom": np.array(2.0),
        },
        "hyper: must not give mean_per_atom or self_energies beside the weights of postprocessors",
    ),
}


@pytest.mark.parametrize(("arrays", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(
    arrays: Mapping[str, np.ndarray], message: str, shared_data: Path, tmp_path: Path
) -> None:
    path = changed(shared_data / "golden" / "schnet_random.npz", tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message):
        list(import_model(path, tmp_path / "x.safetensors", format_name="schnetpack", options={}))


def test_a_mean_of_each_structure_is_refused(shared_data: Path, tmp_path: Path) -> None:
    path = changed(shared_data / "golden" / "tensornet_random_o3.npz", tmp_path / "x.npz", **{"w/mean": np.array(3.0)})
    with pytest.raises(UserError, match="w/mean: must be 0"):
        list(import_model(path, tmp_path / "x.safetensors", format_name="torchmdnet", options={}))


BAD_FILES = {
    "nothing there": (None, "no such file"),
    "no archive": (b"text", r"is no .npz file, as it is no zip archive \(it begins with b'text'\); write it with numpy.savez"),
    "an .npy": (b"\x93NUMPY\x01\x00v\x00{'descr'", "is no .npz file"),
    "damaged": (b"PK\x03\x04 and then nothing", "cannot be read as an .npz"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_cannot_be_read_is_a_clear_error(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match=f"x.npz: {message}"):
        list(import_model(tmp_path / "x.npz", tmp_path / "x.safetensors", format_name="schnetpack", options={}))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w/a": np.zeros(2)}, "hyper: missing"),
        ({"hyper": np.array("{")}, "hyper: must be JSON"),
        ({"hyper": np.array("[1]")}, "hyper: must be a JSON object"),
        ({"hyper": np.array("{}")}, "holds no weights"),
        ({"hyper": np.array([{}], dtype=object)}, "cannot be read as an .npz"),
    ],
)
def test_a_file_without_what_it_needs_is_a_clear_error(arrays: Mapping[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=f"x.npz: {message}"):
        list(import_model(tmp_path / "x.npz", tmp_path / "x.safetensors", format_name="schnetpack", options={}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format_name": "schnetpak"}, "--format: must be one of .*did you mean 'schnetpack'"),
        ({"precision": "float16"}, "--precision: must be one of float32, float64"),
        (
            {"options": {"energy_unit": "nm"}},
            r"^--energy-unit: must be a unit of energy, such as eV, meV, hartree, rydberg, kcal/mol, kJ/mol \(got 'nm'\)$",
        ),
        (
            {"options": {"length_unit": "eV"}},
            r"^--length-unit: must be a unit of length, such as angstrom, bohr, nm \(got 'eV'\)$",
        ),
        ({"options": {"elements": "H,Xx"}}, r"^--elements: unknown element 'Xx'; .*schnet_random.npz\)$"),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    options: dict[str, Any], message: str, shared_data: Path, tmp_path: Path
) -> None:
    usual = {"format_name": "schnetpack", "options": {}}
    with pytest.raises(UserError, match=message):
        list(import_model(shared_data / "golden" / "schnet_random.npz", tmp_path / "x", **{**usual, **options}))


def test_elements_that_the_network_does_not_have_are_blamed_on_the_option(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "golden" / "tensornet_random_o3.npz"
    with pytest.raises(UserError, match=r"^--elements: the network has no Br"):
        list(import_model(path, tmp_path / "x", format_name="torchmdnet", options={"elements": "H,Br"}))


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("ani2x_weights_0", "schnetpack"),
        ("sake_random", "torchani"),
        ("allegro_l2_parity", "nequip"),
        ("nequip_l1_noparity", "allegro"),
        ("mace_L1_nu3", "nequip"),
    ],
)
def test_a_file_of_another_format_is_told_in_one_line(file: str, other: str, shared_data: Path, tmp_path: Path) -> None:
    path, own = shared_data / "golden" / f"{file}.npz", CASES[file][0]
    with pytest.raises(UserError) as caught:
        list(import_model(path, tmp_path / "x", format_name=other, options={}))
    assert str(caught.value) == f"{path}: is no {other} model; it reads as {own}: use --format {own}"


@pytest.mark.parametrize(
    ("key", "unit", "message"),
    [
        ("length_unit", "bohr", r"^--length-unit: must be the unit that the file states, '\S+' \(got 'bohr'\)"),
        ("energy_unit", "hartree", r"^--energy-unit: must be the unit that the file states, 'kcal/mol' \(got 'hartree'\)"),
    ],
)
def test_a_unit_other_than_the_one_that_the_file_states_is_refused(
    key: str, unit: str, message: str, shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / "golden" / "painn_ethanol_1.npz"
    with pytest.raises(UserError, match=message):
        list(import_model(path, tmp_path / "x", format_name="schnetpack", options={key: unit}))


def test_the_unit_that_the_file_states_may_be_given_in_other_words(shared_data: Path, tmp_path: Path) -> None:
    path, options = shared_data / "golden" / "painn_ethanol_1.npz", {"energy_unit": "kilocalorie_per_mole", "length_unit": "A"}
    assert list(import_model(path, tmp_path / "x", format_name="schnetpack", options=options))
