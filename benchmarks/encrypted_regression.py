"""Least squares on encrypted numbers: ours, TenSEAL as its tutorials use it, Paillier unpacked and packed, and NumPy in the clear.

Outsourced: one owner encrypts its rows and a server forms all products. Local sums: three owners add up their own rows and encrypt the
sums. Both end to end, from making the keys to the line; the start of a process is not counted, on either side. The rows are made up around
a known line, and the answer of every side is checked against it. Each side runs in a process of its own, which reports its
largest memory together with its server's. A peer that would take over a minute is left out: `SKIPPED` says where, and nothing is extrapolated.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import tenseal

from benchmarks.run import Case, PeakMemory
from pprml import ROOT
from pprml.encrypted_regression import SCHEMES, outsourcing, products
from pprml.least_squares import unpack_sums

CHUNK = 8192
#: The tutorials' vectors hold one value a slot, and `.dot()` adds slots of one ciphertext; longer columns need several.
SLOTS = 4096
#: Sizes at which a peer took over a minute, or would: it is measured up to the size before.
SKIPPED = {
    ".dot() on columns": "ceil(rows / 4,096) x columns^2 above 600 (a `.dot()` takes 60 ms or more)",
    "per-row ciphertexts": "more than 442 rows, or more than 10 columns (a row takes 90 ms or more)",
    "Paillier, one number each": "more than 20 columns (252 numbers, 30 ms each for each of three owners)",
}


class Source:
    """Scaled rows around a known line, the target last, `CHUNK` at a time; what making them takes is not counted."""

    def __init__(self, rows: int, columns: int):
        self.rows, self.columns, self.seconds = rows, columns, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        rng, slopes = np.random.default_rng(self.rows + self.columns), find_line(self.columns)[1:]
        for at in range(0, self.rows, CHUNK):
            start = time.perf_counter()
            X = rng.normal(size=(min(CHUNK, self.rows - at), self.columns)).clip(-7, 7)
            y = X @ slopes + 0.1 + 0.1 * rng.normal(size=len(X))
            part = np.column_stack([np.ones(len(X)), X, y.clip(-7, 7)])
            self.seconds += time.perf_counter() - start
            yield part


def find_line(columns: int) -> np.ndarray:
    """Return the known line: intercept and slopes."""
    return np.r_[0.1, np.cos(np.arange(columns)) / np.sqrt(columns)]


def solve(table: np.ndarray) -> np.ndarray:
    """Return the line from [1, X, y]'[1, X, y]."""
    return np.linalg.solve(table[:-1, :-1], table[:-1, -1])


# What each side does: takes a source of rows, and returns the line and the bytes sent.


def fit_clear(source: Source) -> tuple[np.ndarray, int]:
    """Fit in the clear: the rows are sent as they are."""
    return solve(sum(part.T @ part for part in source)), 8 * source.rows * (source.columns + 1)


def fit_ours(source: Source) -> tuple[np.ndarray, int]:
    """Fit as `outsourcing.fit_outsourced` and `fit_stream` do, in the packing that is chosen for the size."""
    size, slots = source.columns + 1, products.DEGREE // 2
    packing = outsourcing.choose_packing(source.rows, source.columns)[0]
    step = products.count_rows(packing, size, slots)
    blocks = outsourcing.cut_rows(iter(source), step)
    answers = min(outsourcing.BLOCKS, -(-source.rows // step))
    sums, seconds, received, returned, _ = products.sum_products(blocks, size, packing, answers, 120.0)
    # The start of the server's process is not counted: its steps are.
    source.counted = sum(taken for step, taken in seconds.items() if "meanwhile" not in step)
    line = np.linalg.solve(*unpack_sums(sums[:-1], size))
    return line, sum(received.values()) + returned


def make_context() -> tenseal.Context:
    """Return the tutorials' context: two levels of 40 bits, rotation keys, and as many threads as the library wants."""
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40, 60])
    context.global_scale = 2.0**40
    context.generate_galois_keys()
    return context


def fit_dot(source: Source) -> tuple[np.ndarray, int]:
    """Fit with a ciphertext a column, and `.dot()` for every product; columns longer than a ciphertext in several."""
    A = np.concatenate(list(source)) / np.sqrt(source.rows)
    context, size = make_context(), source.columns + 2
    cuts = range(0, source.rows, SLOTS)
    columns = [[tenseal.ckks_vector(context, c[at : at + SLOTS].tolist()) for at in cuts] for c in A.T]
    table = np.zeros((size, size))
    for i in range(size):
        for j in range(i, size):
            first, *rest = (a.dot(b) for a, b in zip(columns[i], columns[j], strict=True))
            total = sum(rest, first)
            table[i, j] = table[j, i] = source.rows * total.decrypt()[0]
    # What would travel is serialized off the clock.
    source.counted = time.perf_counter() - source.start
    sent = size * len(cuts) * len(columns[0][0].serialize()) + size * (size + 1) // 2 * len(total.serialize())
    return solve(table), sent + len(context.serialize(save_secret_key=False))


