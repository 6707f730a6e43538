"""One step of DP-SGD: ours against the plain step, TF Privacy's three ways, Opacus and jax-privacy, each in turn.

The tutorials' convolutional network and an MLP. A step is the whole of it: gradients, clipping, noise, momentum. Ours is taken as
`dp_sgd.train` takes it, several in one call where they are small, and the noise of the next drawn meanwhile; "no privacy" is the same loop
without clipping and noise, "plain" is Keras's own. Opacus and jax-privacy
run in environments of their own, in processes that wait between their turns; each side reports the median of several steps. Then where
our time goes, part by part, and what a step needs of memory: in a process of its own, the most it held less what it held before the
model was built.
"""

import atexit
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_privacy import DPKerasSGDOptimizer, VectorizedDPKerasSGDOptimizer
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPSequential

from benchmarks.run import Case
from pprml import ROOT, dp_sgd
from pprml.dp_sgd import _gradients, _training

PEERS = {
    "opacus": ["opacus==1.6.0", "torch==2.15.0", "numpy==2.4.6"],
    "jax_privacy": ["jax-privacy==2.0.0", "jax==0.10.2", "jaxlib==0.10.2", "optax==0.2.8"],
}
BATCHES = (64, 256, 1024, 4096)
#: The optimizers of the tutorials need memory with the square of the batch.
LARGEST_FOR_OPTIMIZER = 128
#: jax-privacy holds every record's gradient: nine gigabytes for 4,096 records of the MLP, and again as much while it clips them.
LARGEST_FOR_JAX = {"CNN": 4096, "MLP": 1024}
#: Seconds after which no further step is begun in one measurement.
LIMIT = 0.3
NETWORKS = ("CNN", "MLP")
#: The clipping norm of `dp_sgd.train`, with noise of the same size, and without privacy.
OURS = {"one pass": 1.0, "no privacy": None}
#: Our step up to a point: each holds the one before it.
PARTS = ("to the outputs", "to the clipped sum")
L = tf.keras.layers


def build(network: str) -> list[tf.keras.layers.Layer]:
    """Return the layers of TF Privacy's tutorial network (26,010 parameters) or of an MLP (535,818)."""
    if network == "MLP":
        hidden = [L.Dense(512, activation="relu"), L.Dense(256, activation="relu")]
        return [L.Flatten(input_shape=(28, 28, 1)), *hidden, L.Dense(10)]
    first = L.Conv2D(16, 8, strides=2, padding="same", activation="relu", input_shape=(28, 28, 1))
    second = [L.MaxPool2D(2, 1), L.Conv2D(32, 4, strides=2, activation="relu"), L.MaxPool2D(2, 1)]
    return [first, *second, L.Flatten(), L.Dense(32, activation="relu"), L.Dense(10)]


@cache
def make_step(network: str, batch: int, mode: str) -> Callable[[], None]:
    """Return a function that takes one step, compiled already."""
    tf.keras.utils.set_random_seed(0)
    x = tf.constant(np.random.default_rng(1).normal(size=(batch, 28, 28, 1)), tf.float32)
    y = tf.constant(np.random.default_rng(2).integers(0, 10, batch), tf.int32)
    optimizer, reduction = tf.keras.optimizers.SGD(0.1, 0.9), "sum"
    if mode.startswith("DPSequential"):
        registry = dp_sgd.make_registry() if mode.endswith("registered") else None
        model = DPSequential(1.0, 1.0, use_xla=False, layer_registry=registry, layers=build(network))
    else:
        model = tf.keras.Sequential(build(network))
    if mode.endswith("Optimizer"):
        kind = {"DPKerasSGDOptimizer": DPKerasSGDOptimizer}.get(mode, VectorizedDPKerasSGDOptimizer)
        optimizer, reduction = kind(1.0, 1.0, num_microbatches=batch, learning_rate=0.1, momentum=0.9), "none"
    model.compile(optimizer, tf.keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction))
    if mode in PARTS:
        compiled = tf.function(measure_outputs if mode == PARTS[0] else measure_sum, autograph=False)

        def step():
            compiled(model, x, y)
    else:
        compiled = tf.function(lambda x, y: model.train_step((x, y)), autograph=False)

        def step():
            compiled(x, y)

    step()
    return step


