"""DP-SGD with TensorFlow Privacy: the sampler that the accountant assumes, and fast clipping for convolutions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from scipy.stats import mannwhitneyu
from tensorflow_privacy.privacy.fast_gradient_clipping import layer_registry
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPSequential

from pprml.accounting import PrivacyGuarantee, dp_sgd_guarantee

layers = tf.keras.layers


@dataclass(frozen=True)
class PoissonBatches:
    """Batches that each record joins independently: what a Poisson accountant assumes.

    Attributes
    ----------
    records : int
        Size of the training set.
    batch_size : int
        Expected size of a batch; the realised one varies.
    steps : int
        Number of batches.
    seed : int
        Seed of the draws. A deployment draws them, and the noise, from a cryptographic source and keeps them secret.
    """

    records: int
    batch_size: int
    steps: int
    seed: int
    sampling = "poisson"

    def __post_init__(self) -> None:
        if not 0 < self.batch_size <= self.records:
            raise ValueError(
                f"batch_size must be from 1 to the {self.records} records, got {self.batch_size}"
            )
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield index arrays of varying length."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.steps):
            yield np.flatnonzero(rng.random(self.records) < self.batch_size / self.records)

    def guarantee(self, noise_multiplier: float, delta: float) -> PrivacyGuarantee:
        """Return the guarantee of DP-SGD over these batches."""
        epochs = self.steps * self.batch_size / self.records
        return dp_sgd_guarantee(
            self.records, self.batch_size, epochs, noise_multiplier, delta, loader=self.sampling
        )


def make_registry() -> layer_registry.LayerRegistry:
    """Return TensorFlow Privacy's registry of fast gradient norms, with `Conv2D` added.

    Without it a convolutional model falls back, without a word, to one gradient a record.
    """
    registry = layer_registry.make_default_layer_registry()
    registry.insert(layers.Conv2D, _register_conv2d)
    return registry


def _register_conv2d(layer, args, kwargs, tape, num_microbatches=None):
    """Registry function of `Conv2D`: the pre-activation, the output, and squared norms from the pre-activation's gradient."""
    if kwargs or len(args) != 1 or num_microbatches is not None:
        raise ValueError("Conv2D takes one input here, and no microbatches")
    (inputs,) = args
    before_activation = tf.nn.conv2d(inputs, layer.kernel, layer.strides, layer.padding.upper())
    if layer.use_bias:
        before_activation += layer.bias
    tape.watch(before_activation)

    def squared_norms(gradient: tf.Tensor) -> tf.Tensor:
        # A convolution is a dense layer on patches: the kernel's gradient is the sum of patch x output gradient over positions.
        gradient = tf.reshape(gradient, [-1, gradient.shape[1] * gradient.shape[2], gradient.shape[3]])
        kernel = tf.matmul(gradient, _patches(inputs, layer), transpose_a=True)
        norms = tf.reduce_sum(tf.square(kernel), axis=[1, 2])
        if layer.use_bias:
            norms += tf.reduce_sum(tf.square(tf.reduce_sum(gradient, axis=1)), axis=1)
        return norms

    return before_activation, layer.activation(before_activation), squared_norms


