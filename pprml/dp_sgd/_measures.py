"""Small networks to train, and what is measured of them."""

import numpy as np
import tensorflow as tf
from scipy.stats import mannwhitneyu

layers = tf.keras.layers


def make_cnn() -> list[tf.keras.layers.Layer]:
    """Return a small convolutional network for 28 x 28 images (26,490 parameters).

    One convolution with a large kernel and stride: with a few hundred private steps it is as accurate on held-out pictures as deeper
    networks, and cheaper. Bounded activations keep gradients small (Papernot et al. 2020, arXiv 2007.14191).
    """
    return [
        layers.Conv2D(16, 8, strides=4, padding="same", activation="tanh", input_shape=(28, 28, 1)),
        layers.Flatten(),
        layers.Dense(32, activation="tanh"),
        layers.Dense(10),
    ]


def measure_accuracy(model: tf.keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of records whose largest logit is their label."""
    return float(np.mean(model.predict(x, batch_size=2000, verbose=0).argmax(axis=1) == y))


def attack_by_threshold(model: tf.keras.Model, members: tuple, others: tuple) -> float:
    """Guess who was in the training set from the loss alone, and return the attack's AUC (0.5 is a blind guess).

    Parameters
    ----------
    model : keras.Model
        The model under attack, which returns logits.
    members, others : (x, y)
        Records that were trained on and records that were not.

    Returns
    -------
    float
        Probability that a member's loss is below an outsider's.

    References
    ----------
    Yeom et al. 2018, arXiv 1709.01604.
    """
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    inside, outside = (
        loss(y, model.predict(x, batch_size=2000, verbose=0)).numpy() for x, y in (members, others)
    )
    return float(mannwhitneyu(outside, inside).statistic / (len(inside) * len(outside)))