def measure_outputs(model: tf.keras.Model, x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
    """Go forward, and back to each layer's output: what no way of clipping can do without."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        output, calls = _gradients.graphs.model_forward_pass(
            model, x, lambda *call: _gradients._run_layer(tape, *call)
        )
        total = tf.reduce_sum(dp_sgd.softmax_loss(y, output))
    return tape.gradient(total, [before for _, before, _ in filter(None, calls)])


def measure_sum(model: tf.keras.Model, x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
    """Stop before noise and momentum."""
    return dp_sgd.clipped_gradient_sum(model, x, y, dp_sgd.softmax_loss, 1.0).gradients


class _Everybody(dp_sgd.PoissonBatches):
    def draw(self, step: int) -> np.ndarray:
        return np.arange(self.records)


@cache
def make_stretch(network: str, batch: int, clip_norm: float | None) -> tuple[int, Callable[[], None]]:
    """Return how many steps `dp_sgd.train` takes together, and a function that takes them, the next ones being drawn meanwhile."""
    tf.keras.utils.set_random_seed(0)
    x = np.random.default_rng(1).normal(size=(batch, 28, 28, 1)).astype(np.float32)
    y = np.random.default_rng(2).integers(0, 10, batch).astype(np.int32)
    model = tf.keras.Sequential(build(network))
    velocities = [tf.Variable(tf.zeros(variable.shape)) for variable in model.trainable_variables]
    descend = _training.make_descent(model, x, y, velocities, batch, 0.1, 0.9, clip_norm)
    batches, size = _Everybody(batch, batch, 10**9, 0), model.count_params()
    stretches = _training.cut(0, batches, size, batches.steps)
    length = len(next(stretches))
    draws = _training.draw_ahead(batches, stretches, size, clip_norm or 0.0)
    return length, lambda: descend(*next(draws)[1])


def take_stretches(network: str, batch: int, clip_norm: float | None) -> dict[str, float]:
    """Return the seconds of a step, of stretches in a row."""
    length, step = make_stretch(network, batch, clip_norm)
    step()  # its draws were made while others were measured
    taken, start = 0, time.perf_counter()
    while taken < max(length, count_steps(batch)):
        step()
        taken += length
    return {"seconds": (time.perf_counter() - start) / taken}


def take_steps(network: str, batch: int, mode: str) -> dict[str, float]:
    """Return the median seconds of a few steps here."""
    if mode in OURS:
        return take_stretches(network, batch, OURS[mode])
    step, taken = make_step(network, batch, mode), []
    while len(taken) < count_steps(batch) and sum(taken) < LIMIT:
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return {"seconds": statistics.median(taken)}


def count_steps(batch: int) -> int:
    """Return how many steps make one measurement: fewer, the longer they are."""
    return max(5, 4096 // batch)


@cache
def start_peer(name: str) -> subprocess.Popen:
    """Start a peer's process, which waits for requests."""
    uv = shutil.which("uv") or ROOT / ".uv" / "bin" / "uv"
    command = [str(uv), "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable]
    for requirement in PEERS[name]:
        command += ["--with", requirement]
    program = Path(__file__).parent / "peers" / f"{name}_steps.py"
    environment = {
        key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    process = subprocess.Popen(
        [*command, "python", str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
    )
    atexit.register(process.kill)
    return process


def ask_peer(name: str, network: str, batch: int, mode: str) -> dict[str, float]:
    """Return the median seconds of a few steps of a peer."""
    process = start_peer(name)
    request = dict(network=network, batch=batch, mode=mode, steps=count_steps(batch), limit=LIMIT)
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"{name} ended: {network}, batch {batch}, {mode}")
    return json.loads(answer)


def list_cases() -> list[Case]:
    cases = []
    for network in NETWORKS:
        for batch in BATCHES:
            # Without a registry of layers DPSequential takes one gradient a record, whatever the layers are.
            peers = {
                "plain": None,
                "no privacy": None,
                "DPSequential, layers registered": None,
                "DPSequential": None,
            }
            for mode in (
                "hooks",
                "ghost",
                "hooks, channels_last",
                "ghost, channels_last",
                "plain",
                "plain, compiled",
            ):
                if network == "CNN" or "channels_last" not in mode:
                    peers[f"Opacus, {mode}"] = ("opacus", mode)
            peers["JAX, plain"] = ("jax_privacy", "plain")
            if batch <= LARGEST_FOR_JAX[network]:
                peers["jax-privacy"] = ("jax_privacy", "private")
            cases += [_compare(network, batch, name, peer) for name, peer in peers.items()]
        cases += [_compare(network, 64, f"{kind}DPKerasSGDOptimizer", None) for kind in ("Vectorized", "")]
        cases.append(_compare(network, LARGEST_FOR_OPTIMIZER, "VectorizedDPKerasSGDOptimizer", None))
        cases += [_list_part(network, 256, part) for part in PARTS]
        cases += [_compare_memory(network, batch) for batch in (256, 4096)]
    return cases


def _list_part(network: str, batch: int, part: str) -> Case:
    whole = f"{network}, batch {batch}, one pass {part} against all of it"
    return Case(
        whole,
        lambda: take_steps(network, batch, part),
        lambda: take_steps(network, batch, "one pass"),
        rounds=3,
    )


def _compare_memory(network: str, batch: int) -> Case:
    return Case(
        f"{network}, batch {batch}, plain",
        lambda: measure_memory(network, batch, "one pass"),
        lambda: measure_memory(network, batch, "plain"),
        rounds=3,
        warm_up=False,
    )


def measure_memory(network: str, batch: int, mode: str) -> dict[str, float]:
    """Return the gigabytes that the steps of one mode need, measured in a process of its own."""
    program = [sys.executable, "-m", "benchmarks.dp_sgd", network, str(batch), mode]
    done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def _compare(network: str, batch: int, name: str, peer: tuple[str, str] | None) -> Case:
    def theirs() -> dict[str, float]:
        return ask_peer(peer[0], network, batch, peer[1]) if peer else take_steps(network, batch, name)

    return Case(
        f"{network}, batch {batch}, {name}", lambda: take_steps(network, batch, "one pass"), theirs, rounds=3
    )


def _read_memory(field: str) -> float:
    """Return a figure of this process, in gigabytes."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


if __name__ == "__main__":
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _read_memory("VmRSS")
    take_steps(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    print(json.dumps({"gigabytes": _read_memory("VmHWM") - before}))
