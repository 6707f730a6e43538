"""Sums of products of encrypted rows: how rows lie in ciphertexts, the server that multiplies them, and its client (chapter 10).

A slot holds a complex number, and so two rows: (a + ib)(c - id) has the real part ac + bd, which is what the sum needs. The server
multiplies a block of rows while the owner encrypts the next, and blocks are deleted once used: memory does not grow with the rows.
"""

import multiprocessing
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import combinations_with_replacement
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tenseal.sealapi as seal

from pprml.ckks import KeyHolder, Ring, find_secret_key, fingerprint, open_ring, read_ciphertext, receive

DEGREE, SCALE_BITS = 8192, 52
#: An answer is a mean of products, at most 8^2, and 2^7 with a sign lie before the point: 60 + 52 + 60 bits, of 218 allowed.
HEAD_BITS = 8


def list_pairs(size: int) -> list[tuple[int, int]]:
    """Return the pairs of columns whose products the server adds: columns 1 to `size` of A and y; with the ones, the owner adds itself."""
    return [*combinations_with_replacement(range(1, size + 1), 2)]


def split_pairs(size: int, slots: int) -> list[np.ndarray]:
    """Return the pairs in as few groups as their slots allow, the larger groups first; arrays of shape (pairs, 2)."""
    pairs = np.array(list_pairs(size))
    return np.array_split(pairs, -(-len(pairs) // slots))


def count_rows(packing: str, size: int, slots: int) -> int:
    """Return how many rows fit in a block of ciphertexts; `size` columns of A."""
    return 2 * (slots if packing == "columns" else slots // len(split_pairs(size, slots)[0]))


def lay_out(rows: np.ndarray, packing: str, slots: int) -> list[tuple[str, np.ndarray]]:
    """Name and fill the plaintexts of one block: `rows` is A with y as its last column.

    The first half of the rows is real, the second imaginary. Left factors are named L, right ones, conjugated, R.
    """
    half = -(-len(rows) // 2)
    left = rows[:half].astype(complex)
    left[: len(rows) - half] += 1j * rows[half:]
    size = rows.shape[1] - 1
    if packing == "columns":
        sides = [(f"L{j}", left[:, j]) for j in range(1, size + 1)]
        return [*sides, *((f"R{j}", left[:, j].conj()) for j in range(1, size + 1))]
    groups = split_pairs(size, slots)
    lefts = [(f"L{g}", left[:, pairs[:, 0]].ravel()) for g, pairs in enumerate(groups)]
    return [*lefts, *((f"R{g}", left[:, pairs[:, 1]].conj().ravel()) for g, pairs in enumerate(groups))]


def multiply_pairs(ring: Ring, left: list[seal.Ciphertext], right: list[seal.Ciphertext]) -> seal.Ciphertext:
    """Return the sum of left times right, slot by slot, in three polynomials: neither relinearised nor rescaled."""
    total, term = seal.Ciphertext(), seal.Ciphertext()
    ring.seal.multiply(left[0], right[0], total)
    for a, b in zip(left[1:], right[1:], strict=True):
        ring.seal.multiply(a, b, term)
        ring.seal.add_inplace(total, term)
    return total


def read_sealed(
    ring: Ring, folder: Path, sealed: dict[str, str], own: Path, level: int | None = None, parts: int = 2
) -> dict[str, seal.Ciphertext]:
    """Read ciphertexts whose SHA-256 was told apart from the folder; refuse an altered, foreign or damaged one.

    They are at the top level unless another is named. Three parts are a product that was not relinearised, at the scale of a product.
    The copies in `own`, see `receive`, are deleted.
    """
    receive(folder, sealed, own)
    level = ring.levels if level is None else level
    scale = ring.scales[level] * ring.scales[level] if parts == 3 else None
    cts = {name: read_ciphertext(ring, own / name, level, parts, scale) for name in sealed}
    for name in sealed:
        (own / name).unlink()
    return cts


def _serve(pipe, folder, pairs):
    """Be the server, in its own process, with no secret key and no evaluation key: multiply blocks as they come, keep their sums."""
    try:
        received, secret, seconds, totals, used = {}, [], 0.0, {}, []
        own = folder.parent / "server"
        pipe.send("ready")
        while True:
            task, sealed = pipe.recv()
            start, answer = time.perf_counter(), task
            if task == "open":
                receive(folder, sealed, own)
                ring = open_ring(own)
                received["parameters"] = (folder / "parameters").stat().st_size
            elif task == "multiply":
                _add_block(ring, read_sealed(ring, folder, sealed, own), pairs, totals)
                used += [folder / name for name in sealed]
            elif task == "return":
                for number, total in totals.items():
                    total.save(str(folder / f"product_{number}"))
                answer = fingerprint(folder, [f"product_{number}" for number in totals])
                totals.clear()
            else:
                # Whatever else lies in the folder has arrived too.
                files = [path for path in folder.iterdir() if not path.name.startswith("product")]
                received |= {path.name: path.stat().st_size for path in files}
                answer = received, secret + find_secret_key(ring, files), seconds
            seconds += time.perf_counter() - start
            pipe.send(answer)
            if task == "return":  # the owner opens the answer meanwhile
                received |= {file.name: file.stat().st_size for file in used}
                secret += find_secret_key(ring, used)
                while used:
                    used.pop().unlink()
    except EOFError:
        pass
    except Exception as error:
        pipe.send(ValueError(f"server: {error}"))


def _add_block(ring, cts, pairs, totals):
    """Add a block's products to the sums so far, by the number of the pair."""
    block = {name.split("_")[0]: ct for name, ct in cts.items()}
    term = seal.Ciphertext()
    for number, (i, j) in enumerate(pairs):
        if number not in totals:
            totals[number] = multiply_pairs(ring, [block[f"L{i}"]], [block[f"R{j}"]])
            continue
        ring.seal.multiply(block[f"L{i}"], block[f"R{j}"], term)
        ring.seal.add_inplace(totals[number], term)


class _Server:
    """The owner's end of the pipe: what is under way is at most two blocks."""

    def __init__(self, folder, pairs, timeout):
        self.folder, self.timeout, self.waiting = folder, timeout, 0
        folder.mkdir()
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, folder, pairs), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def send(self, task, sealed=None):
        with suppress(OSError):  # that the server refused, or ended, is told by `answer`
            self.pipe.send((task, sealed))
        self.waiting += 1
        while self.waiting > 2:
            self.answer()

    def answer(self):
        if not self.pipe.poll(self.timeout):
            raise TimeoutError(
                f"the server did not answer within {self.timeout:g} s; PPRML_PATIENCE sets how long is waited"
            )
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError("the server ended before it answered") from None
        if isinstance(answer, Exception):
            raise answer
        self.waiting -= 1
        return answer

    def finish(self, task):
        self.send(task)
        while self.waiting > 1:
            self.answer()
        return self.answer()


def sum_products(
    blocks: Iterable[np.ndarray], size: int, packing: str, per_answer: int, timeout: float
) -> tuple[np.ndarray, dict[str, float], dict[str, int], int, list[str]]:
    """Encrypt blocks of rows, let a server multiply them, and open the sums.

    Parameters
    ----------
    blocks : iterable of ndarray of shape (m, size + 1)
        Rows of A with y as the last column; m at most `count_rows`.
    size : int
        Columns of A.
    per_answer : int
        Blocks that the server adds before the owner opens what there is.

    Returns
    -------
    tuple
        The sums of `compute_sums`, with the sum of y squared last, seconds, what the server received, bytes that it returned, secret keys that it saw.
    """
    pairs, seconds = list_pairs(size), {}
    widths = [len(group) for group in split_pairs(size, DEGREE // 2)]
    asked = pairs if packing == "columns" else [(g, g) for g in range(len(widths))]
    sums, returned, factor = np.zeros(len(pairs)), 0, np.sqrt(2 * per_answer)
    alone = np.zeros(size + 1)
    with TemporaryDirectory() as place, _Server(folder := Path(place, "sent"), asked, timeout) as server:
        server.waiting += 1
        server.answer()
        start = time.perf_counter()
        key = KeyHolder(DEGREE, 1, None, SCALE_BITS, HEAD_BITS)
        key.parameters.save(str(folder / "parameters"))
        server.send("open", fingerprint(folder, ["parameters"]))
        seconds["keys"], seconds["decrypt"], mark = time.perf_counter() - start, 0.0, time.perf_counter()

        def open_answer():
            nonlocal returned
            sealed = server.finish("return")
            begun, means = time.perf_counter(), []
            for number in range(len(asked)):
                name = f"product_{number}"
                answer = read_sealed(key, folder, {name: sealed[name]}, folder.parent / "owner", parts=3)
                returned += (folder / name).stat().st_size
                opened = key.decrypt(answer[name])
                width = 1 if packing == "columns" else widths[number]
                means.append(opened[: key.slots // width * width].reshape(-1, width).sum(axis=0))
            seconds["decrypt"] += time.perf_counter() - begun
            return np.concatenate(means) * factor**2

        number = 0
        for number, block in enumerate(blocks, 1):
            names, alone = [], alone + block.sum(axis=0)
            for side, numbers in lay_out(block / factor, packing, key.slots):
                names.append(f"{side}_{number}")
                key.encrypt_to(numbers, folder / names[-1])
            server.send("multiply", fingerprint(folder, names))
            if number % per_answer == 0:
                sums += open_answer()
        if number % per_answer:
            sums += open_answer()
        seconds["encrypt and multiply"] = time.perf_counter() - mark - seconds["decrypt"]
        received, secret, seconds["server, meanwhile"] = server.finish("report")
    table = np.zeros((size + 1, size + 1))
    table[0] = table[:, 0] = alone
    for value, (i, j) in zip(sums, pairs, strict=True):
        table[i, j] = table[j, i] = value
    sums = np.r_[table[:size, :size][np.triu_indices(size)], table[:, size]]
    return sums, seconds, received, returned, secret
