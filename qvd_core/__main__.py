"""`python -m qvd_core`: see cli.py."""

import sys

from qvd_core.cli import main

sys.exit(main())
