"""Planted bugs: what the harness must find in the shipped system, one file each (see `harness.planting`)."""
