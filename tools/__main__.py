"""`python -m fxprune.tools` is the command `fxprune`."""

import sys

from fxprune.tools.cli import main

sys.exit(main())
