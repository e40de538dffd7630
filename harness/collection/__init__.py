"""Collectors: one for each independent source of evidence."""
