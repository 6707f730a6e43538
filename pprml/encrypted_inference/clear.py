"""A circuit without encryption."""

from collections.abc import Sequence

import numpy as np


class Clear:
    """The arithmetic of `pprml.ckks.Ring` on plain numbers: what a circuit gives where encryption adds no noise."""

    add = staticmethod(np.add)
    multiply = staticmethod(np.multiply)
    negate = staticmethod(np.negative)

    @staticmethod
    def rotate(column: np.ndarray, step: int) -> np.ndarray:
        """Return the numbers moved `step` places to the left, in a circle."""
        return np.roll(column, -step)

    add_number = staticmethod(np.add)

    @staticmethod
    def weighted_sum(columns: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
        """Return the sum of weights times columns."""
        return np.asarray(weights) @ np.asarray(columns)
