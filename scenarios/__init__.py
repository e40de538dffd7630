"""Where all meet: the adapter for the shipped system, its invariants, planted bugs, scenario tests."""
