"""Evidence on disk: plain tables, written once, then only read."""
