"""Stormproof's harness: starts real parts, collects evidence, judges it. Knows no domain.

Read `harness.run` first: it tells the whole way from plan to verdict.
"""

__version__ = "0.1.0"
