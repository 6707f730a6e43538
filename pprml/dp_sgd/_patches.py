"""A convolution is a dense layer on patches: the patches, gathered fast on a CPU."""

import numpy as np
import tensorflow as tf

#: From so many channels on, one gather of whole pixels is faster than two of rows and columns.
_WIDE = 8


def list_positions(inputs: tf.Tensor, layer: tf.keras.layers.Conv2D) -> tuple[list, list]:
    """Return the paddings of a convolution's input, and for each output row and column the input rows and columns under it."""
    positions, paddings = [], [[0, 0]]
    for size, kernel, stride in zip(inputs.shape[1:3], layer.kernel_size, layer.strides, strict=True):
        out = -(-size // stride) if layer.padding == "same" else (size - kernel) // stride + 1
        pad = max((out - 1) * stride + kernel - size, 0) if layer.padding == "same" else 0
        paddings.append([pad // 2, pad - pad // 2])
        positions.append((stride * np.arange(out)[:, None] + np.arange(kernel)).astype(np.int32))
    return [*paddings, [0, 0]], positions


def gather_patches(inputs: tf.Tensor, layer: tf.keras.layers.Conv2D) -> tuple[tf.Tensor, bool]:
    """Return the patches under a kernel, (batch, positions, kernel entries), and whether kernel columns come before rows.

    `tf.image.extract_patches` does the same several times slower on a CPU.
    """
    paddings, (rows, columns) = list_positions(inputs, layer)
    if layer.padding == "same":
        inputs = tf.pad(inputs, paddings)
    _, height, width, channels = inputs.shape
    shape = [-1, len(rows) * len(columns), rows.shape[1] * columns.shape[1] * channels]
    if channels >= _WIDE:
        pixels = (rows[:, None, :, None] * width + columns[None, :, None, :]).reshape(
            len(rows) * len(columns), -1
        )
        flat = tf.reshape(inputs, [-1, height * width, channels])
        return tf.reshape(tf.gather(flat, pixels, axis=1), shape), False
    bands = tf.transpose(tf.gather(inputs, rows, axis=1), [0, 1, 3, 2, 4])
    return tf.reshape(tf.gather(bands, columns, axis=2), shape), True
