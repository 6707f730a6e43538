"""Models as TFF trains them: weights go in, nothing is kept inside."""

import collections
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from pprml.partition import Weights

Model = tff.learning.models.FunctionalModel


def build_mlp(weights: Weights) -> Model:
    """Make a TFF model with weights of these shapes: ReLU between layers, softmax cross-entropy as loss.

    Its training metrics are the mean loss, the accuracy and the number of records, each as the weights stood when the
    batch arrived.
    """

    @tf.function
    def predict(model_weights, x, training):
        layers = model_weights[0]
        for k in range(0, len(layers), 2):
            x = tf.matmul(tf.nn.relu(x) if k else x, layers[k]) + layers[k + 1]
        return x

    specs = tf.TensorSpec((None, len(weights[0])), tf.float32), tf.TensorSpec((None,), tf.int32)
    names = dict(predict_on_batch_fn=predict, loss_fn=_compute_loss, input_spec=specs)
    return Model(initial_weights=(tuple(weights), ()), metrics_fns=_METRICS, **names)


def from_keras(keras_model: tf.keras.Model) -> Model:
    """Make a TFF model of a Keras classifier with one input that returns logits; labels are int32 class numbers.

    Its weights, in Keras's order, are ``model.initial_weights[0]``. Training metrics are the loss and the accuracy. TFF's
    tracing leaves Keras in graph mode and earlier Keras models unusable: do what you need with Keras itself before.

    Raises
    ------
    ValueError
        Batch normalisation or another weight that is not trained (a mean of such weights is not what any client had), a
        softmax at the end, or a model that TFF cannot rebuild.
    """
    if any(isinstance(part, tf.keras.layers.BatchNormalization) for part in keras_model.submodules):
        raise ValueError(
            "the model has batch normalization: each client's batches have a mean and deviation of their own, so the "
            "averaged running ones fit no client. Use tf.keras.layers.GroupNormalization"
        )
    if keras_model.non_trainable_weights:
        raise ValueError("the model has weights that are not trained: set trainable=True or leave them out")
    last = keras_model
    while isinstance(last, tf.keras.Model):
        last = last.layers[-1]
    softmax = tf.keras.activations.softmax
    if isinstance(last, tf.keras.layers.Softmax) or getattr(last, "activation", None) is softmax:
        raise ValueError("the model ends in a softmax, and the loss takes logits: leave the softmax out")
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    spec = tf.TensorSpec(keras_model.input_shape, tf.float32), tf.TensorSpec((None,), tf.int32)
    build = tff.learning.models.functional_model_from_keras
    try:
        return build(
            keras_model, loss, spec, collections.OrderedDict(loss=_KerasLoss, accuracy=_KerasAccuracy)
        )
    except tff.learning.models.functional.KerasFunctionalModelError as error:
        raise ValueError(f"TFF cannot rebuild this model: {error}") from error


def as_input(x: tf.Tensor) -> tf.Tensor:
    """Turn grey levels, which rest as bytes, into numbers from 0 to 1; leave other types as they are."""
    return tf.cast(x, tf.float32) / 255.0 if x.dtype == tf.uint8 else x


def measure_accuracy(model: Model, weights: Weights, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of records whose label is the model's first choice."""
    predict = _build_predict(model, x.dtype.name)
    chunks = np.array_split(np.arange(len(x)), max(1, len(x) // 2000))
    return float(np.mean(np.concatenate([predict(x[rows], *weights) for rows in chunks]) == y))


def count_classes(model: Model) -> int | None:
    """Count the labels that a model tells apart, which are 0 and up; None where its labels are no class numbers."""
    x_spec, y_spec = model.input_spec
    if not y_spec.dtype.is_integer or y_spec.shape.rank != 1:
        return None
    with tf.Graph().as_default():  # shapes alone, nothing is computed
        x, weights = tf.nest.map_structure(
            lambda array: tf.compat.v1.placeholder(array.dtype, array.shape), (x_spec, model.initial_weights)
        )
        shape = model.predict_on_batch(weights, x, training=False).shape
    return shape[-1] if shape.rank == 2 else None


@functools.lru_cache(maxsize=8)
def _build_predict(model: Model, dtype: str) -> Callable[..., np.ndarray]:
    # In a graph of its own: TFF's form of a Keras model refuses to run outside one.
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(dtype, (None, *model.input_spec[0].shape[1:]))
        weights = [tf.compat.v1.placeholder(w.dtype, w.shape) for w in model.initial_weights[0]]
        logits = model.predict_on_batch((tuple(weights), ()), as_input(x), training=False)
        return tf.compat.v1.Session(graph=graph).make_callable(tf.argmax(logits, axis=1), [x, *weights])


def _compute_loss(output, label, sample_weight=None):
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=output))


def _start_metrics():
    return collections.OrderedDict(loss=tf.constant(0.0), correct=tf.constant(0.0), records=tf.constant(0.0))


@tf.function
def _update_metrics(state, labels, batch_output, sample_weight=None):
    first_choices = tf.argmax(batch_output.predictions, axis=1, output_type=labels.dtype)
    right = tf.equal(first_choices, labels)  # TFF traces in a graph where == asks for the same tensor
    size = tf.cast(tf.shape(labels)[0], tf.float32)
    return collections.OrderedDict(
        loss=state["loss"] + batch_output.loss * size,
        correct=state["correct"] + tf.reduce_sum(tf.cast(right, tf.float32)),
        records=state["records"] + size,
    )


def _finalize_metrics(state):
    means = {"loss": state["loss"] / state["records"], "accuracy": state["correct"] / state["records"]}
    return collections.OrderedDict(**means, records=state["records"])


_METRICS = tf.function(_start_metrics), _update_metrics, tf.function(_finalize_metrics)
_KerasLoss = functools.partial(tf.keras.metrics.SparseCategoricalCrossentropy, "loss", from_logits=True)
_KerasAccuracy = functools.partial(tf.keras.metrics.SparseCategoricalAccuracy, "accuracy")
