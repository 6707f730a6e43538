"""The sum of clipped per-example gradients of a Keras model, in one forward and one backward pass.

Backpropagation already computes, for every record, the gradient of each layer's output before its activation. A record's gradient
with respect to the layer's weights is a product of that and of the layer's input: its norm, and the weighted sum over records, follow
without a second pass.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_privacy.privacy.fast_gradient_clipping import gradient_clipping_utils as graphs

from pprml.dp_sgd._patches import multiply_patches

layers = tf.keras.layers
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
#: From the gradient of a layer's output: squared norms of the records' gradients, and their sum under given weights.
Finish = Callable[[tf.Tensor], tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]]


class SlowGradientsWarning(UserWarning):
    """The model has a layer without a one-pass rule: gradients are computed one record at a time."""


class ClippedSum(NamedTuple):
    """The sum over records of clipped gradients, one tensor a trainable variable, and each record's norm before clipping."""

    gradients: list[tf.Tensor]
    norms: tf.Tensor


def softmax_loss(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the cross-entropy of each record: whole labels (batch,), one logit a class (batch, classes)."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)


def clipped_gradient_sum(
    model: tf.keras.Model, x: tf.Tensor, y: tf.Tensor, loss: Loss, clip_norm: float
) -> ClippedSum:
    """Sum per-example gradients, each clipped to an L2 norm over all trainable variables together.

    Parameters
    ----------
    model : keras.Model
        Sequential or functional. Dense, Conv2D, Embedding, LayerNormalization, GroupNormalization and the usual layers without weights
        go in one pass; with anything else the slower, equally exact way is taken and a `SlowGradientsWarning` says why.
    x : Tensor, shape (batch, ...)
        Inputs of at least one record.
    y : Tensor, shape (batch, ...)
        Labels.
    loss : callable
        ``loss(y, output)``, one number a record, shape (batch,).
    clip_norm : float
        Largest L2 norm of a record's gradient.

    Returns
    -------
    ClippedSum
        Its sensitivity to adding or removing one record is `clip_norm`.

    Raises
    ------
    ValueError
        The model normalises over the batch or adds losses of its own (no per-example gradient exists), `clip_norm` is no positive number,
        or `loss` does not return one number a record.

    References
    ----------
    Goodfellow 2015, arXiv 1510.01799 (norms from one pass); Rochette, Manoel and Tramel 2019, arXiv 1912.06015 (convolutions).
    """
    if not 0 < clip_norm < np.inf:
        raise ValueError(f"clip_norm must be a positive number, got {clip_norm}")
    _refuse_shared_records(model)
    reason = explain_slow(model)
    if reason:
        warnings.warn(
            f"{reason}: gradients are computed one record at a time", SlowGradientsWarning, stacklevel=2
        )
        return _sum_by_record(model, x, y, loss, clip_norm)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        output, calls = graphs.model_forward_pass(model, x, lambda *call: _run_layer(tape, *call))
        total = _add_losses(loss, y, output)
    calls = [call for call in calls if call is not None]
    at_outputs = tape.gradient(total, [before for _, before, _ in calls])
    finished = [finish(gradient) for (_, _, finish), gradient in zip(calls, at_outputs, strict=True)]
    norms = tf.sqrt(tf.add_n([squared for squared, _ in finished]))
    weights = _clip_weights(norms, clip_norm)
    by_variable = {}
    for (layer, _, _), (_, weigh) in zip(calls, finished, strict=True):
        by_variable |= zip(map(id, layer.trainable_variables), weigh(weights), strict=True)
    return ClippedSum([by_variable[id(variable)] for variable in model.trainable_variables], norms)


def explain_slow(model: tf.keras.Model) -> str | None:
    """Return why a model's gradients cannot be had in one pass, or None where they can."""
    if not graphs.has_internal_compute_graph(model):
        return f"{type(model).__name__} is no Sequential or functional model"
    used = [layer for layer in _list_calls(model) if layer.trainable_variables]
    for layer in _list_calls(model):
        if not layer.trainable_variables and type(layer) not in _APART:
            return f"layer {layer.name!r} ({type(layer).__name__}) is not known to keep records apart"
    for layer in used:
        rule = _RULES.get(type(layer))
        if rule is None or not rule.covers(layer):
            return f"layer {layer.name!r} ({type(layer).__name__}) has no one-pass rule"
    variables = Counter(id(variable) for layer in used for variable in layer.trainable_variables)
    if set(variables) != {id(variable) for variable in model.trainable_variables}:
        return "the model has weights outside its layers"
    if max(variables.values(), default=1) > 1:
        return "a layer or its weights are used more than once"
    return None


def count_numbers(model: tf.keras.Model) -> int:
    """Return how many numbers one record is, as an input and at each layer's output; 0 where the model does not tell."""
    if not graphs.has_internal_compute_graph(model):
        return 0
    outputs = tf.nest.flatten([node.outputs for node in _list_nodes(model)])
    sizes = [output.shape[1:].num_elements() for output in outputs]
    return 0 if None in sizes else sum(sizes)


def _list_calls(model: tf.keras.Model) -> Iterator[tf.keras.layers.Layer]:
    return (node.layer for node in _list_nodes(model) if not node.is_input)


def _list_nodes(model: tf.keras.Model) -> Iterator:
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            inner = graphs.has_internal_compute_graph(node.layer)
            yield from _list_nodes(node.layer) if inner else [node]


def _refuse_shared_records(model: tf.keras.Model) -> None:
    for layer in model._flatten_layers():
        # By name: Keras's synchronised one is no subclass.
        if "BatchNormalization" in type(layer).__name__:
            raise ValueError(
                f"layer {layer.name!r} normalises over the batch: one record's output depends on the others', so clipping a record's "
                "gradient does not bound its influence; use LayerNormalization or GroupNormalization"
            )
    if model.losses:
        raise ValueError(
            "the model adds losses of its own (a regularizer): no record's gradient holds them; remove them"
        )


def _add_losses(loss: Loss, y: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    each = loss(y, output)
    if each.shape.rank != 1:
        # A mean over the batch would shrink every gradient by the batch that was drawn, before it is clipped.
        raise ValueError(
            f"loss must return one number a record, shape (batch,), got shape {each.shape}: a Keras loss needs reduction='none'"
        )
    return tf.reduce_sum(each)


def _clip_weights(norms: tf.Tensor, clip_norm: float) -> tf.Tensor:
    return tf.minimum(1.0, clip_norm / tf.maximum(norms, 1e-12))


def _sum_by_record(model, x, y, loss, clip_norm) -> ClippedSum:
    def one(record):
        inputs, label = record
        with tf.GradientTape() as tape:
            value = _add_losses(loss, label[None], model(inputs[None], training=True))
        gradients = tape.gradient(value, model.trainable_variables, unconnected_gradients="zero")
        return [tf.convert_to_tensor(gradient) for gradient in gradients]  # an embedding's is sparse

    each = tf.vectorized_map(one, (tf.convert_to_tensor(x), tf.convert_to_tensor(y)))
    squared = [tf.reduce_sum(tf.square(g), axis=list(range(1, len(g.shape)))) for g in each]
    norms = tf.sqrt(tf.add_n(squared))
    weights = _clip_weights(norms, clip_norm)
    return ClippedSum([tf.tensordot(weights, gradient, 1) for gradient in each], norms)


def _run_layer(tape: tf.GradientTape, layer: tf.keras.layers.Layer, args, kwargs):
    """Return a layer's output and, where it has weights, (layer, output before activation, rule for its gradient)."""
    if not layer.trainable_variables:
        training = {"training": True} if getattr(layer, "_expects_training_arg", False) else {}
        return layer(*args, **kwargs | training), None
    (inputs,) = args
    before, finish = _RULES[type(layer)].run(layer, inputs)
    tape.watch(before)
    activation = getattr(layer, "activation", None)
    return activation(before) if activation else before, (layer, before, finish)


def _sum_squares(tensor: tf.Tensor) -> tf.Tensor:
    """Sum of squares over all axes but the first."""
    flat = tf.reshape(tensor, [-1, int(np.prod(tensor.shape[1:]))])
    return tf.reduce_sum(tf.square(flat), axis=1)


def _finish_kernels(layer, kernels: tf.Tensor, gradient: tf.Tensor, reorder: Callable):
    """Finish a layer from its records' kernel gradients and the gradient of its output (batch, ..., outputs)."""
    squared = _sum_squares(kernels)
    if layer.use_bias:
        biases = tf.reduce_sum(gradient, axis=list(range(1, len(gradient.shape) - 1)))
        squared += _sum_squares(biases)

    def weigh(weights):
        shape = kernels.shape[1:]
        total = tf.matmul(weights[None], tf.reshape(kernels, [-1, int(np.prod(shape))]))
        sums = [reorder(tf.reshape(total, shape))]
        return [*sums, tf.linalg.matvec(biases, weights, transpose_a=True)] if layer.use_bias else sums

    return squared, weigh


def _finish_few_positions(layer, inputs: tf.Tensor, gradient: tf.Tensor):
    """Finish a dense layer from its inputs (batch, positions, features) without writing any record's kernel gradient out."""
    squared = tf.reduce_sum(_multiply_pairs(inputs) * _multiply_pairs(gradient), axis=[1, 2])
    squared = tf.cast(tf.maximum(squared, 0.0), gradient.dtype)
    biases = tf.reduce_sum(gradient, axis=1)
    if layer.use_bias:
        squared += _sum_squares(biases)

    def weigh(weights):
        weighted = weights[:, None, None] * gradient
        rows, errors = (tf.reshape(part, [-1, part.shape[-1]]) for part in (inputs, weighted))
        sums = [tf.matmul(rows, errors, transpose_a=True)]
        return [*sums, tf.linalg.matvec(biases, weights, transpose_a=True)] if layer.use_bias else sums

    return squared, weigh


def _multiply_pairs(rows: tf.Tensor) -> tf.Tensor:
    """Products of all pairs of a record's rows, (batch, rows, rows).

    In double precision: where large parts cancel, single precision could call a long gradient short, and it would not be clipped.
    """
    rows = tf.cast(rows, tf.float64)
    return tf.matmul(rows, rows, transpose_b=True)


def _run_dense(layer, inputs: tf.Tensor) -> tuple[tf.Tensor, Finish]:
    before = tf.tensordot(inputs, layer.kernel, 1)
    before = before + layer.bias if layer.use_bias else before

    def finish(gradient):
        if len(inputs.shape) > 2:
            by_position = tf.reshape(inputs, [tf.shape(inputs)[0], -1, inputs.shape[-1]])
            gradient = tf.reshape(gradient, [tf.shape(inputs)[0], -1, gradient.shape[-1]])
            positions = inputs.shape[1:-1].num_elements()
            if positions and positions**2 < inputs.shape[-1] * layer.units:
                return _finish_few_positions(layer, by_position, gradient)
            kernels = tf.matmul(by_position, gradient, transpose_a=True)
            return _finish_kernels(layer, kernels, gradient, tf.identity)
        # The gradient is an outer product: its norm is the product of the two norms.
        squared = _sum_squares(gradient) * (_sum_squares(inputs) + float(layer.use_bias))

        def weigh(weights):
            weighted = weights[:, None] * gradient
            sums = [tf.matmul(inputs, weighted, transpose_a=True)]
            return [*sums, tf.reduce_sum(weighted, axis=0)] if layer.use_bias else sums

        return squared, weigh

    return before, finish


def _run_conv2d(layer, inputs: tf.Tensor) -> tuple[tf.Tensor, Finish]:
    before = tf.nn.conv2d(inputs, layer.kernel, layer.strides, layer.padding.upper())
    before = before + layer.bias if layer.use_bias else before

    def finish(gradient):
        # Patches are large: without this TensorFlow gathers every layer's on the way forward and holds them all.
        with tf.control_dependencies([gradient]):
            late = tf.identity(inputs)
        kernels, reorder = multiply_patches(late, gradient, layer)
        return _finish_kernels(layer, kernels, gradient, reorder)

    return before, finish


def _run_embedding(layer, inputs: tf.Tensor) -> tuple[tf.Tensor, Finish]:
    tokens = tf.cast(inputs, tf.int32)
    before = tf.gather(layer.embeddings, tokens)

    def finish(gradient):
        width = gradient.shape[-1]
        flat = tf.reshape(tokens, [tf.shape(tokens)[0], -1])
        gradient = tf.reshape(gradient, [tf.shape(tokens)[0], -1, width])
        # A token that appears twice in a record gathers both gradients before the norm is taken.
        same = tf.cast(flat[:, :, None] == flat[:, None, :], tf.float64)
        squared = tf.reduce_sum(same * _multiply_pairs(gradient), axis=[1, 2])
        squared = tf.cast(tf.maximum(squared, 0.0), gradient.dtype)

        def weigh(weights):
            weighted = tf.reshape(weights[:, None, None] * gradient, [-1, width])
            return [tf.math.unsorted_segment_sum(weighted, tf.reshape(flat, [-1]), layer.input_dim)]

        return squared, weigh

    return before, finish


def _run_normalization(layer, inputs: tf.Tensor) -> tuple[tf.Tensor, Finish]:
    plain = type(layer).from_config({**layer.get_config(), "scale": False, "center": False})
    normalized = plain(inputs)
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    axes = [axis % len(inputs.shape) for axis in axes]
    shape = [inputs.shape[axis] if axis in axes else 1 for axis in range(len(inputs.shape))]
    others = [axis for axis in range(1, len(inputs.shape)) if axis not in axes]
    before = normalized * tf.reshape(layer.gamma, shape) if layer.scale else normalized
    before = before + tf.reshape(layer.beta, shape) if layer.center else before

    def finish(gradient):
        parts = [gradient * normalized] if layer.scale else []
        parts += [gradient] if layer.center else []
        each = [tf.reduce_sum(part, axis=others) for part in parts]

        def weigh(weights):
            return [tf.tensordot(weights, part, 1) for part in each]

        return tf.add_n([_sum_squares(part) for part in each]), weigh

    return before, finish


#: Layers without weights whose output for a record depends on that record alone.
_APART = {
    *(layers.Flatten, layers.Reshape, layers.Permute, layers.Rescaling, layers.Dropout, layers.Identity),
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Softmax),
    *(layers.MaxPool1D, layers.MaxPool2D, layers.AveragePooling1D, layers.AveragePooling2D),
    *(layers.GlobalMaxPool1D, layers.GlobalMaxPool2D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.ZeroPadding2D, layers.Cropping2D, layers.UpSampling2D),
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Concatenate),
}


class _Rule(NamedTuple):
    run: Callable
    covers: Callable[[tf.keras.layers.Layer], bool] = lambda layer: True


_RULES = {
    layers.Dense: _Rule(_run_dense),
    layers.Conv2D: _Rule(
        _run_conv2d,
        lambda layer: (
            layer.groups == 1 and layer.dilation_rate == (1, 1) and layer.data_format == "channels_last"
        ),
    ),
    # A masked embedding hands its mask to later layers, which this pass does not.
    layers.Embedding: _Rule(_run_embedding, lambda layer: not layer.mask_zero),
    layers.LayerNormalization: _Rule(_run_normalization),
    layers.GroupNormalization: _Rule(_run_normalization),
}
