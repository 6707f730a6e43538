"""Reading pictures and labels back out of the gradient of a small convolutional network."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.optimize import linear_sum_assignment, minimize

SHAPE = (28, 28, 1)
ACTIVATIONS = {"sigmoid": tf.sigmoid, "relu": tf.nn.relu}


class Network(NamedTuple):
    """Two convolutions and a dense layer: its activation's name and its weights."""

    activation: str
    weights: list[np.ndarray]


def init_network(activation: str, seed: int) -> Network:
    """Draw an untrained network for pictures of `SHAPE` and ten labels.

    Parameters
    ----------
    activation : {"sigmoid", "relu"}
        Smooth with large uniform weights, as in the attack's first paper (arXiv 1906.08935), or as in networks that are used.
    seed : int
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    rng, weights = np.random.default_rng(seed), []
    for shape in ((5, 5, 1, 12), (5, 5, 12, 12), (588, 10)):
        if activation == "sigmoid":
            weights += [rng.uniform(-0.5, 0.5, shape), rng.uniform(-0.5, 0.5, shape[-1])]
        else:
            weights += [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape), np.zeros(shape[-1])]
    return Network(activation, [w.astype(np.float32) for w in weights])


class _Compiled(NamedTuple):
    differentiate: Callable
    mismatch: Callable
    descend: Callable


def predict_logits(network: Network, x: np.ndarray) -> np.ndarray:
    """Return an array (records, 10) for pictures of shape (records, 28, 28, 1)."""
    return _predict(network.activation, network.weights, x).numpy()


def _predict(activation, weights, x):
    for k in (0, 2):
        x = ACTIVATIONS[activation](tf.nn.conv2d(x, weights[k], 2, "SAME") + weights[k + 1])
    return tf.matmul(tf.reshape(x, (-1, 588)), weights[4]) + weights[5]


@functools.cache
def _compile(activation: str) -> _Compiled:
    """Trace the functions of all networks of one activation once."""

    @tf.function(reduce_retracing=True)
    def differentiate(weights, x, y):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits = _predict(activation, weights, x)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))
        return tape.gradient(loss, weights)

    mismatch = _build_mismatch(differentiate)
    return _Compiled(differentiate, mismatch, _build_descent(mismatch))


def _dot(one: list, other: list) -> tf.Tensor:
    return tf.add_n([tf.reduce_sum(a * b) for a, b in zip(one, other, strict=True)])


def _build_mismatch(differentiate: Callable) -> Callable:
    @tf.function(reduce_retracing=True)
    def mismatch(weights, gradient, x, y, smoothness, cosine):
        """How far the gradient at x is from the one observed, and the slope of that in x."""
        with tf.GradientTape() as tape:
            tape.watch(x)
            mine = differentiate(weights, x, y)
            if cosine:
                size = tf.sqrt(_dot(mine, mine) * _dot(gradient, gradient)) + 1e-12
                loss = 1 - _dot(mine, gradient) / size
            else:
                gap = [a - b for a, b in zip(mine, gradient, strict=True)]
                loss = _dot(gap, gap) / _dot(gradient, gradient)
            loss += smoothness * tf.reduce_mean(tf.image.total_variation(x)) / (SHAPE[0] * SHAPE[1])
        return loss, tape.gradient(loss, x)

    return mismatch


def _build_descent(mismatch: Callable) -> Callable:
    @tf.function(reduce_retracing=True)
    def descend(weights, gradient, x, y, smoothness, steps):
        """Take signed Adam steps of 0.1, of a tenth of that after 3/8 of them, and again after 5/8 and 7/8."""
        first, second = tf.zeros_like(x), tf.zeros_like(x)
        for k in tf.range(1.0, steps + 1):
            _, slope = mismatch(weights, gradient, x, y, smoothness, True)
            sign = tf.sign(slope)
            first, second = 0.9 * first + 0.1 * sign, 0.999 * second + 0.001 * sign**2
            falls = tf.reduce_sum(tf.cast(k > steps * tf.constant([3 / 8, 5 / 8, 7 / 8]), tf.float32))
            ahead = first / (1 - 0.9**k) / (tf.sqrt(second / (1 - 0.999**k)) + 1e-8)
            x = tf.clip_by_value(x - 0.1 * 0.1**falls * ahead, 0.0, 1.0)
        return x

    return descend


def train_network(network: Network, x: np.ndarray, y: np.ndarray, steps: int, seed: int) -> Network:
    """Train with Adam on random batches of 100; returns the same network with its new weights."""
    rng, optimizer = np.random.default_rng(seed), tf.keras.optimizers.legacy.Adam(3e-3)
    weights, differentiate = (
        [tf.Variable(w) for w in network.weights],
        _compile(network.activation).differentiate,
    )
    for _ in range(steps):
        rows = rng.integers(0, len(x), 100)
        slopes = differentiate([w.value() for w in weights], x[rows], y[rows])
        optimizer.apply_gradients(zip(slopes, weights, strict=True))
    return network._replace(weights=[w.numpy() for w in weights])


def observe_gradient(network: Network, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Return the mean gradient of these records: what one FedSGD step shows the server.

    Parameters
    ----------
    x : ndarray of float32, shape (records, 28, 28, 1)
        From 0 to 1; anything else raises ValueError, as does a NaN.
    y : ndarray of int, shape (records,)
    """
    if x.shape[1:] != SHAPE or len(x) != len(y) or not len(x):
        raise ValueError(f"x {x.shape} and y {y.shape}: give one record or more of {SHAPE} and its label")
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        raise ValueError("x must lie from 0 to 1, with no NaN: divide grey levels by 255")
    weights = [tf.constant(w) for w in network.weights]
    differentiate = _compile(network.activation).differentiate
    return [g.numpy() for g in differentiate(weights, tf.constant(x, tf.float32), tf.constant(y))]


