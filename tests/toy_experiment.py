"""A tiny experiment for tests that run whole commands: water molecules with made-up labels, and a net of 4 features."""

import numpy as np

TOML = """\
[potential]
name = "schnet"
cutoff = 3.0
num_features = 4
num_layers = 1
num_radial = 4
[dataset]
name = "extxyz"
path = "water.xyz"
[dataset.split]
counts = [6, 2, 0]
[training]
max_epochs = 1
batch_size = 4
[runtime]
accelerator = "cpu"
progress_bar = false
"""
PROPERTIES = "Properties=species:S:1:pos:R:3:forces:R:3"


def water(number: int, *, energy: str = "", header: str = "", symbols: str = "OHH", properties: str = PROPERTIES) -> str:
    """A bent molecule, a little different for each number, with a made-up energy near that of water in eV."""
    positions = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
    positions = positions + 0.02 * np.random.default_rng(number).normal(size=(3, 3))
    forces = -10.0 * (positions - positions.mean(axis=0))
    energy = energy or f"energy={-2079.0 + 0.01 * number:.6f}"
    lines = [
        f"{symbol} {' '.join(f'{x:.6f}' for x in (*r, *f))}" for symbol, r, f in zip(symbols, positions, forces, strict=True)
    ]
    return "\n".join(["3", f"{properties} {energy} {header}".strip(), *lines]) + "\n"


def waters(num: int = 8, **options: str) -> str:
    return "".join(water(number, **options) for number in range(num))
