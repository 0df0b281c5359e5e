"""Engines, on which trials run: this machine, or a cluster."""
