"""What `benchmark_training.py` compares: the peers, and the sizes with which both sides build each network.

Imports neither torch nor modelforge, as the benchmark itself.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Peer:
    """Another trainer: what pip installs, and which networks it has."""

    requirement: str
    potentials: tuple[str, ...]
    workers: tuple[int, ...] = (0, 1)  # data loading processes that are tried
    variants: tuple[str, ...] = ()  # settings of its script that are tried besides
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
}

# For SchNet and PaiNN as in the examples of SchNetPack, TensorNet as in those of TorchMD-Net, each with 64 features: what a
# processor can train. ANI-2x as published.
NETWORKS: dict[str, dict[str, object]] = {
    "schnet": {"cutoff": 5.0, "num_features": 64, "num_layers": 3, "num_radial": 20},
    "painn": {"cutoff": 5.0, "num_features": 64, "num_layers": 3, "num_radial": 20},
    "tensornet": {"cutoff": 4.5, "num_features": 64, "num_layers": 2, "num_radial": 32},
    "ani": {},
}
