"""Faults, fault programs and experiments. Knows targets, not orders."""
