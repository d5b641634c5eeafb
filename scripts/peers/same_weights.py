"""Write what MACE, NequIP or Allegro give with some weights: energies, forces, a loss and its gradient by each weight.

Runs in the virtual environment of the peer, in float64. The file is laid out like the golden ones (README beside them), and
has besides `label_energy` (S,), `label_forces` (N, 3), `loss_weights` (energy, forces), `loss_terms` (the same, unweighted),
`loss`, and `g/<name>`, the derivative of the loss by `w/<name>`. The loss is the default one of modelforge/training/loss.py:

    L = 1/S sum_s [ w_E (dE_s)^2 / N_s  +  w_F 1/(3 N_s) sum_i |dF_i|^2 ]

With --golden, sizes, weights and structures are those of a golden file, labels are made up, and its energies and forces are
compared; else a network of the sizes of --network gets random weights, and structures and labels are the first of --data.

    python scripts/peers/same_weights.py --golden mace_L1_nu3.npz --out mace_L1_nu3_gradients.npz
"""

# mypy: allow-untyped-calls, disable-error-code="import-not-found"
# because ase annotates only some of its functions, and the peers are in environments of their own.

import argparse
import json
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from ase.io import iread
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray
from torch import Tensor, nn

Arrays = dict[str, NDArray[Any]]
Hyper = dict[str, Any]
Predict = Callable[[Arrays], tuple[Tensor, Tensor, Tensor]]
"""Energy (), atomic energies (N,) and forces (N, 3) of a single structure with its edges."""
SEED = 0
LOSS_WEIGHTS = (1.0, 100.0)  # energy, forces
STRUCTURE_KEYS = ("structure_names", "n_atoms", "atomic_numbers", "positions", "cell", "pbc")
EDGE_KEYS = ("n_edges", "edge_i", "edge_j", "edge_S")


def mace_network(hyper: Hyper) -> tuple[nn.Module, Predict]:
    """MACE as `mace_run_train` builds it, from the keys of the golden files."""
    from mace import modules  # before e3nn: it lets e3nn 0.4.4 load its constants with this torch

    # isort: split
    from e3nn import o3

    blocks = modules.interaction_classes
    given = ("r_max", "num_bessel", "num_polynomial_cutoff", "max_ell", "num_interactions", "avg_num_neighbors", "correlation")
    model: nn.Module = modules.ScaleShiftMACE(
        **{name: hyper[name] for name in given},
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks[hyper["interaction_first"]],
        num_elements=len(hyper["atomic_numbers"]),
        hidden_irreps=o3.Irreps(hyper["hidden_irreps"]),
        MLP_irreps=o3.Irreps(hyper["MLP_irreps"]),
        atomic_energies=np.array(hyper["atomic_energies"]),
        atomic_numbers=hyper["atomic_numbers"],
        gate=torch.nn.functional.silu,
        radial_MLP=hyper["radial_MLP"],
        radial_type="bessel",
        atomic_inter_scale=hyper["atomic_inter_scale"],
        atomic_inter_shift=hyper["atomic_inter_shift"],
    )

    def predict(structure: Arrays) -> tuple[Tensor, Tensor, Tensor]:
        num_atoms = len(structure["positions"])
        data = {
            "positions": torch.tensor(structure["positions"]),
            "node_attrs": torch.tensor(np.equal.outer(structure["atomic_numbers"], hyper["atomic_numbers"]).astype(float)),
            "edge_index": torch.tensor(np.stack([structure["edge_j"], structure["edge_i"]])),  # sender, receiver
            "shifts": torch.tensor(-structure["edge_S"] @ structure["cell"]),  # its vectors point to the receiver
            "unit_shifts": torch.tensor(-structure["edge_S"].astype(float)),
            "cell": torch.tensor(structure["cell"]),
            "batch": torch.zeros(num_atoms, dtype=torch.long),
            "ptr": torch.tensor([0, num_atoms]),
        }
        output = model(data, training=True, compute_force=True)
        return output["energy"][0], output["node_energy"], output["forces"]

    return model, predict


def nequip_network(hyper: Hyper) -> tuple[nn.Module, Predict]:
    """NequIP or Allegro, from the keys of the golden files, which are those of its configuration."""
    import allegro.model
    import nequip.model
    from nequip.data import AtomicDataDict as Keys
    from nequip.utils.global_state import set_global_state

    set_global_state()
    build = {"nequip": nequip.model.NequIPGNNModel, "allegro": allegro.model.AllegroModel}[hyper["model"]]
    sizes = {name: value for name, value in hyper.items() if name != "model"}
    for name in ("per_type_energy_scales", "per_type_energy_shifts"):
        sizes[name] = dict(zip(hyper["type_names"], hyper[name], strict=True))
    model: nn.Module = build(**sizes, seed=SEED, model_dtype="float64", compile_mode="eager").train()
    types = {atomic_numbers[name]: number for number, name in enumerate(hyper["type_names"])}

    def predict(structure: Arrays) -> tuple[Tensor, Tensor, Tensor]:
        data = {
            Keys.POSITIONS_KEY: torch.tensor(structure["positions"]),
            Keys.ATOM_TYPE_KEY: torch.tensor([types[int(number)] for number in structure["atomic_numbers"]]),
            Keys.EDGE_INDEX_KEY: torch.tensor(np.stack([structure["edge_i"], structure["edge_j"]])),
        }
        if structure["pbc"].any():
            data[Keys.CELL_KEY] = torch.tensor(structure["cell"])[None]
            data[Keys.EDGE_CELL_SHIFT_KEY] = torch.tensor(structure["edge_S"].astype(float))
        output = model(data)
        return output[Keys.TOTAL_ENERGY_KEY].sum(), output[Keys.PER_ATOM_ENERGY_KEY][:, 0], output[Keys.FORCE_KEY]

    return model, predict


