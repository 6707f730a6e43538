"""The owner of all rows lets a server form A'A and A'y from encrypted rows (chapter 10, setting b).

The products are left as SEAL makes them, of three polynomials, and their slots unsummed: no relinearisation, no rotation, so the server
gets no evaluation key at all. What comes back holds products of single rows; that is sound only because who opens it owns the rows.
"""

import multiprocessing
import time
from itertools import combinations_with_replacement
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import tenseal as ts
import tenseal.sealapi as seal

from pprml.ckks import KeyHolder, Ring, find_secret_key, fingerprint, open_ring, read_ciphertext
from pprml.least_squares import scale_rows, solve_sums

DEGREE, SCALE_BITS = 8192, 52
#: An answer is a mean of products, at most 8^2, and 2^7 with a sign lie before the point: 60 + 52 + 60 bits, of 218 allowed.
HEAD_BITS = 8


class Outsourced(NamedTuple):
    """Outcome of a run. `coefficients` as from `solve_sums`; `seconds` of each step, without the start of the process.

    `received` lists the server's files and their bytes, `returned` what it sent back; `secret_seen` the secret keys among the first.
    """

    coefficients: np.ndarray
    packing: str
    seconds: dict[str, float]
    received: dict[str, int]
    returned: int
    secret_seen: list[str]


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
    products = (columns + 1) * (columns + 4) // 2
    if products > slots:
        return "columns", f"{products} products do not fit in {slots} slots"
    # Fresh ciphertexts are sent as one polynomial and a seed; a product comes back as three.
    pairs = 2 * -(-rows // (slots // products)) + 3
    separate = (columns + 2) * -(-rows // slots) + 3 * products
    name = "replicated pairs" if pairs <= separate else "columns"
    return name, f"{pairs} polynomials travel with replicated pairs, {separate} with columns"


def list_pairs(size: int) -> list[tuple[int, int]]:
    """Return the pairs of columns of A and y whose products `compute_sums` adds, in its order."""
    return [*combinations_with_replacement(range(size), 2), *((i, size) for i in range(size))]


def lay_out(rows: np.ndarray, packing: str, slots: int) -> list[tuple[str, np.ndarray]]:
    """Name and fill the plaintexts: `rows` is A with y as its last column, divided so that a sum is a mean."""
    pairs = np.array(list_pairs(rows.shape[1] - 1))
    rows = rows / np.sqrt(len(rows))
    if packing == "columns":
        blocks = range(0, len(rows), slots)
        return [
            (f"{j}_{b}", rows[at : at + slots, j])
            for j in range(rows.shape[1])
            for b, at in enumerate(blocks)
        ]
    step = slots // len(pairs)
    return [
        (f"{side}_{b}", rows[at : at + step, pairs[:, side]].ravel())
        for b, at in enumerate(range(0, len(rows), step))
        for side in (0, 1)
    ]


def multiply_pairs(ring: Ring, left: list[seal.Ciphertext], right: list[seal.Ciphertext]) -> seal.Ciphertext:
    """Return the sum of left times right, slot by slot, in three polynomials: neither relinearised nor rescaled."""
    total, term = seal.Ciphertext(), seal.Ciphertext()
    ring.seal.multiply(left[0], right[0], total)
    for a, b in zip(left[1:], right[1:], strict=True):
        ring.seal.multiply(a, b, term)
        ring.seal.add_inplace(total, term)
    return total


def read_sealed(ring: Ring, folder: Path, sealed: dict[str, str]) -> dict[str, seal.Ciphertext]:
    """Read fresh ciphertexts whose SHA-256 was told apart from the folder; refuse an altered, foreign or damaged one."""
    if bad := ", ".join(n for n, seen in fingerprint(folder, list(sealed)).items() if seen != sealed[n]):
        raise ValueError(f"refused: {bad} is not what the owner sent")
    return {name: read_ciphertext(ring, folder / name, ring.levels) for name in sealed}


def _serve(pipe, folder, sealed, packing, size):
    """Be the server, in its own process: no secret key and no evaluation key."""
    try:
        ring, start = open_ring(folder), time.perf_counter()
        cts = read_sealed(ring, folder, sealed)
        blocks = range(1 + max(int(name.split("_")[1]) for name in cts))
        pairs = list_pairs(size) if packing == "columns" else [(0, 1)]
        for number, (i, j) in enumerate(pairs):
            left, right = ([cts[f"{side}_{b}"] for b in blocks] for side in (i, j))
            multiply_pairs(ring, left, right).save(str(folder / f"product_{number}"))
        seconds = time.perf_counter() - start
        files = [path for path in folder.iterdir() if not path.name.startswith("product")]
        pipe.send(({path.name: path.stat().st_size for path in files}, find_secret_key(ring, files), seconds))
    except Exception as error:
        pipe.send(ValueError(f"server: {error}"))


def _open_sums(key, folder, count, packing, rows):
    """Decrypt the products, and add the slots: mean products times the number of rows, which is public."""
    means = []
    for number in range(count if packing == "columns" else 1):
        ct = seal.Ciphertext()
        ct.load(key.context, str(folder / f"product_{number}"))
        opened = key.decrypt(ct)
        used = key.slots // count * count
        means.append(opened.sum() if packing == "columns" else opened[:used].reshape(-1, count).sum(axis=0))
    return np.ravel(means) * rows


def fit_outsourced(table: Any, packing: str | None = None, timeout: float = 120.0) -> Outsourced:
    """Fit a line to the rows of one owner, whose products a server forms in another process, on ciphertexts.

    Parameters
    ----------
    table : DataFrame of shape (n, d + 1)
        Clinical units, the target last, as for `compute_sums`.
    packing : {"replicated pairs", "columns"}, optional
        By default what `choose_packing` says.
    timeout : float
        Seconds that the server may take.

    Raises
    ------
    ValueError
        Bad rows, before work starts; or what the server refused.
    TimeoutError, RuntimeError
        The server did not answer, or ended. No process is left.
    """
    rows, size = scale_rows(table), table.shape[1]
    packing = packing or choose_packing(len(rows), size - 1)[0]
    if packing not in ("replicated pairs", "columns"):
        raise ValueError(f"unknown packing {packing!r}: use 'replicated pairs' or 'columns'")
    count, seconds = len(list_pairs(size)), {}
    start = time.perf_counter()
    key = KeyHolder(DEGREE, 1, scale_bits=SCALE_BITS, head_bits=HEAD_BITS)
    with TemporaryDirectory() as place:
        folder = Path(place)
        key.parameters.save(str(folder / "parameters"))
        seconds["keys"], start = time.perf_counter() - start, time.perf_counter()
        names = []
        for name, numbers in lay_out(rows, packing, key.slots):
            key.encrypt_to(numbers, folder / name)
            names.append(name)
        seconds["encrypt"] = time.perf_counter() - start
        answer = ask_process(_serve, timeout, folder, fingerprint(folder, names), packing, size)
        received, secret, seconds["server"] = answer
        start = time.perf_counter()
        sums = _open_sums(key, folder, count, packing, len(rows))
        coefficients = solve_sums(sums, list(table.columns[:-1]))
        seconds["decrypt"] = time.perf_counter() - start
        returned = sum(path.stat().st_size for path in folder.glob("product_*"))
    return Outsourced(coefficients, packing, seconds, received, returned, secret)


def ask_process(role, timeout, *arguments):
    """Run a role in a process of its own and return its one answer."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=role, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout):
            raise TimeoutError(f"the server did not answer within {timeout:g} s")
        answer = ours.recv()
    except EOFError:
        raise RuntimeError("the server ended before it answered") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, Exception):
        raise answer
    return answer


def naive_fit_dot(table: Any) -> np.ndarray:
    """Fit as TenSEAL's tutorials multiply: a ciphertext a column, `.dot()` for every number. The same coefficients."""
    rows, size = scale_rows(table), table.shape[1]
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40, 60], n_threads=1)
    context.global_scale = 2.0**40
    context.generate_galois_keys()
    columns = [ts.ckks_vector(context, column.tolist()) for column in (rows / np.sqrt(len(rows))).T]
    products = [columns[i].dot(columns[j]) for i, j in list_pairs(size)]
    sums = np.array([product.decrypt()[0] for product in products]) * len(rows)
    return solve_sums(sums, list(table.columns[:-1]))
