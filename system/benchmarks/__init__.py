"""Benchmarks of the system: figures for people, never timed tests."""
