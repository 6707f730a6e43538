"""Inputs read out of an update."""

import numpy as np


def attack_dense_layer(kernel_update: np.ndarray, bias_update: np.ndarray) -> np.ndarray:
    """Read inputs out of a dense layer's update: an array (candidates, inputs), clipped to 0 to 1, as inputs are.

    For one input x, the gradient of a unit's kernel is x times that of its bias: their ratio is x. For more
    inputs a ratio is a mixture of them, each weighted by how much it moved the unit. Units whose bias moved less
    than a thousandth of the most are left out.

    Parameters
    ----------
    kernel_update : ndarray, shape (inputs, units)
    bias_update : ndarray, shape (units,)
        New minus old weights of one layer, or gradients; other shapes raise ValueError.
    """
    if kernel_update.shape[1:] != bias_update.shape:
        raise ValueError(f"kernel {kernel_update.shape} and bias {bias_update.shape}: give both of one layer")
    moved = np.abs(bias_update) > 1e-3 * np.abs(bias_update).max(initial=1e-30)
    return np.clip(kernel_update[:, moved] / bias_update[moved], 0, 1).T
