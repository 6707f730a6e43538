"""``python -m pprml.course``: the same as ``pprml``."""

import sys

from pprml.course.cli import main

sys.exit(main())
