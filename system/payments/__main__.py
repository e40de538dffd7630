"""`python -m system.payments`."""

import sys

from system.payments.service import main

if __name__ == "__main__":
    sys.exit(main())
