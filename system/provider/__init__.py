"""The stand-in payment provider: charges and refunds once per key, and writes it down before it answers."""
