"""Descent on an encrypted system: the model is trained, and stays, under encryption (chapter 10).

Each hospital seals its part of A'A / n and A'y / n under the key-holder's public key; the server adds the parts and descends. One step costs
one level. The server holds the diagonals, encrypted, and one rotation key. Bounds of the eigenvalues come from what everyone agreed
beforehand and from the number of levels, never from the data.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import tenseal.sealapi as seal

from pprml import PATIENCE
from pprml.ckks import KeyHolder, Ring, find_secret_key, fingerprint, open_ring, receive
from pprml.encrypted_regression.crew import ask_process
from pprml.encrypted_regression.products import read_sealed

PERIOD = 16  # numbers of the model, padded: a power of two, so that its copies fill the slots
MAX_MEAN = 64  # products of numbers of at most 8 spreads
#: Levels of 30 bits leave noise of about 5e-4 in a coefficient, and an opened model is rounded far above it.
MODEL_DECIMALS = 2
SHARED = ("parameters", "relin_keys", "galois_keys")


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


def check_system(gram: np.ndarray, right: np.ndarray) -> None:
    """Refuse a system that cannot be sealed, and say why."""
    size = len(right)
    if not 1 <= size <= PERIOD:
        raise ValueError(f"{size} numbers in a model: the layout holds 1 to {PERIOD}")
    if gram.shape != (size, size):
        raise ValueError(f"expected a matrix of {size} x {size} for {size} right sides, got {gram.shape}")
    numbers = np.r_[gram.ravel(), right]
    if not np.isfinite(numbers).all():
        raise ValueError("a missing or infinite number in the system")
    if np.abs(numbers).max() >= MAX_MEAN:
        raise ValueError(f"means of products must stay below {MAX_MEAN}: divide by the number of rows")


def seal_system(ring: Ring, gram: np.ndarray, right: np.ndarray) -> System:
    """Encrypt the diagonals of a matrix and the right side, both padded to `PERIOD` and repeated over the slots.

    Parameters
    ----------
    ring : Ring
        One that encrypts: the key-holder's, or one that loaded a public key.

    Raises
    ------
    ValueError
        More than 16 numbers in the model, shapes that do not fit, a missing or infinite number, or one of 64 or more.
    """
    check_system(gram, right)
    size = len(right)
    matrix = np.zeros((PERIOD, PERIOD))
    matrix[:size, :size] = gram
    place = np.arange(PERIOD)
    diagonals = [matrix[place, (place + k) % PERIOD] for k in range(PERIOD)]
    sealed = [
        ring.encrypt(np.resize(d, ring.slots)) for d in [*diagonals, np.r_[right, np.zeros(PERIOD - size)]]
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
    parts: list[tuple[np.ndarray, np.ndarray]],
    weights: list[tuple[float, float]],
    degree: int = 16384,
    timeout: float = PATIENCE,
) -> tuple[np.ndarray, float, list[str]]:
    """Let each hospital seal its part of a system, a server add the parts and descend on them, and open the model.

    Hospitals and server are processes of their own; this process is the key-holder, and hands each hospital its numbers.

    Parameters
    ----------
    parts : list of tuple
        A'A (d + 1, d + 1) and A'y (d + 1,) of each hospital, both over the number of rows of all: that number is told in the clear.
    weights : list of tuple
        Step size and momentum of each step, as from `chebyshev_weights`.
    timeout : float
        Seconds for each process.

    Returns
    -------
    tuple
        The model, rounded to `MODEL_DECIMALS`, the server's seconds, and the secret keys among the files of hospitals and server (there are none).

    Raises
    ------
    ValueError
        A system that cannot be sealed, before work starts; or a file that somebody refused.
    TimeoutError, RuntimeError
        A process did not answer, or ended. No process is left.
    """
    for gram, right in parts:
        check_system(gram, right)
    if len({len(right) for _, right in parts}) != 1:
        raise ValueError("expected one or more parts, all of one size")
    key = KeyHolder(degree, len(weights), steps=[1])
    with TemporaryDirectory() as place:
        folder = Path(place, "sent")
        folder.mkdir()
        key.export(folder)
        key.export_public_key(folder)
        public, sealed, secret = fingerprint(folder, ["parameters", "public_key"]), [], []
        for number, part in enumerate(parts):
            names, seen = ask_process(_seal, timeout, folder, public, number, *part)
            sealed.append(names)
            secret += seen
        shared = fingerprint(folder, list(SHARED))
        seconds, seen, answer = ask_process(_serve, timeout, folder, shared, sealed, weights)
        (model,) = read_sealed(key, folder, answer, folder.parent / "owner", level=0).values()
    # A raw CKKS decryption depends on the secret key: what is handed on is rounded.
    opened = np.round(key.decrypt(model)[: len(parts[0][1])], MODEL_DECIMALS) + 0.0
    return opened, seconds, secret + seen


def _seal(pipe, folder, public, number, gram, right):
    """Be a hospital, in its own process: seal one part under the public key."""
    try:
        own = folder.parent / f"hospital_{number}"
        receive(folder, public, own)
        ring = open_ring(own)
        ring.load_public_key(own)
        system = seal_system(ring, gram, right)
        names = [f"system_{number}_{k}" for k in range(PERIOD + 1)]
        for name, ct in zip(names, [*system.diagonals, system.right], strict=True):
            ct.save(str(folder / name))
        pipe.send((fingerprint(folder, names), find_secret_key(ring, list(own.iterdir()))))
    except Exception as error:
        pipe.send(ValueError(f"hospital_{number + 1}: {error}"))


def _serve(pipe, folder, shared, sealed, weights):
    """Be the server, in its own process: add the parts, and descend."""
    try:
        own = folder.parent / "server"
        receive(folder, shared, own)
        ring = open_ring(own)
        ring.load_keys(own)
        first, *rest = ([*read_sealed(ring, folder, names, own).values()] for names in sealed)
        start = time.perf_counter()
        for part in rest:
            first = [ring.add(total, ct) for total, ct in zip(first, part, strict=True)]
        secret = find_secret_key(ring, list(folder.iterdir()))
        descend_encrypted(ring, System(first[:-1], first[-1]), weights).save(str(folder / "model"))
        pipe.send((time.perf_counter() - start, secret, fingerprint(folder, ["model"])))
    except Exception as error:
        pipe.send(ValueError(f"server: {error}"))
