"""Descent on an encrypted system: the model is trained, and stays, under encryption (chapter 10).

One step costs one level. The server holds the diagonals of A'A / n and A'y / n, encrypted, and one rotation key. Bounds of the eigenvalues
come from what everyone agreed beforehand and from the number of levels, never from the data.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import tenseal.sealapi as seal

from pprml.ckks import KeyHolder, Ring, find_secret_key, fingerprint, open_ring
from pprml.encrypted_regression.crew import ask_process
from pprml.encrypted_regression.products import read_sealed

PERIOD = 16  # numbers of the model, padded: a power of two, so that its copies fill the slots


class System(NamedTuple):
    """The encrypted diagonals of the matrix, and the encrypted right side."""

    diagonals: list[seal.Ciphertext]
    right: seal.Ciphertext


def chebyshev_weights(steps: int, high: float) -> list[tuple[float, float]]:
    """Return a step size and a momentum for each step.

    Parameters
    ----------
    steps : int
        Steps that the depth allows.
    high : float
        Upper bound of the eigenvalues. The lower one is `2 * high / steps**2`, from the budget alone: at that ratio the steps shrink
        all components above it to 2 exp(-2 sqrt(2)), about an eighth, and more steps reach further down.

    References
    ----------
    Golub and Varga 1961, DOI 10.1007/BF01386013.
    """
    if steps < 1 or not 0 < high < np.inf:
        raise ValueError("steps must be 1 or more and high a finite number above 0")
    low = 2 * high / max(steps, 2) ** 2
    middle, half = (high + low) / 2, (high - low) / 2
    rho, weights = half / middle, [(1 / middle, 0.0)]
    for _ in range(steps - 1):
        after = 1 / (2 * middle / half - rho)
        weights.append((2 * after / half, after * rho))
        rho = after
    return weights


def descend(gram: np.ndarray, right: np.ndarray, weights: list[tuple[float, float]]) -> np.ndarray:
    """Take the steps in the clear: b + size * (right - gram b) + momentum * (b - the b before), from zero."""
    before = model = np.zeros(len(right))
    for size, momentum in weights:
        before, model = model, model + size * (right - gram @ model) + momentum * (model - before)
    return model


def seal_system(key: KeyHolder, gram: np.ndarray, right: np.ndarray) -> System:
    """Encrypt the diagonals of a matrix and the right side, both padded to `PERIOD` and repeated over the slots."""
    size = len(right)
    if size > PERIOD or not np.abs(np.r_[gram.ravel(), right]).max() < 64:
        raise ValueError(f"at most {PERIOD} numbers in a model, and means of products below 64: divide by n")
    matrix = np.zeros((PERIOD, PERIOD))
    matrix[:size, :size] = gram
    place = np.arange(PERIOD)
    diagonals = [matrix[place, (place + k) % PERIOD] for k in range(PERIOD)]
    sealed = [
        key.encrypt(np.resize(d, key.slots)) for d in [*diagonals, np.r_[right, np.zeros(PERIOD - size)]]
    ]
    return System(sealed[:-1], sealed[-1])


def _multiply_matrix(ring: Ring, diagonals: list[seal.Ciphertext], model: seal.Ciphertext) -> seal.Ciphertext:
    """Return matrix times model: a product a diagonal, one relinearisation and one rescaling for all."""
    total, term = seal.Ciphertext(), seal.Ciphertext()
    for k, diagonal in enumerate(diagonals):
        if k:
            model = ring.rotate(model, 1)  # one key for all rotations
        ring.seal.multiply(diagonal, model, term if k else total)
        if k:
            ring.seal.add_inplace(total, term)
    ring.relinearize(total)
    return ring.rescale(total)


def descend_encrypted(ring: Ring, system: System, weights: list[tuple[float, float]]) -> seal.Ciphertext:
    """Take the steps of `descend` on ciphertexts, a level each. The ring need not hold the secret key.

    Raises
    ------
    ValueError
        More steps than levels: only bootstrapping, which SEAL does not have, would go on.
    """
    if len(weights) > ring.levels:
        raise ValueError(
            f"{len(weights)} steps need as many levels, and there are {ring.levels}: without bootstrapping, take fewer steps"
        )
    before, model = None, ring.lower(system.right, ring.levels - 1, weights[0][0])
    for size, momentum in weights[1:]:
        level = ring.level(model)
        # b + size * (right - gram b) + momentum * (b - before) = (1 + momentum - size * gram) b + ...
        diagonals = [ring.lower(d, level, -size) for d in system.diagonals]
        diagonals[0] = ring.add_number(diagonals[0], 1 + momentum)
        after = ring.add(_multiply_matrix(ring, diagonals, model), ring.lower(system.right, level - 1, size))
        if before is not None:
            after = ring.add(after, ring.lower(before, level - 1, -momentum))
        before, model = model, after
    return model


def train_outsourced(
    gram: np.ndarray,
    right: np.ndarray,
    weights: list[tuple[float, float]],
    degree: int = 16384,
    timeout: float = 300.0,
) -> tuple[np.ndarray, float, list[str]]:
    """Seal a system, let a server in another process descend on it, and open the model.

    Returns
    -------
    tuple
        The model, the server's seconds, and the secret keys among the files that it received (there are none).
    """
    key = KeyHolder(degree, len(weights), steps=[1])
    system = seal_system(key, gram, right)
    with TemporaryDirectory() as place:
        folder = Path(place)
        key.export(folder)
        names = [f"system_{k}" for k in range(PERIOD + 1)]
        for name, ct in zip(names, [*system.diagonals, system.right], strict=True):
            ct.save(str(folder / name))
        sealed = fingerprint(folder, names)
        seconds, secret = ask_process(_serve, timeout, folder, sealed, weights)
        model = seal.Ciphertext()
        model.load(key.context, str(folder / "model"))
    return key.decrypt(model)[: len(right)], seconds, secret


def _serve(pipe, folder, sealed, weights):
    """Be the server, in its own process."""
    try:
        ring = open_ring(folder)
        ring.load_keys(folder)
        cts, start = [*read_sealed(ring, folder, sealed).values()], time.perf_counter()
        secret = find_secret_key(ring, list(folder.iterdir()))
        descend_encrypted(ring, System(cts[:-1], cts[-1]), weights).save(str(folder / "model"))
        pipe.send((time.perf_counter() - start, secret))
    except Exception as error:
        pipe.send(ValueError(f"server: {error}"))
