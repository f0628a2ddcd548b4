"""`python -m refattn`."""

import sys

from refattn._cli import main

if __name__ == "__main__":
    sys.exit(main())
