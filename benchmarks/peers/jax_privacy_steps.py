"""Steps of the two networks in JAX: plain, and private by jax-privacy."""

import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
import optax
from worker import serve

SIZES = {
    "MLP": [(784, 512), (512, 256), (256, 10)],
    "CNN": [(8, 8, 1, 16), (4, 4, 16, 32), (512, 32), (32, 10)],
}


def build(network):
    rng = np.random.default_rng(0)
    return [(jnp.array(0.05 * rng.normal(size=s), jnp.float32), jnp.zeros(s[-1])) for s in SIZES[network]]


def apply(parameters, x):
    for kernel, bias in parameters:
        if kernel.ndim == 4:
            stride, padding = (2, 2), "SAME" if kernel.shape[0] == 8 else "VALID"
            x = jax.lax.conv_general_dilated(
                x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.lax.reduce_window(
                jax.nn.relu(x + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID"
            )
        else:
            x = x.reshape(len(x), -1) @ kernel + bias
            x = jax.nn.relu(x) if kernel.shape[1] != 10 else x
    return x


def make_step(network, batch, mode):
    parameters = build(network)
    optimizer = optax.sgd(0.1, 0.9)
    state = [parameters, optimizer.init(parameters), jax.random.key(0)]
    x = jnp.array(np.random.default_rng(1).normal(size=(batch, 28, 28, 1)), jnp.float32)
    y = jnp.array(np.random.default_rng(2).integers(0, 10, batch))

    def loss(parameters, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(apply(parameters, x), y).mean()

    gradient = jax.grad(loss)
    if mode == "private":
        gradient = jax_privacy.clipped_grad(loss, l2_clip_norm=1.0, batch_argnums=(1, 2), normalize_by=batch)

    @jax.jit
    def update(parameters, moments, key, x, y):
        total = gradient(parameters, x, y)
        if mode == "private":
            leaves, tree = jax.tree.flatten(total)
            key, *keys = jax.random.split(key, len(leaves) + 1)
            noisy = [g + jax.random.normal(k, g.shape) / batch for g, k in zip(leaves, keys, strict=True)]
            total = jax.tree.unflatten(tree, noisy)
        change, moments = optimizer.update(total, moments)
        return optax.apply_updates(parameters, change), moments, key

    def step():
        state[:] = jax.block_until_ready(update(*state, x, y))

    return step


if __name__ == "__main__":
    serve(make_step)
