"""Time and peak memory of each notebook, run once from a fresh kernel; nothing but the results file is written."""

import os
import tempfile
from pathlib import Path

from benchmarks.run import Case
from pprml import report
from pprml.reproduce import list_notebooks
from pprml.runner import run_notebook


def measure_notebook(path: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        before = os.environ.get("PPRML_OUTPUT")
        os.environ["PPRML_OUTPUT"] = scratch
        try:
            run = run_notebook(path)
        finally:
            if before is None:
                os.environ.pop("PPRML_OUTPUT")
            else:
                os.environ["PPRML_OUTPUT"] = before
    return {"seconds": run.seconds, "gigabytes": run.peak_bytes / 1e9}


def list_cases() -> list[Case]:
    # A kernel that has never imported the libraries is what a reader has: nothing to warm up.
    return [
        Case(path.stem, lambda path=path: measure_notebook(path), rounds=1, warm_up=False)
        for path in list_notebooks()
    ]


def finish() -> None:
    report.update()
