"""Tests of the environment: real brokers, real proxies, real processes."""
