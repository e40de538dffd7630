"""Benchmarks of the harness itself: figures for people, never timed tests."""
