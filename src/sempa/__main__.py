"""`python -m sempa` is the command line."""

import sys

from sempa.cli import main

sys.exit(main())
