"""Measures of a table against pycanon, and k-anonymous tables against anjana: same answers, in what time; then 10^8 rows.

The table is Adult's rows, drawn again and again. Two choices of columns: five quasi-identifiers, and the six of
pycanon's own first example, which make more than twice as many groups. Missing values are filled in, since
pycanon leaves those rows out. The peers run in an environment of their own (they need numpy 2), on the same pandas frame, and
time themselves: neither start nor loading is counted, on either side.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.run import Case
from pprml import ROOT, datasets
from pprml import deidentification as deid

QUASI = ["age", "workclass", "education", "race", "sex"]
#: The columns of the first example in pycanon's own documentation.
PEERS_OWN = ["age", "education", "occupation", "relationship", "sex", "native_country"]
COLUMNS = [*QUASI, "occupation", "hours_per_week", "relationship", "native_country", "income"]
PEERS = ["pycanon==1.3.5", "anjana==1.2.3", "pandas==2.3.3", "pyarrow==21.0.0"]
K, MAX_SUPPRESSED = 10, 0.02

#: What is measured: our call, and the same in the peer's words.
MEASURES: dict[str, tuple[Callable, str]] = {
    "k": (lambda table: deid.k_of(table, QUASI), "pycanon.anonymity.k_anonymity(table, QUASI)"),
    "l": (
        lambda table: deid.l_of(table, QUASI, "occupation"),
        "pycanon.anonymity.l_diversity(table, QUASI, ['occupation'])",
    ),
    "t of text": (
        lambda table: deid.t_of(table, QUASI, "occupation"),
        "pycanon.anonymity.t_closeness(table, QUASI, ['occupation'])",
    ),
    "t of numbers": (
        lambda table: deid.t_of(table, QUASI, "hours_per_week"),
        "pycanon.anonymity.t_closeness(table, QUASI, ['hours_per_week'])",
    ),
    "k, pycanon's columns": (
        lambda table: deid.k_of(table, PEERS_OWN),
        "pycanon.anonymity.k_anonymity(table, PEERS_OWN)",
    ),
    "l, pycanon's columns": (
        lambda table: deid.l_of(table, PEERS_OWN, "income"),
        "pycanon.anonymity.l_diversity(table, PEERS_OWN, ['income'])",
    ),
    "t of text, pycanon's columns": (
        lambda table: deid.t_of(table, PEERS_OWN, "income"),
        "pycanon.anonymity.t_closeness(table, PEERS_OWN, ['income'])",
    ),
}
#: Those that are also measured from 10^5 to 10^8 rows.
GROWTH = ("k", "l", "t of text", "t of numbers")

PEER_PROGRAM = """
import json, sys, time
import numpy as np, pandas as pd, pycanon.anonymity, anjana.anonymity
path, expression, hierarchies = json.loads(sys.argv[1])
QUASI, PEERS_OWN, table = {quasi}, {own}, pd.read_parquet(path)
hierarchies = {{name: {{int(level): np.array(values) for level, values in levels.items()}} for name, levels in hierarchies.items()}}
start = time.perf_counter()
answer = eval(expression)
seconds = time.perf_counter() - start
if isinstance(answer, pd.DataFrame):
    answer = [len(answer), *(int(answer[name].nunique()) for name in QUASI)]
