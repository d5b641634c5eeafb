"""SLURM: batch scripts that are written and submitted, and what a job has against what an experiment asks for."""
