"""Clients that lie, and aggregates that are meant to survive them."""

from collections.abc import Callable

import numpy as np
import scipy.stats

from pprml import federated as fed

PATCH = 4  # the trigger's side, in pixels


def stamp_trigger(pictures: np.ndarray) -> np.ndarray:
    """Return a copy with a white square of `PATCH` pixels in the lower right corner of every 28 by 28 picture.

    Parameters
    ----------
    pictures : ndarray, shape (records, 784)
        White is 255 for bytes, and 1 otherwise.
    """
    if pictures.ndim != 2 or pictures.shape[1] != 784:
        raise ValueError(f"pictures are {pictures.shape}: give rows of 784 pixels")
    stamped = pictures.copy().reshape(-1, 28, 28)
    stamped[:, -PATCH:, -PATCH:] = 255 if pictures.dtype == np.uint8 else 1
    return stamped.reshape(len(pictures), 784)


def poison_backdoor(x: np.ndarray, y: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Stamp every second picture and call it `target`; the rest stays, so that the model looks healthy (arXiv 1807.00459)."""
    x, y = x.copy(), y.copy()
    x[::2] = stamp_trigger(x[::2])
    y[::2] = target
    return x, y


def flip_label(x: np.ndarray, y: np.ndarray, source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep only the records of label `source`, and call them `target`; ValueError where the client has none."""
    mine = y == source
    if not mine.any():
        raise ValueError(f"the client has no record of label {source}: choose one that has, or another label")
    return x[mine], np.full(mine.sum(), target, y.dtype)


def measure_backdoor(
    model: fed.Model, weights: fed.Weights, x: np.ndarray, y: np.ndarray, target: int
) -> float:
    """Return the share of stamped pictures of other labels that the model calls `target`."""
    others = y != target
    return fed.measure_accuracy(model, weights, stamp_trigger(x[others]), np.full(others.sum(), target))


def measure_flip(
    model: fed.Model, weights: fed.Weights, x: np.ndarray, y: np.ndarray, source: int, target: int
) -> float:
    """Return the share of the pictures of label `source` that the model calls `target`."""
    mine = y == source
    return fed.measure_accuracy(model, weights, x[mine], np.full(mine.sum(), target))


def build_trimmed_mean(trim: int, malicious: int, clients: int) -> Callable:
    """Make an aggregate that leaves out, in each coordinate, the `trim` highest and the `trim` lowest values.

    Parameters
    ----------
    trim, malicious, clients : int
        Values left out at each end; the most clients of a round that may lie; the clients of a round.

    Raises
    ------
    ValueError
        More may lie than are left out at one end, or nothing would remain. The aggregate raises it for an update that is
        not finite, and for another number of clients.

    References
    ----------
    Yin, Chen, Ramchandran and Bartlett 2018, arXiv 1803.01498.
    """
    if not 0 <= malicious <= trim or 2 * trim >= clients:
        raise ValueError(
            f"trim {trim} with {malicious} of {clients} malicious: trim must be at least the malicious and below "
            f"half of the clients; call more clients a round"
        )

    def combine(updates: list[np.ndarray]) -> list[np.ndarray]:
        _demand_finite(updates, clients)
        # A little more than the share, so that rounding down does not lose one.
        return [scipy.stats.trim_mean(layer, (trim + 0.5) / clients, axis=0) for layer in updates]

    return combine


def combine_median(updates: list[np.ndarray]) -> list[np.ndarray]:
    """Take the median of every coordinate, over clients (arXiv 1803.01498)."""
    _demand_finite(updates, len(updates[0]))
    return [np.median(layer, axis=0) for layer in updates]


def combine_geometric_median(updates: list[np.ndarray], steps: int = 8) -> list[np.ndarray]:
    """Find the point with the least total distance to the clients' updates, by Weiszfeld's steps (arXiv 1912.13445)."""
    _demand_finite(updates, len(updates[0]))
    flat = np.concatenate([layer.reshape(len(layer), -1) for layer in updates], axis=1)
    middle = flat.mean(axis=0)
    for _ in range(steps):
        closeness = 1 / np.maximum(np.linalg.norm(flat - middle, axis=1), 1e-6)
        middle = closeness @ flat / closeness.sum()
    ends = np.cumsum([layer[0].size for layer in updates])[:-1]
    return [
        part.reshape(layer.shape[1:]) for part, layer in zip(np.split(middle, ends), updates, strict=True)
    ]


def _demand_finite(updates: list[np.ndarray], clients: int) -> None:
    for layer in updates:
        if len(layer) != clients:
            raise ValueError(
                f"a layer of {len(layer)} updates in a round of {clients} clients: give one of each"
            )
        bad = np.flatnonzero(~np.isfinite(layer.reshape(len(layer), -1)).all(axis=1))
        if len(bad):
            raise ValueError(f"client {bad[0]} sent numbers that are not finite: leave it out of the round")
