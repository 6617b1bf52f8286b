"""`python -m fxprune.tools` is the command `fxprune`."""

import sys

from fxprune.tools.commands.main import main

sys.exit(main())
