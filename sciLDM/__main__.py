"""`python -m sciLDM` is `scildm`."""

import sys

from sciLDM.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
