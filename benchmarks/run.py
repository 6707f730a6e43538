"""Run benchmarks: `python -m benchmarks.run [NAME ...]`, or `make bench NAME=...`.

A benchmark is a module here with a function `list_cases()`, and `finish()` where something is to be done with the results. Ours and the peer's are measured in turns, so that a machine that slows
down slows both; only their ratio is to be trusted from one machine to the next.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
from tqdm import tqdm

from pprml._files import dump_json, name_nearest, write_whole
from pprml.course.keys import digest

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
Measure = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes
    ----------
    name : str
        What is compared, and with whom.
    ours, peer : callable
        Does the work once and returns what it took by metric, such as ``{"seconds": 1.2, "gigabytes": 0.8}``. A case without a peer
        records ours alone.
    rounds : int
        How often each is measured.
    warm_up : bool
        Run each once before, unmeasured: compilation is then not counted.
    """

    name: str
    ours: Measure
    peer: Measure | None = None
    rounds: int = 5
    warm_up: bool = True


class PeakMemory:
    """The largest memory of a process and of those that it starts, in gigabytes: looked at every so many seconds inside the block.

    Pages that several of them share are counted once.
    """

    def __init__(self, pid: int | None = None, every: float = 0.02):
        self.gigabytes, self._every = 0.0, every
        self._process, self._end = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        ended = False
        while not ended:
            ended, total, processes = self._end.wait(self._every), 0, [self._process]
            with suppress(psutil.Error):
                processes += self._process.children(recursive=True)
            for process in processes:
                with suppress(psutil.Error):  # it ended meanwhile
                    total += process.memory_full_info().pss
            self.gigabytes = max(self.gigabytes, total / 1e9)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def describe_machine() -> str:
    """Return processor, cores, memory and Python in words: no host name, no path."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = named[0] if named else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    return f"{model}, {cores} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def compare(case: Case) -> list[dict]:
    """Measure ours and the peer's in turns.

    Returns
    -------
    list of dict
        A record a metric: `case`, `metric`, `ours` and `peer` (medians), `ratio` (median over the rounds of ours / peer), `low` and
        `high` (its smallest and largest round), `machine`. Without a peer, `peer` and `ratio` are None, and `low` and `high` are
        the smallest and largest of ours.
    """
    sides = [case.ours] if case.peer is None else [case.ours, case.peer]
    if case.warm_up:
        for side in sides:
            side()
    rounds = []
    for turn in range(case.rounds):
        # Who goes first alternates too: the second may find warmer caches.
        order = range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides)))
        taken = {index: sides[index]() for index in order}
        rounds.append([taken[index] for index in range(len(sides))])
    records = []
    for metric in rounds[0][0]:
        ours = [pair[0][metric] for pair in rounds]
        peer = [pair[1][metric] for pair in rounds] if case.peer else None
        spread = [one / other for one, other in zip(ours, peer, strict=True)] if peer else ours
        records.append(
            {
                "case": case.name,
                "metric": metric,
                "ours": statistics.median(ours),
                "peer": statistics.median(peer) if peer else None,
                "ratio": statistics.median(spread) if peer else None,
                "low": min(spread),
                "high": max(spread),
                "machine": describe_machine(),
            }
        )
    return records


def render(records: Sequence[dict]) -> str:
    """Return the records as a table."""
    rows = [("case", "metric", "ours", "peer", "ratio", "low", "high")]
    for record in records:
        numbers = ("" if record[key] is None else f"{record[key]:.3g}" for key in rows[0][2:])
        rows.append((record["case"], record["metric"], *numbers))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def run(name: str, cases: Iterable[Case]) -> list[dict]:
    """Measure all cases of a benchmark, print them as a table and write `results/NAME.json`.

    Where a case fails, what was measured before it is left in `results/NAME.partial.json`.
    """
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"caution: the machine is busy (load {busy:.1f}); timings will be off", file=sys.stderr)
    records = []
    try:
        for case in tqdm(list(cases), desc=name, disable=None):
            records += compare(case)
    except BaseException:
        write_whole(RESULTS / f"{name}.partial.json", dump_json(records))
        raise
    print(render(records))
    write_records(RESULTS / f"{name}.json", records)
    return records


def write_records(path: Path, records: Sequence[dict]) -> None:
    """Write a file of records, and its checksum beside it: what no run wrote is refused by a test."""
    write_whole(path, dump_json(records))
    signatures = path.parent / "signatures.json"
    known = json.loads(signatures.read_text("utf-8")) if signatures.exists() else {}
    write_whole(signatures, dump_json({**known, path.stem: digest(json.loads(path.read_text("utf-8")))}))


def list_benchmarks() -> list[str]:
    """Return the names of the benchmarks there are."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "run"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks named, or all of them; exit code 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(list_benchmarks())}")
    names = parser.parse_args(arguments).names or list_benchmarks()
    for name in names:
        if name not in list_benchmarks():
            parser.error(name_nearest("benchmark", name, list_benchmarks()))
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        run(name, module.list_cases())
        getattr(module, "finish", lambda: None)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
