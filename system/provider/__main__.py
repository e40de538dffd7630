"""`python -m system.provider`."""

import sys

from system.provider.service import main

if __name__ == "__main__":
    sys.exit(main())