print(json.dumps([seconds, answer], default=float))
"""


def make_rows(rows: int, seed: int) -> pa.Table:
    """Return `rows` rows drawn from Adult with replacement, text as dictionaries."""
    frame = datasets.load("adult")[COLUMNS]
    frame = frame.fillna({name: "missing" for name in frame.select_dtypes("object")}).astype(
        {name: "category" for name in frame.select_dtypes("object")}
    )
    drawn = np.random.default_rng(seed).integers(len(frame), size=rows)
    return pa.Table.from_pandas(frame, preserve_index=False).take(drawn)


@cache
def make_table(rows: int) -> tuple[Path, pd.DataFrame]:
    """Return the path of a Parquet file with the text written out, and the frame it holds."""
    table = make_rows(rows, seed=rows)
    text = {
        name: pa.string()
        for name in table.column_names
        if pa.types.is_dictionary(table.schema.field(name).type)
    }
    table = table.cast(
        pa.schema([(name, text.get(name, table.schema.field(name).type)) for name in table.column_names])
    )
    path = Path(_folder()) / f"rows_{rows}.parquet"
    pq.write_table(table, path)
    return path, pd.read_parquet(path)


@cache
def _folder() -> str:
    folder = tempfile.TemporaryDirectory(prefix="pprml_benchmark_")
    _folder.keep = folder  # removed when the process ends
    return folder.name


def ask_peer(path: Path, expression: str, hierarchies: Mapping = {}) -> tuple[float, object]:
    """Return the peer's seconds and its answer."""
    uv = shutil.which("uv") or ROOT / ".uv" / "bin" / "uv"
    command = [str(uv), "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable]
    for requirement in PEERS:
        command += ["--with", requirement]
    program = [
        *command,
        "python",
        "-c",
        PEER_PROGRAM.format(quasi=QUASI, own=PEERS_OWN),
        json.dumps([str(path), expression, hierarchies]),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"the peer failed: {done.stderr.strip()[-500:]}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def measure_case(name: str, rows: int, rounds: int) -> Case:
    """Compare one measure with pycanon's, from a pandas frame and from a Parquet file, and refuse a different answer.

    The peer reads no files: its time on the frame, without the reading, stands beside both.
    """
    function, expression = MEASURES[name]
    answers = {}

    def note(side: str, answer: float) -> None:
        answers[side] = answer
        if not np.allclose(list(answers.values()), answer, rtol=1e-9, atol=0):
            raise RuntimeError(f"{name} at {rows} rows: the answers differ, {answers}")

    def ours() -> dict[str, float]:
        path, table = make_table(rows)
        function(table.head(1000))  # the engine is started and the query planned before the clock
        taken = {}
        for metric, source in (("seconds", table), ("seconds, Parquet", path)):
            start = time.perf_counter()
            answer = function(source)
            taken[metric] = time.perf_counter() - start
            note(metric, answer)
        return taken

    def peer() -> dict[str, float]:
        seconds, answer = ask_peer(make_table(rows)[0], expression)
        note("peer", answer)
        return {"seconds": seconds, "seconds, Parquet": seconds}

    return Case(f"{name}, {rows:,} rows, pycanon", ours, peer, rounds, warm_up=False)


def list_hierarchies(table: pd.DataFrame) -> tuple[dict, dict]:
    """Return the same hierarchies in our words and in anjana's: age in bands, the rest as it is or hidden."""
    bands = [lambda column, width=width: (column // width * width).astype(str) for width in (5, 10, 20, 40)]
    hide = lambda column: pd.Series("*", index=column.index)  # noqa: E731
    ours = {name: [hide] for name in QUASI} | {"age": [*bands, hide]}
    theirs = {}
    for name in QUASI:
        values = pd.Series(sorted(table[name].unique()))
        theirs[name] = {0: values.to_list()} | {
            level: step(values).to_list() for level, step in enumerate(ours[name], start=1)
        }
    return ours, theirs


def anonymize_case(rows: int, rounds: int) -> Case:
    """Compare `anonymize_k` with anjana's: as many rows published, and as many values left in each column."""
    answers = {}

    def note(side: str, answer: list[int], seconds: float) -> dict[str, float]:
        answers[side] = answer
        if len(answers) == 2 and answers["ours"] != answers["peer"]:
            raise RuntimeError(f"anonymize at {rows} rows: the releases differ, {answers}")
        return {"seconds": seconds}

    def ours() -> dict[str, float]:
        _, table = make_table(rows)
        hierarchies, _ = list_hierarchies(table)
        start = time.perf_counter()
        frame = deid.anonymize_k(table, QUASI, K, hierarchies, MAX_SUPPRESSED).frame
        seconds = time.perf_counter() - start
        return note("ours", [len(frame), *(frame[name].nunique() for name in QUASI)], seconds)

    def peer() -> dict[str, float]:
        path, table = make_table(rows)
        call = f"anjana.anonymity.k_anonymity(table, [], QUASI, {K}, {100 * MAX_SUPPRESSED}, hierarchies)"
        seconds, answer = ask_peer(path, call, list_hierarchies(table)[1])
        return note("peer", answer, seconds)

    return Case(f"anonymize to k = {K}, {rows:,} rows, anjana", ours, peer, rounds, warm_up=False)


@cache
def make_files(millions: int) -> str:
    """Write one Parquet file a million rows and return their pattern."""
    folder = Path(_folder()) / f"millions_{millions}"
    folder.mkdir()
    for part in range(millions):
        pq.write_table(make_rows(10**6, seed=part), folder / f"part_{part:03d}.parquet")
    return str(folder / "part_*.parquet")


def stream_case(name: str, millions: int) -> Case:
    """Measure Parquet files in a process of its own, whose largest memory is recorded."""

    def ours() -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.deidentification", name, make_files(millions)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        return json.loads(done.stdout)

    return Case(f"{name}, {millions:,},000,000 rows streamed from Parquet", ours, rounds=3, warm_up=False)


def list_cases() -> list[Case]:
    # The peer's t takes minutes for numbers, and half a minute for text.
    cases = [measure_case(name, 10**5, 1 if name == "t of text" else 3) for name in ("k", "l", "t of text")]
    slow = ("t of numbers", "t of text, pycanon's columns")
    cases += [measure_case(name, 10**6, 1 if name in slow else 3) for name in MEASURES]
    cases += [measure_case("k", 10**7, 3), measure_case("l", 10**7, 1)]
    cases += [anonymize_case(10**5, 3), anonymize_case(10**6, 1)]
    return cases + [stream_case(name, millions) for millions in (10, 100) for name in GROWTH]


if __name__ == "__main__":
    start = time.perf_counter()
    MEASURES[sys.argv[1]][0](sys.argv[2])
    taken = time.perf_counter() - start
    # The largest memory of this program alone: what getrusage reports includes the parent's.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({"seconds": taken, "gigabytes": int(peak[1]) * 1024 / 1e9}))
