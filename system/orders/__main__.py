"""`python -m system.orders`."""

import sys

from system.orders.service import main

if __name__ == "__main__":
    sys.exit(main())