def network(hyper: Hyper) -> tuple[nn.Module, Predict]:
    """The peer's network with random weights."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(SEED)
    return (nequip_network if "model" in hyper else mace_network)(hyper)


def load_weights(model: nn.Module, golden: Arrays) -> None:
    """Put the weights of a golden file into a network, all of them; it leaves out what is empty."""
    weights = {name.removeprefix("w/"): torch.tensor(values) for name, values in golden.items() if name.startswith("w/")}
    own = model.state_dict()
    if missing := [name for name, values in own.items() if values.numel() and name not in weights]:
        raise SystemExit(f"--golden: all weights of the network (missing {missing})")
    model.load_state_dict(own | weights)


def hyper_of(potential: str, sizes: Hyper, structures: Arrays) -> Hyper:
    """Hyper-parameters of a network of the benchmark, with the keys of the golden files."""
    elements = sorted({int(number) for number in structures["atomic_numbers"]})
    num_neighbors = len(structures["edge_i"]) / len(structures["atomic_numbers"])
    hyper = mace_hyper(sizes, elements) if potential == "mace" else nequip_hyper(potential, sizes, elements)
    return hyper | {"r_max": sizes["cutoff"], "avg_num_neighbors": num_neighbors}


def mace_hyper(sizes: Hyper, elements: list[int]) -> Hyper:
    """Those of MACE."""
    return {
        "MLP_irreps": f"{sizes['readout_hidden']}x0e",
        "atomic_energies": [-0.7 * number for number in range(1, len(elements) + 1)],
        "atomic_inter_scale": 0.8,
        "atomic_inter_shift": 0.15,
        "atomic_numbers": elements,
        "correlation": sizes["correlation"],
        "hidden_irreps": "+".join(
            f"{sizes['num_channels']}x{degree}{'eo'[degree % 2]}" for degree in range(sizes["l_max"] + 1)
        ),
        "interaction_first": "RealAgnosticResidualInteractionBlock",
        "max_ell": sizes["max_ell"],
        "num_bessel": sizes["num_bessel"],
        "num_interactions": sizes["num_layers"],
        "num_polynomial_cutoff": 5,
        "radial_MLP": sizes["radial_hidden"],
    }


def nequip_hyper(potential: str, sizes: Hyper, elements: list[int]) -> Hyper:
    """Those of NequIP and Allegro."""
    from train_nequip import allegro_sizes, nequip_sizes

    own: Hyper = (nequip_sizes if potential == "nequip" else allegro_sizes)(sizes)
    del own["_target_"]
    own.get("radial_chemical_embed", own)["polynomial_cutoff_p"] = 6
    some = range(1, len(elements) + 1)
    return own | {
        "model": potential,
        **{name: sizes[name] for name in ("l_max", "parity", "num_layers")},
        "type_names": [chemical_symbols[number] for number in elements],
        "per_type_energy_scales": [0.8 + 0.1 * number for number in some],
        "per_type_energy_shifts": [-0.7 * number for number in some],
    }


def structures_of(data: Path, number: int, cutoff: float) -> Arrays:
    """The first structures of a file with their edges and labels; energies from their mean on."""
    frames = list(islice(iread(data), number))
    energies = np.array([frame.get_potential_energy() for frame in frames])
    edges = [neighbor_list("ijS", frame, cutoff) for frame in frames]
    starts = np.cumsum([0, *(len(frame) for frame in frames)])
    return {
        "structure_names": np.array([f"{data.name} {number}" for number in range(len(frames))]),
        "n_atoms": np.array([len(frame) for frame in frames]),
        "atomic_numbers": np.concatenate([frame.numbers for frame in frames]),
        "positions": np.concatenate([frame.positions for frame in frames]),
        "cell": np.array([frame.cell.array * frame.pbc.any() for frame in frames]),
        "pbc": np.array([frame.pbc for frame in frames]),
        "n_edges": np.array([len(found[0]) for found in edges]),
        "edge_i": np.concatenate([found[0] + start for found, start in zip(edges, starts, strict=False)]),
        "edge_j": np.concatenate([found[1] + start for found, start in zip(edges, starts, strict=False)]),
        "edge_S": np.concatenate([found[2] for found in edges]),
        "label_energy": energies - energies.mean(),
        "label_forces": np.concatenate([frame.get_forces() for frame in frames]),
    }


def made_up_labels(golden: Arrays) -> Arrays:
    """Labels for the structures of a golden file, which has none: random numbers."""
    rng = np.random.default_rng(SEED)
    return {f"label_{name}": rng.normal(size=golden[name].shape) for name in ("energy", "forces")}


def single(arrays: Arrays, number: int) -> Arrays:
    """A structure alone, its edges with its own numbers of atoms."""
    atoms = slice(*np.cumsum([0, *arrays["n_atoms"]])[number : number + 2])
    edges = slice(*np.cumsum([0, *arrays["n_edges"]])[number : number + 2])
    per_atom = {name: arrays[name][atoms] for name in ("atomic_numbers", "positions", "label_forces")}
    per_structure = {name: arrays[name][number] for name in ("cell", "pbc", "label_energy")}
    ends = {name: arrays[name][edges] - atoms.start for name in ("edge_i", "edge_j")}
    return {**per_atom, **per_structure, **ends, "edge_S": arrays["edge_S"][edges]}


def results(model: nn.Module, predict: Predict, arrays: Arrays) -> Arrays:
    """Outputs, loss and gradient; structure by structure, as the loss is a mean over these."""
    energies, atomic_energies, forces, terms = [], [], [], []
    for place in range(len(arrays["n_atoms"])):
        structure = single(arrays, place)
        energy, parts, force = predict(structure)
        energy_error = (energy - torch.tensor(structure["label_energy"])) ** 2 / len(force)
        forces_error = (force - torch.tensor(structure["label_forces"])).square().mean()
        term = torch.stack([energy_error, forces_error]) / len(arrays["n_atoms"])
        (term @ torch.tensor(LOSS_WEIGHTS)).backward()
        energies.append(energy.item())
        atomic_energies.append(parts.detach().numpy())
        forces.append(force.detach().numpy())
        terms.append(term.detach().numpy())
    total = np.sum(terms, axis=0)
    gradients = {
        f"g/{name}": np.zeros(tuple(weight.shape)) if weight.grad is None else weight.grad.numpy()
        for name, weight in model.named_parameters()
    }
    return {
        "energy": np.array(energies),
        "atomic_energy": np.concatenate(atomic_energies),
        "forces": np.concatenate(forces),
        "loss_weights": np.array(LOSS_WEIGHTS),
        "loss_terms": total,
        "loss": total @ np.array(LOSS_WEIGHTS),
        **gradients,
    }


def constants(hyper: Hyper) -> Arrays:
    """What the golden files hold besides as arrays."""
    if "model" not in hyper:
        names = {"atomic_numbers_order": "atomic_numbers", "scale": "atomic_inter_scale", "shift": "atomic_inter_shift"}
        names |= {"atomic_energies": "atomic_energies", "avg_num_neighbors": "avg_num_neighbors"}
    else:
        names = {name: name for name in ("avg_num_neighbors", "type_names", "per_type_energy_scales", "per_type_energy_shifts")}
    return {name: np.array(hyper[key]) for name, key in names.items()}


def main() -> None:
    """Build, compute, write."""
    options = _options()
    warnings.filterwarnings("ignore")
    golden: Arrays = {}
    if options.golden:
        with np.load(options.golden, allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
        arrays = {name: golden[name] for name in (*STRUCTURE_KEYS, *EDGE_KEYS)} | made_up_labels(golden)
        hyper = json.loads(str(golden["hyper"]))
    else:
        arrays = structures_of(options.data, options.structures, options.network["cutoff"])
        hyper = hyper_of(options.potential, options.network, arrays)
    model, predict = network(hyper)
    if golden:
        load_weights(model, golden)
    found = results(model, predict, arrays)
    for name in ("energy", "forces") if golden else ():
        difference = np.abs(found[name] - golden[name]).max() / np.abs(golden[name]).max()
        print(f"{name}: {difference:.1e} from the golden file")
    weights = {f"w/{name}": values.numpy() for name, values in model.state_dict().items() if values.numel()}
    texts = {
        "about": json.dumps({"what": "loss and gradient by each weight, float64", "torch": torch.__version__}),
        "hyper": json.dumps(hyper),
        "irreps": str(golden.get("irreps", "{}")),
    }
    np.savez_compressed(options.out, **texts, **constants(hyper), **arrays, **found, **weights)  # type: ignore[arg-type]
    print(f"{options.out.name}: loss {found['loss']:.12g}, {sum(weight.numel() for weight in model.parameters())} parameters")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Loss and gradient of a peer's network by each of its weights, as npz.")
    parser.add_argument("--golden", type=Path, help="npz with sizes, weights and structures; else the next four")
    parser.add_argument("--potential", choices=("allegro", "mace", "nequip"))
    parser.add_argument("--network", type=json.loads, help="the sizes of benchmark_networks.py as a JSON object")
    parser.add_argument("--data", type=Path, help="extended XYZ in eV and angstrom")
    parser.add_argument("--structures", type=int, default=5, help="so many of its first")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
