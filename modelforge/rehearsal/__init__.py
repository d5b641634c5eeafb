"""The rehearsal before a run: what would fail at its end fails now."""
