"""The thin helper behind the pprml notebooks: one module a topic, five shared rooms, nothing heavy on import."""

import os
from pathlib import Path

__version__ = "0.1.0"

#: Root of the checkout: the notebooks, the ledger and the figures live beside the package.
ROOT = Path(__file__).resolve().parent.parent

#: Seconds that a protocol between processes waits before it says that a party hangs: long enough for a busy machine with one core.
PATIENCE = float(os.environ.get("PPRML_PATIENCE") or 1800)
