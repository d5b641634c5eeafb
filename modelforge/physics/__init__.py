"""Energies that are known before anything is trained, with forces and stress: repulsion of nuclei, dispersion."""
