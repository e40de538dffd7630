"""The proxies: the real Toxiproxy, built once, and what can be done to a connection with it."""
