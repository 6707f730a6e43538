"""Time and peak memory of each chapter, run once and alone from a fresh kernel, and what the chapters themselves time."""

import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.run import RESULTS, Case, describe_machine, write_records
from pprml.claims import load_times
from pprml.course import report
from pprml.course.cli import list_notebooks
from pprml.course.runner import run_notebook

_times: dict[str, float] = load_times()


def measure_notebook(path: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        run = run_notebook(path, Path(scratch))
        taken = Path(scratch) / "claims" / "times" / f"{path.stem}.json"
        for name, value in (json.loads(taken.read_text("utf-8")) if taken.exists() else {}).items():
            _times[name] = statistics.fmean(value) if isinstance(value, list) else value
    return {"seconds": run.seconds, "gigabytes": run.peak_bytes / 1e9}


def list_cases() -> list[Case]:
    # A kernel that has never imported the libraries is what a reader has: nothing to warm up.
    return [
        Case(path.stem, lambda path=path: measure_notebook(path), rounds=1, warm_up=False)
        for path in list_notebooks()
    ]


def finish() -> None:
    machine = describe_machine()
    records = [{"case": name, "ours": value, "machine": machine} for name, value in sorted(_times.items())]
    write_records(RESULTS / "chapter_times.json", records)
    report.write_pages()
