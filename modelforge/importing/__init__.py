"""Trained models of other packages as potentials of ours; a file a format, `registry.py` is the list of them."""
