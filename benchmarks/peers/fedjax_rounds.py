"""FedJAX: its federated averaging, and the backend that compiles a client's whole pass."""

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from fedjax.algorithms import fed_avg
from work import BATCH, RATE, main


def predict(network, w, x):
    if network == "MLP":
        return jax.nn.relu(x @ w[0] + w[1]) @ w[2] + w[3]
    x = x.reshape(-1, 28, 28, 1)
    for kernel, bias in ((w[0], w[1]), (w[2], w[3])):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.lax.reduce_window(
            jax.nn.relu(x + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
    return jax.nn.relu(x.reshape(-1, 800) @ w[4] + w[5]) @ w[6] + w[7]


def run(work, network, lap):
    def loss(weights, batch, rng):
        scores = jax.nn.log_softmax(predict(network, weights, batch["x"]))
        return -jnp.mean(jnp.take_along_axis(scores, batch["y"][:, None], axis=1))

    def read_client(k):
        x = work.x[k].astype(np.float32) / 255
        return fedjax.ClientDataset({"x": x, "y": np.asarray(work.y[k])})

    hparams = fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_epochs=1, skip_shuffle=True)
    sgd = fedjax.optimizers.sgd
    algorithm = fed_avg.federated_averaging(jax.grad(loss), sgd(RATE), sgd(1.0), hparams)
    state, rng = algorithm.init([jnp.asarray(w) for w in work.weights]), jax.random.PRNGKey(0)
    for clients in work.schedule:
        state, _ = algorithm.apply(state, [(int(k), read_client(k), rng) for k in clients])
        jax.block_until_ready(state.params)
        lap(state.params)
    return [np.asarray(w) for w in state.params]


if __name__ == "__main__":
    main(run)
