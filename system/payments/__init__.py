"""The payments service: charges every order, once, undoes what is cancelled, and says how it ended."""
