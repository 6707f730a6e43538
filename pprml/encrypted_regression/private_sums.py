"""Noise on the sums of a hospital before they are encrypted: what the decrypted line may tell about a patient (chapter 10)."""

from typing import Any

import numpy as np

from pprml._noise import draw_gaussian
from pprml.least_squares import scale_rows


def clip_rows(table: Any, bound: float) -> np.ndarray:
    """Return rows of A with y, in agreed spreads, each shortened to an L2 norm of at most `bound`, the leading one included."""
    if not 0 < bound < np.inf:
        raise ValueError(f"bound must be finite and above 0, got {bound!r}")
    rows = scale_rows(table)
    return rows * np.minimum(1, bound / np.linalg.norm(rows, axis=1))[:, None]


def sums_sensitivity(bound: float) -> float:
    """How far one patient, who joins or leaves, moves all numbers of `noise_sums` together (L2).

    With a row's part of A called a, its products are the upper triangle of aa', at most |a|^2 in norm, and ya. Together they are at most
    sqrt(|a|^4 + y^2 |a|^2) = |a| sqrt(|a|^2 + y^2), and clipping keeps both factors below the bound.
    """
    return bound**2


def clip_sums(table: Any, bound: float) -> np.ndarray:
    """Return the numbers of `compute_sums`, of clipped rows."""
    rows = clip_rows(table, bound)
    A, upper = rows[:, :-1], np.triu_indices(rows.shape[1] - 1)
    return np.concatenate([(A.T @ A)[upper], A.T @ rows[:, -1]])


def noise_sums(table: Any, bound: float, sigma: float) -> np.ndarray:
    """Return `clip_sums` with Gaussian noise on each number. The number of patients is noisy too."""
    sums = clip_sums(table, bound)
    return sums + draw_gaussian(len(sums), sigma)


def attack_membership(opened: np.ndarray, expected: np.ndarray, own: np.ndarray, sigma: float) -> float:
    """Say how likely noisy sums are with one patient against without: the best score that there is for one release.

    Parameters
    ----------
    opened : ndarray
        The sums of all parties, with their noise.
    expected, own : ndarray
        `clip_sums` of everybody else, and of the patient.
    sigma : float
        Standard deviation of all noise together, the same in every number: so whitening is a division.

    Returns
    -------
    float
        The log-likelihood ratio; above 0 the patient is likelier in.

    References
    ----------
    Neyman and Pearson 1933, DOI 10.1098/rsta.1933.0009.
    """
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma must be finite and above 0, got {sigma!r}: without noise, subtract")
    return float((opened - expected - own / 2) @ own / sigma**2)
