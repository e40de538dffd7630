"""The payments service: charges every order, once, and says how it ended."""
