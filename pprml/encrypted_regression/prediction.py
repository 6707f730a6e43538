"""The model stays encrypted: a server multiplies encrypted rows by encrypted coefficients (chapter 10, setting d).

One ciphertext a column and one a coefficient, with the people in the slots: a prediction is a sum over ciphertexts, slot by slot, so no
rotation is needed, and only predictions come back. Who opens them learns the line from as many people as it has numbers.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from pprml import PATIENCE
from pprml.ckks import KeyHolder, find_secret_key, fingerprint, open_ring, receive
from pprml.encrypted_regression.crew import ask_process
from pprml.encrypted_regression.products import DEGREE, HEAD_BITS, SCALE_BITS, multiply_pairs, read_sealed
from pprml.encrypted_regression.protocol import PUBLISHED_DECIMALS
from pprml.least_squares import REFERENCE, TARGET, scale_columns


class Predicted(NamedTuple):
    """Outcome of a run. `predictions` (n,) in points, rounded; `seconds` of each step, without the start of the process.

    `received` lists the server's files and their bytes, `returned` how many it sent back; `secret_seen` the secret keys among the first.
    """

    predictions: np.ndarray
    seconds: dict[str, float]
    received: dict[str, int]
    returned: int
    secret_seen: list[str]


def scale_coefficients(coefficients: np.ndarray, columns: list[str]) -> np.ndarray:
    """Turn points for one clinical unit into agreed spreads: what `restore_units` undoes."""
    middle, spread = np.array([REFERENCE[name] for name in columns], float).T
    slopes = np.asarray(coefficients, float)[1:]
    at_middle = coefficients[0] + slopes @ middle
    return np.r_[at_middle - REFERENCE[TARGET][0], slopes * spread] / REFERENCE[TARGET][1]


def predict_outsourced(coefficients: np.ndarray, table: Any, timeout: float = PATIENCE) -> Predicted:
    """Predict on a server, in another process, that sees neither the rows nor the model nor the predictions.

    Parameters
    ----------
    coefficients : ndarray of shape (d + 1,)
        As from `solve_sums`.
    table : DataFrame of shape (n, d)
        Clinical units, without the target; at most 1024 rows.

    Raises
    ------
    ValueError
        Bad rows or coefficients, before work starts; or a file that either side refused.
    TimeoutError, RuntimeError
        The server did not answer, or ended. No process is left.
    """
    scaled = scale_columns(table)
    model = scale_coefficients(coefficients, list(table.columns))
    # Rows are at most 8 spreads: so are predictions of this length at most 2^7, the room before the point.
    if not np.abs(model).sum() * np.abs(np.c_[np.ones(len(scaled)), scaled]).max() < 2 ** (HEAD_BITS - 1):
        raise ValueError(
            "a missing, infinite or too large coefficient: predictions must stay below 128 spreads"
        )
    seconds, start = {}, time.perf_counter()
    key = KeyHolder(DEGREE, 1, None, SCALE_BITS, HEAD_BITS)
    with TemporaryDirectory() as place:
        folder = Path(place, "sent")
        folder.mkdir()
        key.parameters.save(str(folder / "parameters"))
        seconds["keys"], start = time.perf_counter() - start, time.perf_counter()
        columns = np.column_stack([np.ones(len(scaled)), scaled]).T
        names = [f"{kind}_{j}" for kind in ("row", "model") for j in range(len(model))]
        # One number is encoded for all slots.
        for name, numbers in zip(names, [*columns, *model], strict=True):
            key.encrypt_to(numbers, folder / name)
        sealed = fingerprint(folder, ["parameters"]), fingerprint(folder, names)
        seconds["encrypt"] = time.perf_counter() - start
        received, secret, seconds["server"], answer = ask_process(_serve, timeout, folder, *sealed)
        start = time.perf_counter()
        (ct,) = read_sealed(key, folder, answer, folder.parent / "owner", parts=3).values()
        opened = key.decrypt(ct)[: len(scaled)]
        seconds["decrypt"] = time.perf_counter() - start
        returned = (folder / "predictions").stat().st_size
    middle, spread = REFERENCE[TARGET]
    # A raw CKKS decryption depends on the secret key: what is handed on is rounded, far above its noise.
    predictions = np.round(middle + spread * opened, PUBLISHED_DECIMALS)
    return Predicted(predictions, seconds, received, returned, secret)


def _serve(pipe, folder, parameters, sealed):
    """Be the server, in its own process: no secret key and no evaluation key."""
    try:
        files = list(folder.iterdir())
        received = {path.name: path.stat().st_size for path in files}
        own = folder.parent / "server"
        receive(folder, parameters, own)
        ring, start = open_ring(own), time.perf_counter()
        cts = read_sealed(ring, folder, sealed, own)
        rows, model = ([ct for name, ct in cts.items() if name.startswith(kind)] for kind in ("row", "model"))
        multiply_pairs(ring, rows, model).save(str(folder / "predictions"))
        seconds = time.perf_counter() - start
        answer = fingerprint(folder, ["predictions"])
        pipe.send((received, find_secret_key(ring, files), seconds, answer))
    except Exception as error:
        pipe.send(ValueError(f"server: {error}"))


def attack_predictions(table: Any, predictions: np.ndarray) -> np.ndarray:
    """Recover the coefficients (d + 1,) from predictions for d + 1 people or more whose rows are known."""
    A = np.column_stack([np.ones(len(table)), table.to_numpy(float)])
    return np.linalg.lstsq(A, predictions, rcond=None)[0]
