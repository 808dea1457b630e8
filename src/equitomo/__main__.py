"""``python -m equitomo`` is the program ``equitomo``."""

import sys

from equitomo.cli import main

if __name__ == "__main__":
    sys.exit(main())
