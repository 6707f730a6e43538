"""Noise that protects somebody: OpenDP's, from a cryptographic source. Used by the chapters that release numbers."""

import numpy as np
import opendp.prelude as dp

# OpenDP's Laplace mechanism is proved, but its constructors are switched on by hand.
dp.enable_features("contrib")


def add_laplace(values: np.ndarray, scale: float) -> np.ndarray:
    """Add discrete Laplace noise of the given scale to every whole number of an array, drawn afresh in each call."""
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise ValueError(
            "values must be whole numbers: round them first, and count the rounding in the sensitivity"
        )
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l1_distance(T=int)
    noisy = dp.m.make_laplace(*space, scale=float(scale))(values.ravel().tolist())
    return np.array(noisy, dtype=np.int64).reshape(values.shape)


def draw_gaussian(size: int, scale: float) -> np.ndarray:
    """Return discrete Gaussian noise of the given standard deviation on a fine grid, shape (size,), drawn afresh in each call."""
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l2_distance(T=float)
    return np.array(dp.m.make_gaussian(*space, scale=float(scale))([0.0] * size))


def check_epsilon(epsilon: float) -> None:
    """Refuse an epsilon that is no finite number above 0."""
    if not 0 < epsilon < np.inf:
        raise ValueError(f"epsilon must be finite and above 0, got {epsilon!r}")
