"""DP-SGD over Poisson batches: clip, sum, add noise, divide by the expected batch; interrupted runs go on where they were."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from pprml._files import write_whole
from pprml.accounting import PrivacyGuarantee
from pprml.dp_sgd._gradients import Loss, clipped_gradient_sum, explain_slow, softmax_loss
from pprml.dp_sgd._sampling import PoissonBatches

#: Where a layer has no one-pass rule the gradients of so many records, and no more, are held at once.
SLOW_BATCH = 256


class Trained(NamedTuple):
    """A model, and what is promised about its training: None without noise, or where no delta was named."""

    model: tf.keras.Model
    guarantee: PrivacyGuarantee | None


def train(
    network: tf.keras.Model | Sequence[tf.keras.layers.Layer],
    x: np.ndarray,
    y: np.ndarray,
    batches: PoissonBatches,
    learning_rate: float,
    clip_norm: float | None = None,
    noise_multiplier: float = 0.0,
    momentum: float = 0.9,
    *,
    delta: float | None = None,
    loss: Loss = softmax_loss,
    max_batch: int = 8192,
    checkpoint: Path | str | None = None,
    every: int = 10,
    progress: bool = False,
    observe: Callable[[int, np.ndarray], None] | None = None,
) -> Trained:
    """Train a model by (DP-)SGD.

    Parameters
    ----------
    network : keras.Model or list of layers
        Ends in one logit a class, unless `loss` says otherwise.
    x : ndarray, shape (records, ...)
        Inputs.
    y : ndarray of int, shape (records,)
        Labels from 0 to the number of classes less one.
    batches : PoissonBatches
        The draws and the source of the noise; the update is divided by their expected size.
    learning_rate, momentum : float
        Of stochastic gradient descent.
    clip_norm : float, optional
        L2 norm to which each record's gradient is clipped; None trains without privacy.
    noise_multiplier : float
        Standard deviation of the noise on the clipped sum, in units of `clip_norm`.
    delta : float, optional
        Of the guarantee that is returned.
    loss : callable
        ``loss(y, output)``, one number a record.
    max_batch : int
        Larger batches are summed in parts of so many records, which bounds the memory and changes no result beyond rounding.
    checkpoint : path, optional
        File to which the state is written every `every` steps and at the end, whole or not at all. Where it holds a state of this
        very run, training goes on from there. It holds weights and velocities: keep it as secret as the model before its release.
    every : int
        Steps between checkpoints.
    progress : bool
        Show a progress bar.
    observe : callable, optional
        Called as ``observe(step, update)`` with each step's noisy, averaged gradient, flat: all that the guarantee covers.

    Returns
    -------
    Trained
        The model (the one passed in, trained) and its guarantee.

    Raises
    ------
    ValueError
        Inputs, labels and batches do not fit each other; a parameter is out of range or not a number; noise without clipping; a
        layer that normalises over the batch; or a checkpoint of another run.
    FloatingPointError
        A gradient overflowed. The model is then not to be published: it would tell that such a record is there.

    Warns
    -----
    SlowGradientsWarning
        A layer has no one-pass rule.

    References
    ----------
    Abadi et al. 2016, arXiv 1607.00133.
    """
    model = network if isinstance(network, tf.keras.Model) else tf.keras.Sequential(list(network))
    _check_training(x, y, batches, learning_rate, momentum, clip_norm, noise_multiplier, max_batch, every)
    if loss is softmax_loss:
        _check_labels(y, model.output_shape[-1])
    guarantee = batches.guarantee(noise_multiplier, delta) if noise_multiplier and delta is not None else None
    sum_gradients, step_forward = make_steps(
        model, loss, clip_norm, learning_rate, momentum, batches.batch_size
    )
    state = _State(model, checkpoint, every)
    if checkpoint is not None:
        how = [learning_rate, momentum, clip_norm, noise_multiplier, _describe_loss(loss)]
        state.resume(_fingerprint(model, x, y, batches, how))
    size = state.velocity.shape[0]
    if clip_norm is not None and explain_slow(model):
        max_batch = min(max_batch, SLOW_BATCH)
    for step in tqdm(
        range(state.step, batches.steps), initial=state.step, total=batches.steps, disable=not progress
    ):
        chosen = batches.draw(step)
        # Sensitivity is clip_norm: each record's gradient is clipped in the sums that the noise is added to.
        rest = (
            batches.draw_noise(step, size, noise_multiplier * clip_norm)
            if noise_multiplier
            else np.zeros(size, np.float32)
        )
        starts = range(0, len(chosen), max_batch)
        for start in starts[:-1]:
            part = chosen[start : start + max_batch]
            rest = rest + sum_gradients(x[part], y[part])
        last = chosen[starts[-1] :] if starts else chosen
        mean = step_forward(x[last], y[last], rest, state.velocity).numpy()
        if not np.isfinite(mean).all():
            raise FloatingPointError(
                f"step {step}: a gradient is not finite; scale the inputs or lower the learning rate"
            )
        if observe:
            observe(step, mean)
        state.advance(last=step + 1 == batches.steps)
    return Trained(model, guarantee)


def make_steps(
    model: tf.keras.Model,
    loss: Loss,
    clip_norm: float | None,
    learning_rate: float,
    momentum: float,
    batch_size: int,
) -> tuple[Callable, Callable]:
    """Return the sum of gradients and a step of descent, compiled.

    Returns
    -------
    sum_gradients : callable
        ``sum_gradients(x, y)``: the sum of a batch's gradients, clipped where `clip_norm` is given, as one flat tensor.
    step : callable
        ``step(x, y, rest, velocity)``: adds `rest` (noise, and the sums of earlier parts of the batch) to the sum of gradients, divides by
        the expected `batch_size`, takes one step with momentum, which changes the variable `velocity` and the model, and returns the mean.
    """
    variables = model.trainable_variables

    def add_up(x, y):
        if clip_norm is None:
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(loss(y, model(x, training=True)))
            gradients = [tf.convert_to_tensor(g) for g in tape.gradient(total, variables)]
        else:
            gradients = clipped_gradient_sum(model, x, y, loss, clip_norm).gradients
        return tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)

    def descend(total, velocity):
        # Dividing by the batch that was drawn would make the noise depend on the data.
        mean = total / batch_size
        velocity.assign(momentum * velocity - learning_rate * mean)
        parts = tf.split(velocity, [int(np.prod(variable.shape)) for variable in variables])
        for variable, part in zip(variables, parts, strict=True):
            variable.assign_add(tf.reshape(part, variable.shape))
        return mean

    compiled = dict(reduce_retracing=True, autograph=False)
    some = tf.function(lambda x, y, rest, velocity: descend(add_up(x, y) + rest, velocity), **compiled)
    nobody = tf.function(descend, **compiled)

    def step(x, y, rest, velocity):
        # Poisson sampling may draw nobody, and not all of TensorFlow's kernels take a batch of none.
        return some(x, y, rest, velocity) if len(x) else nobody(rest, velocity)

    return tf.function(add_up, **compiled), step


class _State:
    """Weights, velocity and step of a run, and their file."""

    def __init__(self, model: tf.keras.Model, path: Path | str | None, every: int) -> None:
        self.model, self.path, self.every, self.step = model, path and Path(path), every, 0
        self.velocity = tf.Variable(tf.zeros(sum(int(np.prod(v.shape)) for v in model.trainable_variables)))

    def resume(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        if not self.path.exists():
            return
        with np.load(self.path, allow_pickle=False) as saved:
            if str(saved["fingerprint"]) != fingerprint:
                raise ValueError(
                    f"{self.path.name} is a checkpoint of another run (other data, draws, settings or starting weights): name another "
                    "file, or delete it"
                )
            self.step = int(saved["step"])
            self.velocity.assign(saved["velocity"])
            self.model.set_weights([saved[f"weight_{i}"] for i in range(len(self.model.weights))])

    def advance(self, last: bool) -> None:
        self.step += 1
        if self.path is None or not (last or self.step % self.every == 0):
            return
        weights = {f"weight_{i}": weight for i, weight in enumerate(self.model.get_weights())}
        file = io.BytesIO()
        np.savez(
            file, step=self.step, velocity=self.velocity.numpy(), fingerprint=self.fingerprint, **weights
        )
        write_whole(self.path, file.getvalue())


def _describe_loss(loss: Loss) -> list[str]:
    """Return words that tell one loss from another, and are the same in every process."""
    code = getattr(loss, "__code__", None)
    if code is None:
        return [type(loss).__name__, repr(loss.get_config() if hasattr(loss, "get_config") else "")]
    constants = [repr(one) for one in code.co_consts if not hasattr(one, "co_code")]
    return [loss.__qualname__, code.co_code.hex(), *code.co_names, *constants]


def _fingerprint(model, x, y, batches, how: list) -> str:
    """Return a hash of everything that the outcome depends on."""
    drawn = [type(batches).__name__, batches.records, batches.batch_size, batches.steps, batches.seed]
    # Keras numbers the layers of a process: the second "dense" is "dense_1", though the model is the same.
    shape = re.sub(r'_\d+(?=["_])', "", model.to_json())
    digest = hashlib.sha256(json.dumps([shape, drawn, how], default=lambda number: number.item()).encode())
    for array in (x, y, *model.get_weights()):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _check_training(
    x, y, batches, learning_rate, momentum, clip_norm, noise_multiplier, max_batch, every
) -> None:
    if len(x) != len(y) or len(x) != batches.records:
        raise ValueError(
            f"{len(x)} inputs, {len(y)} labels and batches over {batches.records} records: make them equal"
        )
    if not np.isfinite(x).all():
        raise ValueError("the inputs hold NaN or infinity; remove or impute those records")
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate must be a positive number, got {learning_rate}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be from 0 to below 1, got {momentum}")
    if clip_norm is not None and not 0 < clip_norm < np.inf:
        raise ValueError(f"clip_norm must be a positive number, got {clip_norm}")
    if not 0 <= noise_multiplier < np.inf:
        raise ValueError(f"noise_multiplier must be zero or a positive number, got {noise_multiplier}")
    if noise_multiplier and clip_norm is None:
        raise ValueError("noise without clipping protects nothing: give clip_norm too")
    if max_batch < 1 or every < 1:
        raise ValueError(f"max_batch and every must be 1 or more, got {max_batch} and {every}")


def _check_labels(y: np.ndarray, classes: int) -> None:
    if y.dtype.kind not in "iu":
        raise ValueError(f"labels must be whole numbers, got {y.dtype}")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"labels run from {y.min()} to {y.max()}, the network has classes 0 to {classes - 1}"
        )
