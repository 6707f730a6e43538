"""DP-SGD small enough to be run thousands of times, and six ways in which code can differ from its description."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from pprml.accounting import PrivacyGuarantee, dp_sgd_guarantee

FAULTS = ("no clipping", "realised batch", "half noise", "reused noise", "every record", "in order")


@dataclass(frozen=True)
class Recipe:
    """DP-SGD as its author describes it: `steps`, `sampling_rate`, the expected `batch_size`, `noise_multiplier`, `clip_norm`."""

    steps: int
    sampling_rate: float
    batch_size: float
    noise_multiplier: float
    clip_norm: float = 1.0
    learning_rate: float = 1e-6

    def guarantee(self, delta: float) -> PrivacyGuarantee:
        """Return what the description promises, for Poisson sampling."""
        records, epochs = self.batch_size / self.sampling_rate, self.steps * self.sampling_rate
        return dp_sgd_guarantee(records, self.batch_size, epochs, self.noise_multiplier, delta)


def publish_updates(
    x: np.ndarray, y: np.ndarray, seed: int, recipe: Recipe, fault: str | None = None
) -> np.ndarray:
    """Train a softmax regression by DP-SGD in NumPy, with a planted fault if one is named, and publish every noisy update.

    Parameters
    ----------
    x : ndarray, shape (records, features)
    y : ndarray of 0 and 1, shape (records,)
    seed : int
        Of the batches and the noise.
    recipe : Recipe
        What the training claims to do.
    fault : str, optional
        One of `FAULTS`: what it does instead.

    Returns
    -------
    ndarray, shape (steps, features, 2)
        Noisy sums of clipped gradients, divided by the expected batch size.

    References
    ----------
    Abadi et al. 2016, arXiv 1607.00133.
    """
    if fault is not None and fault not in FAULTS:
        raise ValueError(f"fault must be one of {', '.join(FAULTS)}, got {fault!r}")
    if len(x) != len(y) or not np.isfinite(x).all() or not ((y == 0) | (y == 1)).all():
        raise ValueError("x must be finite and y be 0 or 1, with one label for each record")
    rng = np.random.default_rng(seed)
    weights = np.zeros((x.shape[1], 2))
    sigma = recipe.noise_multiplier * recipe.clip_norm * (0.5 if fault == "half noise" else 1.0)
    noise = rng.normal(0, sigma, (1 if fault == "reused noise" else recipe.steps, *weights.shape))
    joins = rng.random((recipe.steps, len(x))) < (1 if fault == "every record" else recipe.sampling_rate)
    if fault == "in order":
        turn = np.arange(recipe.steps)[:, None] % round(1 / recipe.sampling_rate)
        joins = np.arange(len(x)) // recipe.batch_size == turn
    lengths, signs = math.sqrt(2) * np.sqrt(np.square(x).sum(axis=1)), np.array([-1, 1])
    published = np.empty((recipe.steps, *weights.shape))
    for step, chosen in enumerate(joins):
        rows = x[chosen]
        error = expit(rows @ (weights[:, 1] - weights[:, 0])) - y[chosen]
        if fault != "no clipping":
            norms = np.abs(error) * lengths[chosen]
            error = error * np.minimum(1, recipe.clip_norm / np.maximum(norms, 1e-12))
        total = (error @ rows)[:, None] * signs
        size = max(chosen.sum(), 1) if fault == "realised batch" else recipe.batch_size
        published[step] = (total + noise[step % len(noise)]) / size
        weights -= recipe.learning_rate * published[step]
    return published
