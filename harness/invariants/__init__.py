"""Verdict rules, and the invariants that need no domain."""
