"""TensorFlow Privacy's fast gradient clipping, with a rule for convolutions added."""

import tensorflow as tf
from tensorflow_privacy.privacy.fast_gradient_clipping import layer_registry

from pprml.dp_sgd._patches import multiply_patches

layers = tf.keras.layers


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
        kernels, _ = multiply_patches(inputs, gradient, layer)
        norms = tf.reduce_sum(tf.square(kernels), axis=list(range(1, len(kernels.shape))))
        if layer.use_bias:
            norms += tf.reduce_sum(tf.square(tf.reduce_sum(gradient, axis=[1, 2])), axis=1)
        return norms

    return before_activation, layer.activation(before_activation), squared_norms