def fit_rows(source: Source) -> tuple[np.ndarray, int]:
    """Fit with a ciphertext a row, times the row turned by every number of places: the owner turns it, TenSEAL's vectors do not."""
    A = np.concatenate(list(source)) / np.sqrt(source.rows)
    context, size, totals = make_context(), source.columns + 2, {}
    for row in A:
        turned = [tenseal.ckks_vector(context, np.roll(row, -s).tolist()) for s in range(size // 2 + 1)]
        for shift, other in enumerate(turned):
            term = turned[0] * other
            totals[shift] = totals[shift] + term if shift in totals else term
    table = np.zeros((size, size))
    for shift, total in totals.items():
        for i, value in enumerate(total.decrypt()):
            table[i, (i + shift) % size] = table[(i + shift) % size, i] = source.rows * value
    source.counted = time.perf_counter() - source.start
    sent = source.rows * len(turned) * len(turned[0].serialize()) + len(totals) * len(totals[0].serialize())
    return solve(table), sent + len(context.serialize(save_secret_key=False))


def fit_local(source: Source, scheme: str, owners: int = 3) -> tuple[np.ndarray, int]:
    """Three owners encrypt means of their products, a server adds them, a key-holder opens the total; `scheme` as in `SCHEMES`."""
    upper, shares = (
        np.triu_indices(source.columns + 2),
        np.zeros((owners, source.columns + 2, source.columns + 2)),
    )
    for part in source:
        for share, rows in zip(shares, np.array_split(part, owners), strict=True):
            share += rows.T @ rows / source.rows
    opened, sent = [], 0
    # A ciphertext of the local sums holds 2,048 numbers.
    for at in range(0, len(upper[0]), 2048):
        pieces = [share[upper][at : at + 2048] for share in shares]
        key = SCHEMES[scheme](owners, len(pieces[0]))
        public = key.export(True)
        messages = [SCHEMES[scheme](owners, len(piece), public).encrypt(piece) for piece in pieces]
        total = SCHEMES[scheme](owners, len(pieces[0]), key.export(False)).add(messages)
        opened.append(key.decrypt(total))
        sent += owners * len(public) + sum(map(len, messages)) + len(total)
    table = np.zeros(shares[0].shape)
    table[upper] = table.T[upper] = np.concatenate(opened)
    return solve(table), sent


SIDES = {
    "ours, outsourced": fit_ours,
    ".dot() on columns": fit_dot,
    "per-row ciphertexts": fit_rows,
    "NumPy in the clear": fit_clear,
    "ours, local sums": partial(fit_local, scheme="ckks"),
    "Paillier, packed": partial(fit_local, scheme="paillier"),
    "Paillier, one number each": partial(fit_local, scheme="paillier_unpacked"),
}
OUTSOURCED = (".dot() on columns", "per-row ciphertexts", "NumPy in the clear")


def ask(side: str, rows: int, columns: int) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.encrypted_regression", side, str(rows), str(columns)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{side} failed at {rows} x {columns}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _compare(rows: int, columns: int, ours: str, peer: str | None, rounds: int) -> Case:
    name = f"{rows:,} x {columns}, {ours}" + (f" against {peer}" if peer else "")

    def measure(side):
        return lambda: ask(side, rows, columns)

    return Case(name, measure(ours), measure(peer) if peer else None, rounds, warm_up=False)


def is_skipped(peer: str, rows: int, columns: int) -> bool:
    """Whether a peer would take over a minute: see `SKIPPED`."""
    if peer == ".dot() on columns":
        return -(-rows // SLOTS) * columns**2 > 600
    if peer == "per-row ciphertexts":
        return rows > 442 or columns > 10
    return peer == "Paillier, one number each" and columns > 20


def list_cases() -> list[Case]:
    sizes = [(442, 10), (100, 10), (1_000, 10), (10_000, 10), (442, 1), (442, 20), (442, 100)]
    cases = [
        _compare(rows, columns, "ours, outsourced", peer, _count_rounds(peer, rows, columns))
        for rows, columns in sizes
        for peer in OUTSOURCED
        if not is_skipped(peer, rows, columns)
    ]
    # Beyond these the peers take over a minute: only the growth of ours.
    large = [(10**5, 10), (10**6, 1), (10**6, 10), (10**6, 20)]
    cases += [_compare(*size, "ours, outsourced", "NumPy in the clear", 1) for size in large]
    return cases + [
        _compare(rows, columns, "ours, local sums", peer, 3 if peer == "NumPy in the clear" else 1)
        for rows, columns in [(442, 10), (10**6, 10), (442, 1), (442, 100)]
        for peer in ("Paillier, packed", "Paillier, one number each", "NumPy in the clear")
        if not is_skipped(peer, rows, columns)
    ]


def _count_rounds(peer, rows, columns):
    """More rounds where they are short, and five for the goal: the diabetes data's size against `.dot()`."""
    if (rows, columns, peer) == (442, 10, ".dot() on columns"):
        return 5
    return 1 if peer == "per-row ciphertexts" and rows * columns > 1000 else 3


def finish() -> None:
    for peer, where in SKIPPED.items():
        print(f"left out, {peer}: {where}")


if __name__ == "__main__":
    name, source = sys.argv[1], Source(int(sys.argv[2]), int(sys.argv[3]))
    with PeakMemory() as peak:
        source.counted, source.start = None, time.perf_counter()
        found, sent = SIDES[name](source)
        taken = source.counted or time.perf_counter() - source.start
    seconds = taken - source.seconds
    error = np.abs(found - fit_clear(Source(source.rows, source.columns))[0]).max()
    # 0.1 is far above any noise of encryption here, and far below a line that is wrong.
    if not error < 0.1:
        raise SystemExit(f"{name}: the line is off by {error:.2g}")
    # An error of nothing has no ratio: float64's own stands in for it.
    metrics = {"seconds": seconds, "megabytes sent": sent / 1e6, "error": max(float(error), 2.0**-53)}
    print(json.dumps(metrics | {"gigabytes": peak.gigabytes}))
