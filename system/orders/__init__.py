"""The orders service: takes orders over HTTP, and knows what became of them."""
