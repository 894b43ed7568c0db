"""`python -m sempa` is the command line."""

import sys

from sempa.cli import main

if __name__ == "__main__":
    sys.exit(main())
