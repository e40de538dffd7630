"""The stand-in payment provider: charges once per key, and writes it down before it answers."""
