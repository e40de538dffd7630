"""Containers: the same parts on a Docker engine of this host, and none of them left when the harness is gone."""
