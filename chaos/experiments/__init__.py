"""Experiments, one a file; each is also a script."""
