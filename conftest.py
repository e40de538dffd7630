"""This repository's own tests; fixtures that others can use too are in `harness.plugin` and `scenarios.plugin`."""

import signal

pytest_plugins = ["pytester"]

# A shell starts what runs in its background with SIGINT ignored, and whatever a test starts inherits that; but what
# Ctrl-C does is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
