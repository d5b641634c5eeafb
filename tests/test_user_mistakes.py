"""What users get wrong, each with the whole message that they read: place, expectation, value, remedy; exit code 2.

The data are water molecules with made-up labels; `DIR` stands for the working folder.
"""

import io
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from toy_experiment import TOML, water, waters

from modelforge.cli import main

TRAIN = "train --config x.toml"


def replaced(old: str, new: str) -> str:
    """The usual data with a piece of text replaced once."""
    assert old in waters()
    return waters().replace(old, new, 1)


@dataclass(frozen=True)
class Case:
    """A mistake: what is different in the TOML and the files, the command, and the message."""

    name: str
    message: str
    toml: tuple[tuple[str, str], ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    binary: dict[str, bytes] = field(default_factory=dict)
    command: str = TRAIN
    needs_run: bool = False


def value(old: str, new: str) -> tuple[tuple[str, str], ...]:
    return ((old, new),)


def added(text: str) -> tuple[tuple[str, str], ...]:
    """Text above [dataset.split], in [dataset]."""
    return (("[dataset.split]", f"{text}\n[dataset.split]"),)


def named(format_name: str, path: str) -> tuple[tuple[str, str], ...]:
    """Data of another format."""
    return (('"extxyz"', f'"{format_name}"'), ('"water.xyz"', f'"{path}"'))


def mixed(lines: str) -> tuple[tuple[str, str], ...]:
    """Several sources, of which the only one begins at line 9."""
    return (('name = "extxyz"\npath = "water.xyz"\n', f'name = "mixed"\n[dataset.sources.a]\n{lines}\n'),)


def arrays() -> bytes:
    """Two molecules in the arrays of sGDML, without units."""
    stream = io.BytesIO()
    positions = np.array([[[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]]] * 2)
    np.savez(stream, z=np.array([8, 1, 1]), R=positions, E=np.zeros(2), F=np.zeros_like(positions))
    return stream.getvalue()


ARRAYS = arrays()
LAST_ATOM = water(7).splitlines()[-1]
CASES = [
    Case(
        "a misspelt key",
        "x.toml:14: training.batchsize: unknown key (did you mean batch_size?)",
        value("batch_size", "batchsize"),
    ),
    Case(
        "a key as another package calls it",
        "x.toml:3: potential.r_max: unknown key (here it is cutoff)",
        value("cutoff = 3.0", "r_max = 3.0"),
    ),
    Case(
        "a wrong type",
        "x.toml:14: training.batch_size: must be a whole number of at least 1 (got '4'); drop the quotes",
        value("batch_size = 4", 'batch_size = "4"'),
    ),
    Case(
        "an unknown choice",
        "x.toml:2: potential.name: unknown choice 'shnet' (did you mean 'schnet'? choices: aimnet2, allegro, ani, mace, "
        "nequip, painn, physnet, sake, schnet, soap, soap_krr, tensornet)",
        value('"schnet"', '"shnet"'),
    ),
    Case("a negative cutoff", "x.toml:3: potential.cutoff: must be greater than 0 (got -3.0)", value("3.0", "-3.0")),
    Case(
        "a missing table",
        'x.toml: potential: missing; add a table [potential] with name = "aimnet2", "allegro", "ani", "mace", "nequip", '
        '"painn", "physnet", "sake", "schnet", "soap", "soap_krr" or "tensornet"',
        value('[potential]\nname = "schnet"\ncutoff = 3.0\nnum_features = 4\nnum_layers = 1\nnum_radial = 4\n', ""),
    ),
    Case("an unknown table", "x.toml:12: trainig: unknown table (did you mean training?)", value("[training]", "[trainig]")),
    Case("no TOML", 'x.toml:9: a text without quotes (path = water.xyz); write "water.xyz"', value('"water.xyz"', "water.xyz")),
    Case(
        "several at once",
        (
            "x.toml:3: potential.cutoff: must be greater than 0 (got -3.0)\n"
            "x.toml:14: training.batchsize: unknown key (did you mean batch_size?)"
        ),
        (("batch_size", "batchsize"), ("3.0", "-3.0")),
    ),
    Case(
        "an override without a value",
        "--set training.batch_size: expected --set table.key=value, such as --set training.batch_size=8",
        command=TRAIN + " --set training.batch_size",
    ),
    Case(
        "an override of an unknown key",
        "--set training.batchsize=8: training.batchsize: unknown key (did you mean batch_size?)",
        command=TRAIN + " --set training.batchsize=8",
    ),
    Case(
        "an override with a wrong value",
        "--set training.batch_size=many: training.batch_size: must be a whole number of at least 1 (got 'many')",
        command=TRAIN + " --set training.batch_size=many",
    ),
    Case("no such TOML", "y.toml: no such file (did you mean x.toml?)", command="train --config y.toml"),
    Case(
        "no such data",
        "x.toml:9: dataset.path: 'DIR/watr.xyz' matches no file (did you mean 'water.xyz'?)",
        value("water.xyz", "watr.xyz"),
    ),
    Case(
        "no such data by override",
        "--set dataset.path=data/water.xyz: dataset.path: 'DIR/data/water.xyz' matches no file, there is no folder DIR/data",
        command=TRAIN + " --set dataset.path=data/water.xyz",
    ),
    Case(
        "a glob that matches nothing", "x.toml:9: dataset.path: 'DIR/md_*.xyz' matches no file", value("water.xyz", "md_*.xyz")
    ),
    Case(
        "no such test file",
        "x.toml:10: dataset.test_paths.hot: 'DIR/hot.xyz' matches no file (did you mean 'water.xyz'?)",
        added('test_paths = { hot = "hot.xyz" }'),
    ),
    Case("an empty file", "DIR/water.xyz: must hold at least one structure (got an empty file)", files={"water.xyz": ""}),
    Case(
        "a folder instead of a file",
        "x.toml:9: dataset.path: 'DIR/data' must name a file (got a folder; 'DIR/data/*.xyz' names files in it)",
        value("water.xyz", "data"),
        {"data/a.xyz": waters()},
    ),
    Case(
        "a truncated frame",
        "DIR/water.xyz:36: structure 7 announces 3 atoms, but the file ends after 2 of them (truncated?)",
        files={"water.xyz": waters().rsplit("\n", 2)[0] + "\n"},
    ),
    Case(
        "an unknown element",
        (
            "DIR/water.xyz:40: must have an element symbol in column 1, has 'Hx' (got 'Hx 0.001203 -0.733196 "
            "-0.489844 -0.067310 7.410910 1.981242')"
        ),
        files={"water.xyz": replaced(LAST_ATOM, LAST_ATOM.replace("H", "Hx"))},
    ),
    Case(
        "a coordinate that is no number",
        (
            "DIR/water.xyz:40: must have a finite coordinate in column 2, has 'O.001203' (got 'H O.001203 "
            "-0.733196 -0.489844 -0.067310 7.410910 1.981242')"
        ),
        files={"water.xyz": replaced(LAST_ATOM, LAST_ATOM.replace("H 0", "H O"))},
    ),
    Case(
        "no forces",
        (
            "x.toml:10: dataset.forces_key: 'force' is in no structure of DIR/water.xyz; per-atom columns there: "
            "forces (did you mean 'forces'?); name the right key, or set training.loss.forces_weight = 0"
        ),
        added('forces_key = "force"'),
    ),
    Case(
        "no energies",
        (
            "x.toml:10: dataset.energy_key: 'E' is in no structure of DIR/water.xyz; header keys there: energy; "
            "name the right key, or set training.loss.energy_weight = 0"
        ),
        added('energy_key = "E"'),
    ),
    Case(
        "all labels NaN",
        (
            "x.toml: dataset.energy_key: 'energy' is missing or NaN in all structures of the training set, but "
            "training.loss.energy_weight is 1; name another key, or set the weight to 0"
        ),
        files={"water.xyz": waters(energy="energy=nan")},
    ),
    Case(
        "an atom twice",
        "x.toml:9: dataset.path: DIR/water.xyz:7: atoms 1 and 2 are in the same place (0.0000 angstrom apart); "
        "remove one of them, or the structure",
        files={"water.xyz": waters().replace(LAST_ATOM, water(7).splitlines()[-2])},
    ),
    Case(
        "periodic without a cell",
        (
            "DIR/water.xyz:2: a structure that is periodic along a b c must have a Lattice with independent "
            'vectors there (got no Lattice); write pbc="F F F" if it is not periodic'
        ),
        files={"water.xyz": waters(header='pbc="T T T"')},
    ),
    Case(
        "a singular cell",
        (
            "DIR/water.xyz:2: a structure that is periodic along a b c must have a Lattice with independent "
            'vectors there (got "5 0 0 5 0 0 0 0 5"); write pbc="F F F" if it is not periodic'
        ),
        files={"water.xyz": waters(header='Lattice="5 0 0 5 0 0 0 0 5"')},
    ),
    Case(
        "a unit in another case",
        (
            "x.toml:10: dataset.energy_unit: unknown choice 'Hartree' (did you mean 'hartree'? choices: eV, meV, "
            "hartree, rydberg, kcal/mol, kJ/mol)"
        ),
        added('energy_unit = "Hartree"'),
    ),
    Case(
        "energies in hartree",
        (
            "x.toml:10: dataset.self_energies: without the self-energies (H -13.600, O -2041.800 eV) "
            "DIR/water.xyz:0 has 664.200 eV per atom; expected -20 to 3. They must come from the same "
            "method and have the same unit as the labels; correct the values, dataset.self_energies.unit or "
            'dataset.energy_unit, or set source = "regression"'
        ),
        added('self_energies = { source = "values", values = { H = -13.6, O = -2041.8 } }'),
        {"water.xyz": waters(energy="energy=-76.4")},
    ),
    Case(
        "self-energy of no element",
        "x.toml:10: dataset.self_energies.values.Ox: unknown element 'Ox'; use symbols such as H or Cl",
        added('self_energies = { source = "values", values = { H = -13.6, Ox = -2041.8 } }'),
    ),
    Case(
        "no isolated atoms",
        (
            'x.toml:10: dataset.self_energies.source: is "isolated_atoms", but the data hold no single atom with '
            "an energy; name their file in isolated_atoms_path, or give values"
        ),
        added('self_energies = { source = "isolated_atoms" }'),
    ),
    Case(
        "self-energies of the data set that has none",
        (
            'x.toml:10: dataset.self_energies.source: must not be "dataset", as "extxyz" brings no table of '
            'self-energies; use "regression", "values" or "isolated_atoms"'
        ),
        added('self_energies = { source = "dataset" }'),
    ),
    Case(
        "the test file is the training file",
        (
            "x.toml:10: dataset.test_paths.again: holds the same structures as dataset.path, so its errors would "
            "say nothing; name another file, or cut a test set out of the data with dataset.split.fractions"
        ),
        added('test_paths = { again = "water.xyz" }'),
    ),
    Case(
        "a test set with an unknown element",
        (
            "x.toml:10: dataset.test_paths.heavy: the set 'heavy' has elements that no training structure has "
            "(S); add structures with them to the training set, or remove them from this one"
        ),
        added('test_paths = { heavy = "heavy.xyz" }'),
        {"heavy.xyz": waters(symbols="SHH")},
    ),
    Case(
        "a test set named validation",
        "x.toml:10: dataset.test_paths.validation: is the name of a set of dataset.split; choose another",
        added('test_paths = { validation = "hot.xyz" }'),
        {"hot.xyz": waters(4)},
    ),
    Case(
        "fractions that do not sum to 1",
        "x.toml:11: dataset.split.fractions: must sum to 1 (they sum to 1.1)",
        value("counts = [6, 2, 0]", "fractions = [0.9, 0.1, 0.1]"),
    ),
    Case(
        "counts beyond the data",
        "x.toml:11: dataset.split.counts: must sum to at most 8, the number of structures (got [8, 2, 0], which sum to 10)",
        value("[6, 2, 0]", "[8, 2, 0]"),
    ),
    Case(
        "fractions and counts",
        "x.toml:11: dataset.split.counts: must not be given together with fractions; remove one of them",
        value("[6, 2, 0]", "[6, 2, 0]\nfractions = [0.9, 0.1, 0.0]"),
    ),
    Case(
        "no validation",
        (
            "x.toml:11: dataset.split.fractions: must be above 0 for training and validation (got [1.0, 0.0, "
            "0.0]); validation decides on the learning rate and the best weights"
        ),
        value("counts = [6, 2, 0]", "fractions = [1.0, 0.0, 0.0]"),
    ),
    Case(
        "no validation after rounding",
        (
            "x.toml:11: dataset.split.fractions: must leave structures for the set 'validation' (got none of the "
            "8 structures); give it a larger share"
        ),
        value("counts = [6, 2, 0]", "fractions = [0.97, 0.03, 0.0]"),
    ),
    Case(
        "a file in the place of the run folder",
        "x.toml: runtime.run_folder: must be a folder to write to (got DIR/runs/x, which is a file); choose another",
        files={"runs/x": ""},
    ),
    Case(
        "a huber_delta without huber",
        'x.toml:15: training.loss.huber_delta: has no effect with function = "mse"; remove it',
        value("[runtime]", "loss.huber_delta = 0.1\n[runtime]"),
    ),
    Case(
        "all weights 0",
        "x.toml:15: training.loss.energy_weight: all weights are 0, so nothing would be trained; set one above 0",
        value("[runtime]", "loss = { energy_weight = 0, forces_weight = 0 }\n[runtime]"),
    ),
    Case(
        "16-mixed with forces",
        (
            'x.toml:16: runtime.precision: must not be "16-mixed" where forces or stress are trained: their '
            'second derivatives leave the range of float16 (6e-8 to 65504), and such steps are left out; use "bf16-mixed", '
            'which has the range of float32, or "32-true"'
        ),
        value('accelerator = "cpu"', 'precision = "16-mixed"'),
    ),
    Case(
        "stress without a key",
        (
            "x.toml: dataset.stress_key: missing, but training.loss.stress_weight is 1; name the key of the "
            "stress, or set the weight to 0"
        ),
        value("[runtime]", "loss.stress_weight = 1.0\n[runtime]"),
    ),
    Case(
        "a run folder of another experiment",
        (
            "DIR/runs/x: holds a run with other settings:\n"
            "  training.batch_size: was 4, is 2\n"
            "A run cannot go on with these changed. Choose another runtime.run_folder, or delete this one"
        ),
        command=TRAIN + " --set training.batch_size=2",
        needs_run=True,
    ),
    Case(
        "data that changed under a run",
        (
            "DIR/runs/x/split.npz: the data files have changed since this run drew its split, so the run cannot "
            "go on with them. Restore the files, or start a new run with another runtime.run_folder"
        ),
        files={"water.xyz": waters(9)},
        command=TRAIN + " --set training.max_epochs=2",
        needs_run=True,
    ),
    Case(
        "a missing table of values",
        'x.toml: dataset.self_energies.values: missing; source "values" needs a table such as values = { H = -13.6 }',
        added('self_energies = { source = "values" }'),
    ),
    Case(
        "a file without single atoms",
        (
            "x.toml:10: dataset.self_energies.isolated_atoms_path: DIR/water.xyz holds no single atom with an "
            "energy; name another file"
        ),
        added('self_energies = { source = "isolated_atoms", isolated_atoms_path = "water.xyz" }'),
    ),
    Case(
        "a virial for a stress",
        "x.toml:10: dataset.stress_key: must name a stress (got 'virial'); name a virial in virial_key",
        added('stress_key = "virial"'),
    ),
    Case(
        "a validation of other elements",
        (
            "x.toml:10: dataset.split: the set 'validation' has elements that no training structure has (S); add "
            "structures with them to the training set, or remove them from this one"
        ),
        value("counts = [6, 2, 0]", 'strategy = "blocks"\ncounts = [7, 1, 0]'),
        {"water.xyz": waters(7) + water(8, symbols="SHH")},
    ),
    Case(
        "one file for training and validation",
        (
            "x.toml:12: dataset.split.validation_files: must leave structures for the set 'train' (got none of "
            "the 8 structures); name other files"
        ),
        value("counts = [6, 2, 0]", 'strategy = "files"\nvalidation_files = ["water.xyz"]'),
    ),
    Case(
        "files and counts",
        (
            'x.toml:13: dataset.split.counts: has no effect with strategy = "files", which takes validation_files '
            "and test_files; remove it"
        ),
        value("counts", 'strategy = "files"\nvalidation_files = ["water.xyz"]\ncounts'),
    ),
    Case(
        "a missing run folder",
        "runs/y: no such run folder or file of a potential",
        command="evaluate --model runs/y --data water.xyz",
        needs_run=True,
    ),
    Case(
        "a run that is not finished",
        (
            "runs/x: holds no potential.safetensors, which a run writes when it is finished; finish it with the "
            "command that started it, or name another folder"
        ),
        files={"runs/x/log.txt": ""},
        command="evaluate --model runs/x --data water.xyz",
    ),
    Case(
        "a model that is none",
        (
            "water.xyz: cannot be read as a potential (Error while deserializing header: header too large); it "
            "must be a potential.safetensors of modelforge"
        ),
        command="evaluate --model water.xyz --data water.xyz",
    ),
    Case(
        "an element that the potential does not know",
        "heavy.xyz:1: has S, which the potential was not trained on (it knows H, O)",
        files={"heavy.xyz": waters(1) + waters(symbols="SHH")},
        command="evaluate --model runs/x --data heavy.xyz",
        needs_run=True,
    ),
    Case(
        "no such file to evaluate",
        "--data: 'hot*.xyz' matches no file: looked for DIR/hot*.xyz",
        command="evaluate --model runs/x --data hot*.xyz",
        needs_run=True,
    ),
    Case(
        "no such device",
        "--device: must be a device such as cpu, cuda or cuda:1 (got 'gpu')",
        command="evaluate --model runs/x --data water.xyz --device gpu",
        needs_run=True,
    ),
    Case(
        "a file in the place of the output",
        "--out: must be a folder to write to (got x.toml: File exists); choose another",
        command="evaluate --model runs/x --data water.xyz --out x.toml",
        needs_run=True,
    ),
    Case(
        "an unknown data set",
        (
            "x.toml:8: dataset.name: unknown choice 'spice3' (did you mean 'spice2'? choices: "
            "extxyz, hdf5, npz, ase, deepmd, store, mixed, quickstart, qm9, ani1x, ani2x, spice1, spice2, phalkethoh, "
            "tmqm, fe_ii, rmd17, md22)"
        ),
        value('"extxyz"', '"spice3"'),
    ),
    Case(
        "a text for an HDF5 file",
        "DIR/water.hdf5: must be an HDF5 file (got one that begins with b'no HDF5\\n'; a .gz file must be unpacked first)",
        named("hdf5", "water.hdf5"),
        {"water.hdf5": "no HDF5\n"},
    ),
    Case(
        "a text for an npz file",
        "DIR/water.npz: must be an npz file, which is a zip archive (got one that begins with b'no zip')",
        named("npz", "water.npz"),
        {"water.npz": "no zip\n"},
    ),
    Case(
        "arrays without a unit of energy",
        "x.toml: dataset.energy_unit: missing; DIR/water.npz does not state it",
        named("npz", "water.npz"),
        binary={"water.npz": ARRAYS},
    ),
    Case(
        "arrays without a unit of length",
        "x.toml: dataset.length_unit: missing; DIR/water.npz does not state it",
        (*named("npz", "water.npz"), *added('energy_unit = "eV"')),
        binary={"water.npz": ARRAYS},
    ),
    Case(
        "a folder for arrays",
        "x.toml:9: dataset.path: 'DIR/data' must name a file (got a folder; 'DIR/data/*.xyz' names files in it)",
        named("npz", "data"),
        {"data/a.npz": ""},
    ),
    Case(
        "a filter that leaves nothing",
        ("x.toml:10: dataset.filter: leaves none of the 8 structures (fewer than 4 atoms 8); loosen it"),
        added("filter = { min_atoms = 4 }"),
    ),
    Case(
        "a filter of a misspelt subset",
        ("x.toml:10: dataset.filter.subsets: 'liquit' is no subset of the data (did you mean 'liquid'?); there are 'liquid'"),
        added('filter = { subsets = ["liquit"] }'),
        {"water.xyz": waters(header="config_type=liquid")},
    ),
    Case(
        "a weight of a misspelt subset",
        ("x.toml:10: dataset.subset_weights: 'liquit' is no subset of the data (did you mean 'liquid'?); there are 'liquid'"),
        added("subset_weights = { liquit = 2.0 }"),
        {"water.xyz": waters(header="config_type=liquid")},
    ),
    Case(
        "forces and gradients",
        (
            "x.toml:11: dataset.gradient_key: must not be given together with forces_key, as both are read as forces; "
            "remove one of them"
        ),
        added('forces_key = "forces"\ngradient_key = "forces"'),
    ),
    Case(
        "stress and virial",
        (
            "x.toml:11: dataset.virial_key: must not be given together with stress_key, as both are read as stress; "
            "remove one of them"
        ),
        added('stress_key = "stress"\nvirial_key = "virial"'),
    ),
    Case(
        "a unit of a stress for a virial",
        (
            "x.toml:11: dataset.stress_unit: has no effect with virial_key, whose unit is that of the energy and whose "
            "sign is fixed; remove it"
        ),
        added('virial_key = "virial"\nstress_unit = "GPa"'),
    ),
    Case(
        "a unit of something else",
        (
            "x.toml:10: dataset.forces_unit: unknown choice 'kcal/mol' (did you mean 'kcal/mol/angstrom'? "
            "choices: eV/angstrom, meV/angstrom, eV/nm, hartree/bohr, hartree/angstrom, rydberg/bohr, kcal/mol/angstrom, "
            "kJ/mol/angstrom, kJ/mol/nm)"
        ),
        added('forces_unit = "kcal/mol"'),
    ),
    Case(
        "another unit than the file states",
        (
            "x.toml:10: dataset.energy_unit: must be the unit that the file states, 'Ha' (got 'eV'); remove the key "
            "(DIR/water.xyz)"
        ),
        added('energy_unit = "eV"'),
        {"water.xyz": waters(header="energy_unit=Ha")},
    ),
    Case(
        "a folder that is no DeePMD system",
        (
            "x.toml:9: dataset.path: 'DIR/data' must name a DeePMD system, a folder with type.raw, or folders of them "
            "(got a folder without)"
        ),
        named("deepmd", "data"),
        {"data/type_map.raw": "H O"},
    ),
    Case(
        "a file for a DeePMD system",
        (
            "x.toml:9: dataset.path: 'DIR/water.xyz' must name a DeePMD system, a folder with type.raw, or folders of "
            "them (got a file)"
        ),
        named("deepmd", "water.xyz"),
    ),
    Case(
        "a store that is none",
        (
            "x.toml:9: dataset.path: 'DIR/data' must be a store (a folder with columns.json, as `modelforge data convert` "
            "writes)"
        ),
        named("store", "data"),
        {"data/water.xyz": waters()},
    ),
    Case(
        "a store that is not there",
        (
            "x.toml:9: dataset.path: 'DIR/kept' must be a store (a folder with columns.json, as `modelforge data convert` "
            "writes)"
        ),
        named("store", "kept"),
    ),
    Case(
        "a split within one of several sources",
        "x.toml:12: dataset.sources.a.split: has no effect in one of several sources; set dataset.split",
        mixed('name = "extxyz"\npath = "water.xyz"\nsplit.seed = 1'),
    ),
    Case(
        "no data in one of several sources",
        "x.toml:11: dataset.sources.a.path: 'DIR/watr.xyz' matches no file (did you mean 'water.xyz'?)",
        mixed('name = "extxyz"\npath = "watr.xyz"'),
    ),
    Case(
        "no energies in a source of several",
        (
            "x.toml:12: dataset.sources.a.energy_key: 'E' is in no structure of DIR/water.xyz; header keys there: "
            "energy; name the right key, or set training.loss.energy_weight = 0"
        ),
        mixed('name = "extxyz"\npath = "water.xyz"\nenergy_key = "E"'),
    ),
    Case(
        "a registered data set without its molecule",
        (
            "x.toml: dataset.molecule: missing; rmd17 has one file for each of aspirin, azobenzene, benzene, ethanol, "
            "malonaldehyde, naphthalene, paracetamol, salicylic, toluene, uracil"
        ),
        value('name = "extxyz"\npath = "water.xyz"', 'name = "rmd17"'),
    ),
    Case(
        "a registered data set that is not there yet",
        (
            "x.toml:8: dataset.name: the data set 'rmd17' is not on this machine yet; get it with: modelforge data fetch "
            "rmd17 --molecule ethanol --folder DIR/kept"
        ),
        value('name = "extxyz"\npath = "water.xyz"', 'name = "rmd17"\nmolecule = "ethanol"\nfolder = "kept"'),
    ),
    Case(
        "a batch size and a budget",
        "x.toml:14: training.batch_size: must not be given together with max_edges; remove one of them",
        value("batch_size = 4", "batch_size = 4\nmax_edges = 1000"),
    ),
    Case(
        "moments without charges",
        (
            "x.toml:15: training.loss.dipole_weight: is 2, but this potential has no partial charges, which dipoles and "
            "quadrupoles come from too; set potential.partial_charges = true, or the weight to 0\n"
            "x.toml:17: training.second_stage.partial_charges_weight: is 1, but this potential has no partial charges, which "
            "dipoles and quadrupoles come from too; set potential.partial_charges = true, or the weight to 0"
        ),
        value(
            "batch_size = 4",
            "batch_size = 4\nloss.dipole_weight = 2.0\n"
            "second_stage.start_epoch = 0.5\nsecond_stage.partial_charges_weight = 1.0",
        ),
    ),
    Case(
        "charges that nothing trains",
        (
            "x.toml:4: potential.partial_charges: is true, but nothing trains the charges; give "
            "training.loss.partial_charges_weight, dipole_weight or quadrupole_weight, or a [potential.coulomb] energy of "
            "which they are part, or set it to false"
        ),
        value("cutoff = 3.0", "cutoff = 3.0\npartial_charges = true"),
    ),
    Case(
        "direct forces that nothing trains",
        (
            'x.toml:4: potential.forces: must not be "direct" where training.loss.forces_weight is 0, as nothing would train '
            'them; set a weight above 0, or use "derivative"'
        ),
        (("cutoff = 3.0", 'cutoff = 3.0\nforces = "direct"'), ("batch_size = 4", "batch_size = 4\nloss.forces_weight = 0.0")),
    ),
    Case(
        "a stress of an energy that nothing trains",
        (
            "x.toml:17: training.loss.stress_weight: must be 0 where forces are direct and training.loss.energy_weight is 0: "
            "the stress is a derivative of the energy; set a weight of the energy above 0"
        ),
        (
            ("cutoff = 3.0", 'cutoff = 3.0\nforces = "direct"'),
            ('path = "water.xyz"', 'path = "water.xyz"\nstress_key = "stress"'),
            ("batch_size = 4", "batch_size = 4\nloss.stress_weight = 1.0\nloss.energy_weight = 0.0"),
        ),
    ),
    Case(
        "a dipole that has no key",
        (
            "x.toml: dataset.dipole_key: missing, but training.loss.dipole_weight is 1; name the key if there is one, or set "
            "the weight to 0"
        ),
        (
            ("cutoff = 3.0", "cutoff = 3.0\npartial_charges = true"),
            ("batch_size = 4", "batch_size = 4\nloss.dipole_weight = 1.0"),
        ),
    ),
    Case(
        "dipoles of crystals",
        (
            "x.toml:17: training.loss.dipole_weight: is 1, but all structures of the training set are periodic, where a dipole "
            "depends on the choice of the cell; set the weight to 0"
        ),
        (
            ("cutoff = 3.0", "cutoff = 3.0\npartial_charges = true"),
            ('path = "water.xyz"', 'path = "water.xyz"\ndipole_key = "d"'),
            ("batch_size = 4", "batch_size = 4\nloss.dipole_weight = 1.0"),
        ),
        {"water.xyz": waters(header='d="0 0 1" Lattice="9 0 0 0 9 0 0 0 9" pbc="T T T"')},
    ),
    Case(
        "an embedding of a charge that nothing says",
        (
            "x.toml:4: potential.charge_embedding: is true, but no training structure says its total charge; name its key in "
            "dataset.total_charge_key, or set this to false"
        ),
        value("cutoff = 3.0", "cutoff = 3.0\ncharge_embedding = true"),
    ),
    Case(
        "no such file to convert",
        "FILE: 'watr.xyz' matches no file: looked for DIR/watr.xyz (did you mean 'water.xyz'?)",
        command="data convert watr.xyz --out kept",
    ),
    Case(
        "a file of no format to convert",
        (
            "FILE: x.toml: no known format; known are .xyz, .extxyz, .h5, .hdf5, .hdf, .npz, .db, .aselmdb; name it with "
            "--set name=extxyz"
        ),
        command="data convert x.toml --out kept",
    ),
    Case(
        "an output that is there",
        "--out: must not exist yet (got x.toml); remove it, or choose another name",
        command="data convert water.xyz --out x.toml",
    ),
    Case(
        "a misspelt setting of a conversion",
        "--set dataset.energi_unit=eV: dataset.energi_unit: unknown key (did you mean energy_unit?)",
        command="data convert water.xyz --out kept --set energi_unit=eV",
    ),
    Case(
        "an unknown section",
        "modelforge describe training.los: no such table or key (did you mean training.loss?)",
        command="describe training.los",
    ),
]


def stderr_of(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that is a user's mistake writes to stderr."""
    monkeypatch.setattr(sys, "argv", ["modelforge", *command.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment, its data and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "x.toml").write_text(TOML)
    (folder / "water.xyz").write_text(waters())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["modelforge", *TRAIN.split()])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == 0
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_told_with_its_place_and_remedy(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    toml = TOML
    for old, new in case.toml:
        assert old in toml
        toml = toml.replace(old, new, 1)
    if case.needs_run:
        copy_run(request.getfixturevalue("finished_run"), tmp_path)
    for name, text in {"x.toml": toml, "water.xyz": waters(), **case.files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, content in case.binary.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    message = stderr_of(case.command, monkeypatch, capsys).replace(str(tmp_path), "DIR")
    assert message == f"error: {case.message}\n"


def copy_run(finished: Path, folder: Path) -> None:
    """A finished run as if it had been made here."""
    shutil.copytree(finished / "runs", folder / "runs")
    experiment = folder / "runs/x/experiment.toml"
    experiment.write_text(experiment.read_text().replace(str(finished), str(folder)))