def attack_label(gradient: list[np.ndarray]) -> int:
    """Name the label of the one record behind a gradient: only its output's bias has a negative slope (arXiv 2001.02610)."""
    return int(np.argmin(gradient[-1]))


def attack_label_counts(gradient: list[np.ndarray], predictions: np.ndarray, records: int) -> np.ndarray:
    """Count the labels behind the mean gradient of several records.

    The slope of an output's bias is the mean predicted probability minus the label's share. The server knows the model, so it
    puts in the probabilities of other pictures.

    Parameters
    ----------
    gradient : list of ndarray
    predictions : ndarray, shape (pictures, labels)
        Probabilities on any pictures of the kind.
    records : int

    Returns
    -------
    ndarray of float, shape (labels,)
        Estimated counts.
    """
    return records * (predictions.mean(axis=0) - gradient[-1])


def compare_gradients(
    network: Network, gradient: list[np.ndarray], pictures: np.ndarray, labels: np.ndarray
) -> tuple[float, np.ndarray]:
    """Tell how far the gradient at some pictures is from the one observed, and the slope of that in every pixel.

    Parameters
    ----------
    network : Network
        With the weights that the server sent out.
    gradient : list of ndarray
        From `observe_gradient`; arrays of other shapes, or with a NaN, raise ValueError.
    pictures : ndarray of float64, shape (records, 28, 28, 1)
    labels : ndarray of int, shape (records,)

    Returns
    -------
    gap : float
        The squared distance, as a share of the observed gradient's squared length.
    slope : ndarray, of the pictures' shape
    """
    _demand_gradient(network, gradient)
    # Double precision: the last digits of a picture lie in those of its gradient.
    weights, seen = ([tf.cast(a, tf.float64) for a in arrays] for arrays in (network.weights, gradient))
    none, mismatch = tf.constant(0, tf.float64), _compile(network.activation).mismatch
    gap, slope = mismatch(weights, seen, tf.constant(pictures), tf.constant(labels), none, False)
    return float(gap), slope.numpy()


def attack_gradient(
    network: Network, gradient: list[np.ndarray], labels: np.ndarray, seed: int
) -> np.ndarray:
    """Search for pictures whose gradient is the one observed: squared distance, L-BFGS (arXiv 1906.08935, 2001.02610).

    Parameters
    ----------
    network : Network
        With the weights that the server sent out.
    gradient : list of ndarray
        From `observe_gradient`; arrays of other shapes, or with a NaN, raise ValueError.
    labels : ndarray of int, shape (records,)
        As `attack_label` names them.
    seed : int
        Of the random pictures that the search starts from.

    Returns
    -------
    ndarray, shape (records, 28, 28, 1)
        From 0 to 1.
    """

    def evaluate(flat):
        gap, slope = compare_gradients(network, gradient, flat.reshape(-1, 28, 28, 1), labels)
        return gap, slope.ravel()

    start = np.random.default_rng(seed).random(784 * len(labels))
    options = dict(maxiter=300, maxcor=50, ftol=1e-16, gtol=1e-12)
    limits = [(0, 1)] * len(start)
    found = minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=limits, options=options)
    return found.x.reshape(-1, 28, 28, 1)


def attack_gradient_cosine(
    network: Network, gradient: list[np.ndarray], labels: np.ndarray, seed: int, steps: int = 400
) -> np.ndarray:
    """Search for smooth pictures whose gradient points the same way: cosine, total variation, signed Adam (arXiv 2003.14053).

    Parameters and result as in `attack_gradient`, and `steps`, the number of steps.
    """
    _demand_gradient(network, gradient)
    weights, seen = ([tf.constant(a) for a in arrays] for arrays in (network.weights, gradient))
    start = tf.constant(np.random.default_rng(seed).random((len(labels), *SHAPE)), tf.float32)
    descend = _compile(network.activation).descend
    smoothness = tf.constant(1e-2)
    return descend(weights, seen, start, tf.constant(labels), smoothness, tf.constant(float(steps))).numpy()


def _demand_gradient(network: Network, gradient: list[np.ndarray]) -> None:
    shapes = [g.shape for g in gradient]
    if shapes != [w.shape for w in network.weights] or not all(np.isfinite(g).all() for g in gradient):
        raise ValueError(f"gradient {shapes}: give finite arrays, one for each of the network's weights")


def measure_psnr(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio in decibels, of each row of two arrays from 0 to 1: 20 dB is an error of 0.1.

    Twenty times the negative logarithm, base ten, of the root-mean-square error; no more than 120 dB.
    """
    if np.shape(found) != np.shape(truth):
        raise ValueError(f"found {np.shape(found)}, truth {np.shape(truth)}: give pictures in pairs")
    gap = np.asarray(found, float).reshape(len(found), -1) - np.asarray(truth, float).reshape(len(found), -1)
    return -10 * np.log10(np.maximum(np.mean(gap**2, axis=1), 1e-12))


def measure_ssim(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return TensorFlow's structural similarity of each pair of pictures from 0 to 1: 1 is the same (DOI 10.1109/TIP.2003.819861)."""
    pairs = (np.asarray(pictures, np.float32).reshape(-1, *SHAPE) for pictures in (found, truth))
    return tf.image.ssim(*pairs, max_val=1.0).numpy()


def pair_pictures(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pair found pictures with true ones so that the total squared error is least; returns `found` in the order of `truth`."""
    flat = [np.asarray(pictures).reshape(len(pictures), -1) for pictures in (truth, found)]
    errors = ((flat[0][:, None] - flat[1][None]) ** 2).sum(axis=2)
    return np.asarray(found)[linear_sum_assignment(errors)[1]]
