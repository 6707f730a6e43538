"""The thin helper behind the pprml notebooks: one module a topic, five shared rooms, nothing heavy on import."""

from pathlib import Path

__version__ = "0.1.0"

#: Root of the checkout: the notebooks, the ledger and the figures live beside the package.
ROOT = Path(__file__).resolve().parent.parent
