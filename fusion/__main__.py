"""`python -m fusion` is the command `fusion`."""

import sys

from fusion.cli.main import main

sys.exit(main())
