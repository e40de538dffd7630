"""`python -m system.deadletters`: what consumers gave up, and what shall become of it."""

import sys

from system.deadletters.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
