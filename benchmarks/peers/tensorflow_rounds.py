"""A bare loop in TensorFlow: two threads take the clients in turn, each client's pass is one compiled function."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import tensorflow as tf
from tensorflow_training import predict
from work import BATCH, RATE, main


def run(work, network, lap):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    steps = work.x.shape[1] // BATCH

    @tf.function
    def train(weights, x, y):
        weights, x = list(weights), tf.cast(x, tf.float32) / 255.0
        for step in tf.range(steps):
            rows = slice(step * BATCH, step * BATCH + BATCH)
            with tf.GradientTape() as tape:
                tape.watch(weights)
                logits = predict(network, weights, x[rows])
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y[rows], logits))
            weights = [w - RATE * g for w, g in zip(weights, tape.gradient(loss, weights), strict=True)]
        return weights

    weights = [tf.constant(w) for w in work.weights]
    with ThreadPoolExecutor(2) as threads:
        for clients in work.schedule:
            x, y = ([tf.constant(array[k]) for k in clients] for array in (work.x, work.y))
            trained = list(threads.map(partial(train, weights), x, y))
            weights = [tf.add_n(layer) / len(clients) for layer in zip(*trained, strict=True)]
            weights = [w.numpy() for w in weights]
            lap(weights)
    return [np.asarray(w) for w in weights]


if __name__ == "__main__":
    main(run)