def _patches(inputs: tf.Tensor, layer: tf.keras.layers.Conv2D) -> tf.Tensor:
    """Return the patches under the kernel, (batch, positions, kernel entries), in an order that norms do not depend on."""
    positions = []
    paddings = [[0, 0]]
    for size, kernel, stride in zip(inputs.shape[1:3], layer.kernel_size, layer.strides, strict=True):
        out = -(-size // stride) if layer.padding == "same" else (size - kernel) // stride + 1
        pad = max((out - 1) * stride + kernel - size, 0)
        paddings.append([pad // 2, pad - pad // 2])
        positions.append(stride * np.arange(out)[:, None] + np.arange(kernel))
    padded = tf.pad(inputs, [*paddings, [0, 0]]) if layer.padding == "same" else inputs
    # Gathers of whole rows, then of whole columns: tf.image.extract_patches is several times slower on a CPU.
    rows = tf.transpose(tf.gather(padded, positions[0], axis=1), [0, 1, 3, 2, 4])
    both = tf.gather(rows, positions[1], axis=2)
    height, width = (len(position) for position in positions)
    return tf.reshape(both, [-1, height * width, np.prod(layer.kernel_size) * inputs.shape[3]])


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


def train(
    network: list[tf.keras.layers.Layer],
    x: np.ndarray,
    y: np.ndarray,
    batches: PoissonBatches,
    learning_rate: float,
    clip_norm: float | None = None,
    noise_multiplier: float = 0.0,
    momentum: float = 0.9,
) -> tf.keras.Model:
    """Train a classifier by (DP-)SGD over given batches.

    Parameters
    ----------
    network : list of layers
        Ends in one logit a class.
    x : ndarray, shape (records, ...)
        Inputs, float32.
    y : ndarray of int, shape (records,)
        Labels from 0 to the number of classes less one.
    batches : PoissonBatches
        The draws; the update is divided by their expected size.
    learning_rate, momentum : float
        Of stochastic gradient descent.
    clip_norm : float, optional
        L2 norm to which each record's gradient is clipped; None trains without privacy.
    noise_multiplier : float
        Standard deviation of the noise on the clipped sum, in units of `clip_norm`. The noise comes from TensorFlow's seeded
        generator: right for an experiment that must repeat, wrong for a deployment.

    Returns
    -------
    keras.Model
        The trained model. Its guarantee is ``batches.guarantee(noise_multiplier, delta)``.

    Raises
    ------
    ValueError
        Inputs, labels and batches do not fit each other; a clip or noise that is negative or not a number; noise without
        clipping; or a layer for which no fast norm is registered (training would fall back to one gradient a record).

    References
    ----------
    Abadi et al. 2016, arXiv 1607.00133; Lee and Kifer 2020, arXiv 2009.03106 (fast clipping).
    """
    _check_training(x, y, batches, network[-1].units, clip_norm, noise_multiplier)
    if clip_norm is None:
        model = tf.keras.Sequential(network)
    else:
        model = DPSequential(
            clip_norm, noise_multiplier, use_xla=False, layer_registry=make_registry(), layers=network
        )
        if not model._enable_fast_peg_computation:
            raise ValueError("a layer of the network has no fast gradient norm; register one, as for Conv2D")
    # The loss is summed and the learning rate divided by the expected batch size: dividing by the batch that was drawn, as the
    # default does, would make the noise depend on the data.
    model.compile(
        tf.keras.optimizers.SGD(learning_rate / batches.batch_size, momentum),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
    )
    inputs = tf.TensorSpec((None, *x.shape[1:]), tf.float32), tf.TensorSpec((None,), tf.int32)
    step = tf.function(lambda bx, by: model.train_step((bx, by)), input_signature=inputs, autograph=False)
    for chosen in batches:
        step(x[chosen], y[chosen].astype(np.int32))
    return model


def _check_training(x, y, batches, classes, clip_norm, noise_multiplier) -> None:
    if len(x) != len(y) or len(x) != batches.records:
        raise ValueError(
            f"{len(x)} inputs, {len(y)} labels and batches over {batches.records} records: make them equal"
        )
    if not np.isfinite(x).all():
        raise ValueError("the inputs hold NaN or infinity; remove or impute those records")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"labels run from {y.min()} to {y.max()}, the network has classes 0 to {classes - 1}"
        )
    if clip_norm is not None and not 0 < clip_norm < np.inf:
        raise ValueError(f"clip_norm must be a positive number, got {clip_norm}")
    if not 0 <= noise_multiplier < np.inf:
        raise ValueError(f"noise_multiplier must be zero or a positive number, got {noise_multiplier}")
    if noise_multiplier and clip_norm is None:
        raise ValueError("noise without clipping protects nothing: give clip_norm too")


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
