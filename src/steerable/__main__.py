"""``python -m steerable`` is the command ``steerable``."""

import sys

from steerable.cli import main

if __name__ == "__main__":
    sys.exit(main())
