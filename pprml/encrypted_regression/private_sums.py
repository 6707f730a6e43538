"""Noise on the sums of a hospital before they are encrypted: what the decrypted line may tell about a patient (chapter 10)."""

from typing import Any

import numpy as np
import opendp.prelude as dp

from pprml.least_squares import scale_rows

dp.enable_features("contrib")  # as in `pprml._noise`: OpenDP's constructors are switched on by hand

#: Clipped numbers are multiples of this. Their products and any sum of 1024 of them are then exact in float64 (16 + 32 bits of 53), so
#: that one patient moves the sums by her own products and not by a rounding besides.
GRID = 2.0**-16


def clip_rows(table: Any, bound: float) -> np.ndarray:
    """Return rows of A with y, in agreed spreads, each shortened to an L2 norm of at most `bound`, the leading one included.

    Every number is then cut, towards zero, to a multiple of `GRID`: that shortens a row once more and never lengthens it.
    """
    if not 0 < bound < np.inf:
        raise ValueError(f"bound must be finite and above 0, got {bound!r}")
    rows = scale_rows(table)
    # A hair below the bound, for the rounding of the division.
    shorter = np.minimum(1, (1 - 1e-12) * bound / np.linalg.norm(rows, axis=1))[:, None]
    return np.trunc(rows * shorter / GRID) * GRID


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
    """Return `clip_sums` with Gaussian noise on each number. The number of patients is noisy too.

    The sums go through OpenDP's mechanism, whose proof covers what it returns: noise drawn at zero and added in floats would be outside of it.
    """
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l2_distance(T=float)
    return np.array(dp.m.make_gaussian(*space, scale=float(sigma))(clip_sums(table, bound).tolist()))


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
