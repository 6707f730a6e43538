"""The gradient of each record's convolution kernel, gathered fast on a CPU."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

#: From so many channels on, gathering the patches under the kernel pixel by pixel is fastest.
_WIDE = 8


def multiply_patches(
    inputs: tf.Tensor, gradient: tf.Tensor, layer: tf.keras.layers.Conv2D
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Return every record's kernel gradient, in an order of its own, and a function that puts one such kernel in Keras's order.

    A convolution is a dense layer on patches: a record's kernel gradient is the product of its patches, transposed, and the gradient of
    the layer's output, shape (batch, height, width, outputs). `tf.image.extract_patches` makes the patches several times slower.
    """
    return (_multiply_pixels if inputs.shape[-1] >= _WIDE else _multiply_phases)(inputs, gradient, layer)


def _multiply_pixels(inputs, gradient, layer):
    (height, width), (down, right), channels = layer.kernel_size, layer.strides, inputs.shape[-1]
    # Neighbouring pixels that a kernel always covers together are gathered together.
    unit = right if width % right == 0 else 1
    out_rows, out_columns = gradient.shape[1:3]
    padded = _pad(inputs, layer, [(out_rows - 1) * down + height, (out_columns - 1) * right + width])
    units = padded.shape[2] // unit
    rows = down * np.arange(out_rows)[:, None] + np.arange(height)
    columns = right // unit * np.arange(out_columns)[:, None] + np.arange(width // unit)
    picks = (rows[:, None, :, None] * units + columns[None, :, None, :]).reshape(out_rows * out_columns, -1)
    flat = tf.reshape(padded, [-1, padded.shape[1] * units, unit * channels])
    patches = tf.reshape(
        tf.gather(flat, picks.astype(np.int32), axis=1), [-1, len(picks), height * width * channels]
    )
    kernels = tf.matmul(_by_position(gradient), patches, transpose_a=True)
    return kernels, lambda one: tf.reshape(tf.transpose(one), [height, width, channels, -1])


def _multiply_phases(inputs, gradient, layer):
    """Part the rows and columns by their remainder modulo the stride: a shift of the kernel is then a slice."""
    channels, (height, width), (down, right) = inputs.shape[-1], gradient.shape[1:3], layer.strides
    shifts, steps = (-(-k // s) for k, s in zip(layer.kernel_size, layer.strides, strict=True))
    rows, columns = height - 1 + shifts, width - 1 + steps
    padded = tf.reshape(
        _pad(inputs, layer, [rows * down, columns * right]), [-1, rows, down, columns, right, channels]
    )
    phases = tf.transpose(padded, [0, 2, 4, 5, 1, 3])
    entries = steps * down * right * channels
    slices = tf.stack([phases[..., step : step + width] for step in range(steps)], axis=1)
    slices = tf.reshape(slices, [-1, entries, rows, width])
    by_position = _by_position(gradient)
    products = [
        tf.matmul(
            tf.reshape(slices[:, :, shift : shift + height], [-1, entries, height * width]), by_position
        )
        for shift in range(shifts)
    ]

    def reorder(one):
        # (row shift, column step, row phase, column phase, channel, output): a kernel's row is a shift and a phase.
        parts = tf.reshape(one, [shifts, steps, down, right, channels, -1])
        whole = tf.reshape(
            tf.transpose(parts, [0, 2, 1, 3, 4, 5]), [shifts * down, steps * right, channels, -1]
        )
        return whole[: layer.kernel_size[0], : layer.kernel_size[1]]

    # A kernel that the stride does not divide has shifts past its edge: they are no part of it.
    inside = np.zeros([shifts * down, steps * right], np.float32)
    inside[: layer.kernel_size[0], : layer.kernel_size[1]] = 1
    kernels = tf.stack(products, axis=1)
    if not inside.all():
        inside = inside.reshape(shifts, down, steps, right).transpose(0, 2, 1, 3).reshape(shifts, -1, 1, 1)
        inside = np.broadcast_to(inside, [shifts, inside.shape[1], channels, 1]).reshape(shifts, entries, 1)
        kernels *= inside
    return kernels, reorder


def _by_position(gradient: tf.Tensor) -> tf.Tensor:
    return tf.reshape(gradient, [-1, gradient.shape[1] * gradient.shape[2], gradient.shape[3]])


def _pad(inputs: tf.Tensor, layer: tf.keras.layers.Conv2D, sizes: list[int]) -> tf.Tensor:
    """Pad before the first row and column as the layer does, and behind with zeros, or by cutting, to `sizes` rows and columns."""
    for axis, size, kernel, stride in zip((1, 2), sizes, layer.kernel_size, layer.strides, strict=True):
        have = inputs.shape[axis]
        before = (
            max((-(-have // stride) - 1) * stride + kernel - have, 0) // 2 if layer.padding == "same" else 0
        )
        zeros = tf.zeros_like(inputs[:, :1] if axis == 1 else inputs[:, :, :1])
        # Several times faster than tf.pad.
        inputs = tf.concat([zeros] * before + [inputs] + [zeros] * max(size - before - have, 0), axis)
        inputs = inputs[:, :size] if axis == 1 else inputs[:, :, :size]
    return inputs
