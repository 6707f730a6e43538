"""The two networks in TensorFlow, from a list of weights."""

import tensorflow as tf


def predict(network, w, x):
    """Return the logits of grey levels (records, 784) from 0 to 1."""
    if network == "MLP":
        return tf.nn.relu(x @ w[0] + w[1]) @ w[2] + w[3]
    x = tf.reshape(x, (-1, 28, 28, 1))
    x = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(x, w[0], 1, "VALID") + w[1]), 2, 2, "VALID")
    x = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(x, w[2], 1, "VALID") + w[3]), 2, 2, "VALID")
    return tf.nn.relu(tf.reshape(x, (-1, 800)) @ w[4] + w[5]) @ w[6] + w[7]


def build_keras(network, weights):
    """Return a Keras model with these weights."""
    layers, dense = tf.keras.layers, tf.keras.layers.Dense
    if network == "MLP":
        parts = [dense(128, activation="relu"), dense(10)]
    else:
        parts = [layers.Reshape((28, 28, 1))]
        for channels in (20, 50):
            parts += [layers.Conv2D(channels, 5, activation="relu"), layers.MaxPool2D(2)]
        parts += [layers.Flatten(), dense(500, activation="relu"), dense(10)]
    model = tf.keras.Sequential([tf.keras.Input((784,)), *parts])
    model.set_weights(weights)
    return model
