"""TensorFlow Federated as its tutorials use it: a Keras model, and clients as data sets of 32-bit numbers."""

import os
import signal
import subprocess

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_training import build_keras
from work import BATCH, RATE, main


def run(work, network, lap):
    spec = (tf.TensorSpec((None, 784), tf.float32), tf.TensorSpec((None,), tf.int32))

    def build_model():
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        keras = build_keras(network, work.weights)
        return tff.learning.models.from_keras_model(keras, loss=loss, input_spec=spec)

    def read_client(k):
        x = work.x[k].astype(np.float32) / 255
        return tf.data.Dataset.from_tensor_slices((x, work.y[k])).batch(BATCH)

    sgd = tff.learning.optimizers.build_sgdm(RATE)
    process = tff.learning.algorithms.build_weighted_fed_avg(build_model, client_optimizer_fn=sgd)
    first = tff.learning.models.ModelWeights(tuple(work.weights), ())
    state = process.set_model_weights(process.initialize(), first)
    for clients in work.schedule:
        state = process.next(state, [read_client(k) for k in clients]).state
        lap(process.get_model_weights(state).trainable)
    return process.get_model_weights(state).trainable


if __name__ == "__main__":
    try:
        main(run)
    finally:  # TFF's worker outlives its parent
        children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True)
        for line in children.stdout.decode().splitlines():
            pid, name = line.split()
            if name.startswith("worker_binary"):
                os.kill(int(pid), signal.SIGTERM)
