"""DP-SGD over Poisson batches: clip, sum, add noise, divide by the expected batch; interrupted runs go on where they were."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from pprml._files import write_whole
from pprml.accounting import PrivacyGuarantee
from pprml.dp_sgd._gradients import Loss, clipped_gradient_sum, count_numbers, explain_slow, softmax_loss
from pprml.dp_sgd._sampling import PoissonBatches

#: Where a layer has no one-pass rule the gradients of so many records, and no more, are held at once.
SLOW_BATCH = 256
#: A part of a batch is so many numbers, in the inputs and the layers' outputs together: about what a processor's cache holds. Where the
#: model does not tell how many a record makes, it is so many records.
PART_NUMBERS, PART = 2**20, 512
#: Steps are taken together up to so many records, and so many normals of noise.
STRETCH_RECORDS, STRETCH_NOISE = 2**13, 2**20


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
    max_batch: int | None = None,
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
    max_batch : int, optional
        Larger batches are summed in parts of so many records, which bounds the memory and changes no result beyond rounding. By default
        a part makes about a million numbers, inputs and outputs of layers together: that is also fastest.
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
    state = _State(model, checkpoint, every)
    if checkpoint is not None:
        how = [learning_rate, momentum, clip_norm, noise_multiplier, _describe_loss(loss)]
        state.resume(_fingerprint(model, x, y, batches, how))
    if clip_norm is not None and explain_slow(model):
        max_batch = min(max_batch or SLOW_BATCH, SLOW_BATCH)
    descend = make_descent(
        *(model, x, y, state.velocities, batches.batch_size, learning_rate, momentum, clip_norm),
        *(loss, max_batch, observe is not None),
    )
    # Sensitivity is clip_norm: each record's gradient is clipped in the sums that the noise is added to.
    scale = noise_multiplier * clip_norm if noise_multiplier else 0.0
    size = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    stretches = cut(state.step, batches, size, every if checkpoint is not None else batches.steps)
    with tqdm(initial=state.step, total=batches.steps, disable=not progress) as bar:
        for steps, draws in draw_ahead(batches, stretches, size, scale):
            means, bad = descend(*draws)
            if bad >= 0:
                raise FloatingPointError(
                    f"step {steps[bad]}: a gradient is not finite; scale the inputs or lower the learning rate"
                )
            for step, mean in zip(steps, means.numpy(), strict=False):
                observe(step, mean)
            state.advance(len(steps), last=steps[-1] + 1 == batches.steps)
            bar.update(len(steps))
    return Trained(model, guarantee)


class Draws(NamedTuple):
    """What chance decides in a stretch of steps: who joins, one step after the other, where each step ends in that, and the noise."""

    chosen: np.ndarray
    ends: np.ndarray
    noise: np.ndarray


def draw_ahead(
    batches: PoissonBatches, stretches: Iterable[range], size: int, scale: float
) -> Iterator[tuple[range, Draws]]:
    """Yield each stretch of steps and its draws; the next stretch is drawn while the caller works on this one.

    Parameters
    ----------
    batches : PoissonBatches
    stretches : iterable of range
        Steps that are taken together.
    size : int
        Number of weights.
    scale : float
        Standard deviation of the noise; 0 for none.
    """

    def draw(steps: range) -> tuple[range, Draws]:
        chosen = [batches.draw(step) for step in steps]
        noise = np.zeros((len(steps), size if scale else 1), np.float32)
        for row, step in zip(noise, steps if scale else (), strict=False):
            row[:] = batches.draw_noise(step, size, scale)
        return steps, Draws(np.concatenate(chosen), np.cumsum([0, *map(len, chosen)]), noise)

    with ThreadPoolExecutor(1) as drawer:
        coming = None
        for steps in stretches:
            ready, coming = coming, drawer.submit(draw, steps)
            if ready:
                yield ready.result()
        if coming:
            yield coming.result()


def make_descent(
    model: tf.keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    velocities: Sequence[tf.Variable],
    batch_size: int,
    learning_rate: float,
    momentum: float,
    clip_norm: float | None,
    loss: Loss = softmax_loss,
    max_batch: int | None = None,
    keep: bool = False,
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[tf.Tensor, tf.Tensor]]:
    """Compile a stretch of steps into one call: on small models the calls would cost more than the steps.

    Parameters
    ----------
    velocities : list of Variable
        One for each of the model's trainable variables; the steps change both.
    batch_size : int
        Expected; see `train` for the others.
    keep : bool
        Return each step's mean.

    Returns
    -------
    descend : callable
        ``descend(chosen, ends, noise)``, the fields of `Draws`. Each step sums the gradients of its records, clipped where `clip_norm` is
        given, adds its noise, divides by `batch_size` and descends with momentum. It returns the means, shape (steps, weights) or
        (0, weights), and the place of the step whose mean is not finite, after which it stopped, or -1.
    """
    numbers = count_numbers(model)
    max_batch = max_batch or (max(1, PART_NUMBERS // numbers) if numbers else PART)
    kinds = [tf.convert_to_tensor(part[:1]).dtype for part in (x, y)]
    variables = model.trainable_variables
    sizes = [int(np.prod(variable.shape)) for variable in variables]
    loop, move = partial(tf.while_loop, parallel_iterations=1), tf.raw_ops.ResourceApplyKerasMomentum

    def fetch(part):
        # The data stays where it is: TensorFlow would take a copy of all of it.
        found = tf.numpy_function(lambda rows: (x[rows], y[rows]), [part], kinds, stateful=False)
        for one, whole in zip(found, (x, y), strict=True):
            one.set_shape([None, *whole.shape[1:]])
        return found

    def add_up(x, y):
        if clip_norm is not None:
            return clipped_gradient_sum(model, x, y, loss, clip_norm).gradients
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(loss(y, model(x, training=True)))
        return [tf.convert_to_tensor(gradient) for gradient in tape.gradient(total, variables)]

    def descend(chosen, ends, noise):
        def step(number, bad, means):
            def add_part(start, totals):
                part = chosen[start : tf.minimum(start + max_batch, end)]
                sums = add_up(*fetch(part))
                return start + max_batch, [total + one for total, one in zip(totals, sums, strict=True)]

            noises = tf.split(tf.zeros(sum(sizes)) + noise[number], sizes)
            totals = [
                tf.reshape(one, variable.shape) for one, variable in zip(noises, variables, strict=True)
            ]
            # Larger batches are summed in parts. A batch of nobody has none, and not all of TensorFlow's kernels take one.
            end = ends[number + 1]
            _, totals = loop(lambda start, _: start < end, add_part, (ends[number], totals))
            for variable, velocity, total in zip(variables, velocities, totals, strict=True):
                # Dividing by the batch that was drawn would make the noise depend on the data.
                handles = dict(var=variable.handle, accum=velocity.handle)
                move(**handles, lr=learning_rate / batch_size, grad=total, momentum=momentum)
            flaw = tf.add_n([tf.reduce_sum(total) for total in totals])
            bad = tf.where(tf.math.is_finite(flaw), bad, number)
            return number + 1, bad, means.write(number, _flatten(totals) / batch_size) if keep else means

        steps = tf.shape(noise)[0]
        means = tf.TensorArray(tf.float32, steps if keep else 0, element_shape=[sum(sizes)])
        start = tf.constant(0), tf.constant(-1), means
        _, bad, means = loop(lambda number, bad, _: (number < steps) & (bad < 0), step, start)
        return means.stack(), bad

    vectors, matrix = [tf.TensorSpec([None], tf.int64)] * 2, tf.TensorSpec([None, None], tf.float32)
    return tf.function(descend, input_signature=[*vectors, matrix], autograph=False)


def _flatten(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)


def cut(first: int, batches: PoissonBatches, size: int, every: int) -> Iterator[range]:
    """Cut the steps that are left into stretches: each ends where a checkpoint is due, and is short work with little noise to hold."""
    length = max(1, min(STRETCH_RECORDS // batches.batch_size, STRETCH_NOISE // size))
    while first < batches.steps:
        last = min(first + length, (first // every + 1) * every, batches.steps)
        yield range(first, last)
        first = last


class _State:
    """Weights, velocity and step of a run, and their file."""

    def __init__(self, model: tf.keras.Model, path: Path | str | None, every: int) -> None:
        self.model, self.path, self.every, self.step = model, path and Path(path), every, 0
        self.velocities = [tf.Variable(tf.zeros(variable.shape)) for variable in model.trainable_variables]

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
            for i, velocity in enumerate(self.velocities):
                velocity.assign(saved[f"velocity_{i}"])
            self.model.set_weights([saved[f"weight_{i}"] for i in range(len(self.model.weights))])

    def advance(self, steps: int, last: bool) -> None:
        self.step += steps
        if self.path is None or not (last or self.step % self.every == 0):
            return
        arrays = {f"weight_{i}": weight for i, weight in enumerate(self.model.get_weights())}
        arrays |= {f"velocity_{i}": velocity.numpy() for i, velocity in enumerate(self.velocities)}
        file = io.BytesIO()
        np.savez(file, step=self.step, fingerprint=self.fingerprint, **arrays)
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
    if (max_batch is not None and max_batch < 1) or every < 1:
        raise ValueError(f"max_batch and every must be 1 or more, got {max_batch} and {every}")


def _check_labels(y: np.ndarray, classes: int) -> None:
    if y.dtype.kind not in "iu":
        raise ValueError(f"labels must be whole numbers, got {y.dtype}")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"labels run from {y.min()} to {y.max()}, the network has classes 0 to {classes - 1}"
        )
