"""Train neural network potentials: one TOML file in, a tested potential out."""

__version__ = "0.3.0"
