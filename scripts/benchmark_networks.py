"""What `benchmark_training.py` compares: the peers, and the sizes with which both sides build each network.

Imports neither torch nor modelforge, as the benchmark itself.
"""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Peer:
    """Another trainer: what pip installs, and which networks it has."""

    requirement: str  # one or several, with spaces between
    potentials: tuple[str, ...]
    workers: tuple[int, ...] = (0, 1)  # data loading processes that are tried
    variants: tuple[str, ...] = ()  # settings of its script that are tried besides
    batch_size: int = 10
    kernels: tuple[str, ...] = ()  # settings of its script for GPUs, by the package of kernels that each needs
    environment: str = ""  # the peer whose virtual environment and script it shares
    takes_this_torch: bool = True  # else pip finds the newest torch that the peer allows, with its CUDA packages
    network: dict[str, dict[str, object]] = field(default_factory=dict)
    """What our network takes over from the peer's, by potential."""


PEERS = {
    # Its pins lead pip to torch 2.4.1, which needs Python 3.12 or older.
    "schnetpack": Peer("schnetpack==2.1.1", ("painn", "schnet"), takes_this_torch=False),
    # Its batches lie in memory, so there is nothing for other processes to do.
    "torchani": Peer("torchani==2.9.0", ("ani",), workers=(0,), variants=("scripted", "all seven elements")),
    "torchmd-net": Peer("torchmd-net==3.1.0", ("tensornet",), variants=("no warp",)),
    "graph-pes": Peer(
        "graph-pes==1.0.2",
        ("painn", "schnet", "tensornet"),
        network={"painn": {"radial_basis": "bessel"}},
    ),
    "mace": Peer("mace-torch==0.3.16", ("mace",), batch_size=5, kernels=("cuequivariance", "openequivariance")),
    "nequip": Peer(
        "nequip==0.19.1 nequip-allegro==0.8.3",
        ("nequip",),
        variants=("compiled",),
        batch_size=5,
        kernels=("cuequivariance", "openequivariance"),
    ),
}
PEERS["allegro"] = replace(PEERS["nequip"], potentials=("allegro",), environment="nequip")  # an extension of nequip


# For SchNet and PaiNN as in the examples of SchNetPack, TensorNet as in those of TorchMD-Net, each with 64 features: what a
# processor can train. ANI-2x as published. NequIP as in its tutorial, with the default radial network; MACE with the defaults
# of its command, but 32 channels; Allegro as in its tutorial (64 scalar and 32 tensor features, networks of 64, 64 and of 128,
# 128), with half the widths but l_max 2.
NETWORKS: dict[str, dict[str, object]] = {
    "schnet": {"cutoff": 5.0, "num_features": 64, "num_layers": 3, "num_radial": 20},
    "painn": {"cutoff": 5.0, "num_features": 64, "num_layers": 3, "num_radial": 20},
    "tensornet": {"cutoff": 4.5, "num_features": 64, "num_layers": 2, "num_radial": 32},
    "ani": {},
    "nequip": {
        "cutoff": 5.0,
        "l_max": 1,
        "parity": True,
        "num_features": 32,
        "num_layers": 4,
        "num_bessel": 8,
        "radial_hidden": [128],
    },
    "mace": {
        "cutoff": 5.0,
        "max_ell": 3,
        "l_max": 1,
        "num_channels": 32,
        "correlation": 3,
        "num_layers": 2,
        "num_bessel": 8,
        "radial_hidden": [64, 64, 64],
        "readout_hidden": 16,
    },
    "allegro": {
        "cutoff": 5.0,
        "l_max": 2,
        "parity": True,
        "num_layers": 2,
        "num_scalar_features": 32,
        "num_tensor_features": 16,
        "num_bessel": 8,
        "scalar_embed_hidden": [32, 32],
        "mlp_hidden": [64, 64],
        "readout_hidden": [32],
    },
}
