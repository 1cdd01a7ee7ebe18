"""`python -m gmmvit` is the command `gmmvit`."""

import sys

from gmmvit.cli import main

if __name__ == "__main__":
    sys.exit(main())
