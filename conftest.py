"""This repository's own tests; fixtures that others can use too are in `harness.plugin` and `scenarios.plugin`."""

pytest_plugins = ["pytester"]
