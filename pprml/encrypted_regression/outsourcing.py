"""The owner of all rows lets a server form A'A and A'y from encrypted rows (chapter 10, setting b).

The products are left as SEAL makes them, of three polynomials, and their slots unsummed: no relinearisation, no rotation, so the server
gets no evaluation key at all. What comes back holds products of single rows; that is sound only because who opens it owns the rows.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np
import tenseal as ts

from pprml import PATIENCE
from pprml.encrypted_regression.products import DEGREE, count_rows, list_pairs, split_pairs, sum_products
from pprml.least_squares import MAX_DEVIATION, scale_rows, solve_sums, unpack_sums

#: Blocks of a stream that the server adds, and keeps on its disk for the audit, before the owner opens the sums so far.
BLOCKS = 16


class Outsourced(NamedTuple):
    """Outcome of a run. `coefficients` as from `solve_sums`; `seconds` of each step, without the start of the process.

    `sums` are those of `compute_sums`, with the sum of the squared target last. `received` lists the server's files and their bytes,
    `returned` how many it sent back; `secret_seen` the secret keys among the first. The server works while the owner encrypts.
    """

    coefficients: np.ndarray
    packing: str
    seconds: dict[str, float]
    received: dict[str, int]
    returned: int
    secret_seen: list[str]
    sums: np.ndarray


def choose_packing(rows: int, columns: int, owners: int = 1, slots: int = DEGREE // 2) -> tuple[str, str]:
    """Choose how numbers are laid in ciphertexts: by who owns the rows, then by the polynomials that travel.

    Returns
    -------
    tuple of str
        ``"local sums"``, ``"replicated pairs"`` or ``"columns"``, and why.
    """
    if min(rows, columns, owners) < 1:
        raise ValueError("rows, columns and owners must be 1 or more")
    if owners > 1:
        return (
            "local sums",
            "each owner adds up its own rows for nothing: products of single rows must not reach another",
        )
    # Fresh ciphertexts are sent as one polynomial and a seed; a product comes back as three. A slot holds two rows.
    size, products = columns + 1, len(list_pairs(columns + 1))
    groups = len(split_pairs(size, slots))
    pairs = groups * (2 * -(-rows // count_rows("replicated pairs", size, slots)) + 3)
    separate = 2 * size * -(-rows // count_rows("columns", size, slots)) + 3 * products
    name = "replicated pairs" if pairs <= separate else "columns"
    return name, f"{pairs} polynomials travel with replicated pairs, {separate} with columns"


def fit_outsourced(table: Any, packing: str | None = None, timeout: float = PATIENCE) -> Outsourced:
    """Fit a line to the rows of one owner, whose products a server forms in another process, on ciphertexts.

    Parameters
    ----------
    table : DataFrame of shape (n, d + 1)
        Clinical units, the target last, as for `compute_sums`.
    packing : {"replicated pairs", "columns"}, optional
        By default what `choose_packing` says.
    timeout : float
        Seconds that the server may take for one answer.

    Raises
    ------
    ValueError
        Bad rows, too few of them or a constant column, before work starts; or a file that either side refused.
    TimeoutError, RuntimeError
        The server did not answer, or ended. No process is left.
    """
    rows, size = scale_rows(table), table.shape[1]
    if len(rows) < size:
        raise ValueError(f"{len(rows)} rows cannot fix {size} coefficients: find more rows")
    if flat := ", ".join(np.array(table.columns)[:-1][np.ptp(rows[:, 1:-1], axis=0) == 0]):
        raise ValueError(f"constant column {flat}: drop it")
    packing = packing or choose_packing(len(rows), size - 1)[0]
    if packing not in ("replicated pairs", "columns"):
        raise ValueError(f"unknown packing {packing!r}: use 'replicated pairs' or 'columns'")
    step = count_rows(packing, size, DEGREE // 2)
    blocks = [rows[at : at + step] for at in range(0, len(rows), step)]
    sums, *record = sum_products(blocks, size, packing, len(blocks), timeout)
    return Outsourced(solve_sums(sums[:-1], list(table.columns[:-1])), packing, *record, sums)


def fit_stream(parts: Iterable[np.ndarray], timeout: float = PATIENCE) -> Outsourced:
    """Fit a line to any number of rows, of which no more than a few blocks are in memory or on disk at a time.

    Parameters
    ----------
    parts : iterable of ndarray of shape (m, d + 1)
        Rows in agreed units, about one spread in size and at most 8, the target last; parts of any length.
    timeout : float
        Seconds that the server may take for one answer.

    Returns
    -------
    Outsourced
        `coefficients` (d + 1,) in the units of the parts, the intercept first.

    Raises
    ------
    ValueError
        Parts of different widths, a missing or infinite value, or one beyond 8; no rows; or collinear columns.
    """
    parts = iter(parts)
    first = next(parts, None)
    if first is None or np.ndim(first) != 2 or first.shape[1] < 2:
        raise ValueError("expected parts of shape (m, d + 1): at least one column and the target")
    size = first.shape[1]
    blocks = cut_rows(_check_parts(first, parts), count_rows("columns", size, DEGREE // 2))
    sums, *record = sum_products(blocks, size, "columns", BLOCKS, timeout)
    gram, right = unpack_sums(sums[:-1], size)
    if np.linalg.cond(gram) > 1e9:
        raise ValueError("X'X is singular: constant or collinear columns, or too few rows")
    return Outsourced(np.linalg.solve(gram, right), "columns", *record, sums)


def _check_parts(first: np.ndarray, rest: Iterator) -> Iterator[np.ndarray]:
    for part in chain([first], rest):
        part = np.asarray(part, float)
        if part.ndim != 2 or part.shape[1] != first.shape[1]:
            raise ValueError(f"expected {first.shape[1]} columns in every part")
        if part.size and not np.abs(part).max() <= MAX_DEVIATION:
            raise ValueError(
                f"a value is missing, infinite or beyond {MAX_DEVIATION:g}: scale the columns first"
            )
        yield np.column_stack([np.ones(len(part)), part])


def cut_rows(parts: Iterable[np.ndarray], step: int) -> Iterator[np.ndarray]:
    """Cut a stream of rows into blocks of `step` rows, the last one shorter."""
    held, count = [], 0
    for part in parts:
        while len(part):
            take = part[: step - count]
            held.append(take)
            count, part = count + len(take), part[len(take) :]
            if count == step:
                yield np.concatenate(held)
                held, count = [], 0
    if count:
        yield np.concatenate(held)


def naive_fit_dot(table: Any) -> np.ndarray:
    """Fit as TenSEAL's tutorials multiply: a ciphertext a column, `.dot()` for every number. The same coefficients."""
    rows, size = scale_rows(table), table.shape[1]
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40, 60], n_threads=1)
    context.global_scale = 2.0**40
    context.generate_galois_keys()
    columns = [ts.ckks_vector(context, column.tolist()) for column in (rows / np.sqrt(len(rows))).T]
    pairs = [*combinations_with_replacement(range(size), 2), *((i, size) for i in range(size))]
    products = [columns[i].dot(columns[j]) for i, j in pairs]
    sums = np.array([product.decrypt()[0] for product in products]) * len(rows)
    return solve_sums(sums, list(table.columns[:-1]))
