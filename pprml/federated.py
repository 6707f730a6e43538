"""Many clients, one model: federated averaging with TensorFlow Federated, and what an update gives away."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import psutil
import tensorflow as tf
import tensorflow_federated as tff

from pprml.partition import Weights, init_mlp, partition_records, sample_clients

__all__ = [
    "Federation",
    "Training",
    "attack_dense_layer",
    "build_federation",
    "build_fedavg",
    "build_fedsgd",
    "build_mlp",
    "collect_updates",
    "federated_context",
    "init_mlp",
    "measure_accuracy",
    "partition_records",
    "run_rounds",
    "sample_clients",
]

Clients = Sequence[tuple[np.ndarray, np.ndarray]]  # features and labels of each
Model = tff.learning.models.FunctionalModel
Process = tff.learning.templates.LearningProcess

_LOOP = tff.learning.LoopImplementation.DATASET_ITERATOR  # faster on CPU, and bit for bit the same
_build_sgd = tff.learning.optimizers.build_sgdm
_Popen = subprocess.Popen
_open_contexts = 0


class Federation(NamedTuple):
    """A TFF process whose clients read their own files; the (type, record shape) of features and labels."""

    process: Process
    kinds: tuple


class Training(NamedTuple):
    """The rounds after which a score was taken, the scores, and the weights after the last round."""

    rounds: np.ndarray
    scores: np.ndarray
    weights: Weights


def build_mlp(weights: Weights) -> Model:
    """Make a TFF model with weights of these shapes: ReLU between layers, softmax cross-entropy as loss."""

    @tf.function
    def predict(model_weights, x, training):
        layers = model_weights[0]
        for k in range(0, len(layers), 2):
            x = tf.matmul(tf.nn.relu(x) if k else x, layers[k]) + layers[k + 1]
        return x

    def compute_loss(output, label, sample_weight=None):
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=output))

    specs = tf.TensorSpec((None, len(weights[0])), tf.float32), tf.TensorSpec((None,), tf.int32)
    names = dict(predict_on_batch_fn=predict, loss_fn=compute_loss, input_spec=specs)
    return Model(initial_weights=(tuple(weights), ()), **names)


def _as_input(x: tf.Tensor) -> tf.Tensor:
    # Grey levels rest as bytes and become numbers from 0 to 1 where they are used.
    return tf.cast(x, tf.float32) / 255.0 if x.dtype == tf.uint8 else x


def measure_accuracy(model: Model, weights: Weights, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of records whose label is the model's first choice."""
    logits = model.predict_on_batch((tuple(weights), ()), _as_input(tf.constant(x)), training=False)
    return float(np.mean(np.argmax(logits.numpy(), axis=1) == y))


def _start_worker(command: Sequence[str], **_: Any) -> SimpleNamespace:
    """Start TFF's worker silently; not as a `Popen`, so that TFF leaves ending it to `federated_context`."""
    process = _Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return SimpleNamespace(pid=process.pid, wait=process.wait)


def _find_workers() -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if child.name() == "worker_binary"}


@contextlib.contextmanager
def federated_context() -> Iterator[None]:
    """Run TFF inside this block, one client a core; its worker is silent and ends with the block, come what may.

    Left alone, TFF's ``worker_binary`` writes to the notebook and outlives a Python that ends without warning.
    """
    global _open_contexts
    earlier, native = _find_workers(), tff.backends.native
    context = native.create_sync_local_cpp_execution_context(max_concurrent_computation_calls=os.cpu_count())
    _open_contexts += 1
    try:
        with tff.framework.get_context_stack().install(context):
            subprocess.Popen = _start_worker
            try:  # TFF starts its worker at the first computation
                tff.tensorflow.computation(lambda: tf.constant(0))()
            finally:
                subprocess.Popen = _Popen
            yield
    finally:
        _open_contexts -= 1
        workers = _find_workers() - earlier
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(worker)
            workers = set(psutil.wait_procs(workers, timeout=5)[1])


def build_fedavg(model: Model, client_learning_rate: float, **data: Any) -> Federation:
    """FedAvg (arXiv 1602.05629): clients make one pass of SGD, the server averages by number of records."""
    sgd, build = _build_sgd(client_learning_rate), tff.learning.algorithms.build_weighted_fed_avg
    return build_federation(build(model, sgd, loop_implementation=_LOOP), model, **data)


def build_fedsgd(model: Model, server_learning_rate: float, **data: Any) -> Federation:
    """FedSGD: clients send the gradient of all their records, the server averages them and makes one step."""
    sgd, build = _build_sgd(server_learning_rate), tff.learning.algorithms.build_fed_sgd
    return build_federation(build(model, sgd, loop_implementation=_LOOP), model, **data)


def build_federation(
    process: Process, model: Model, batch_size: int = 20, dtype: Any = np.uint8
) -> Federation:
    """Let the clients of a TFF process read their own files, so that a round sends weights and no records.

    Features are stored as `dtype` (bytes become 0 to 1), labels as the model takes them. Batches of `batch_size`
    records (1 or more, else ValueError) follow the stored order.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give 1 or more")
    x_spec, y_spec = model.input_spec
    kinds = (np.dtype(dtype), tuple(x_spec.shape[1:])), (y_spec.dtype.as_numpy_dtype, tuple(y_spec.shape[1:]))

    @tff.tensorflow.computation(np.str_)
    def read_client(path):
        def read(suffix, kind, shape):
            return tf.reshape(tf.io.decode_raw(tf.io.read_file(path + suffix), kind), (-1, *shape))

        data = tf.data.Dataset.from_tensor_slices((read("x", *kinds[0]), read("y", *kinds[1])))
        return data.batch(batch_size).map(lambda features, labels: (_as_input(features), labels))

    compose = tff.simulation.compose_dataset_computation_with_learning_process
    return Federation(compose(read_client, process), kinds)


def run_rounds(
    federation: Federation,
    clients: Clients,
    schedule: np.ndarray,
    weights: Weights,
    score: Callable[[Weights], float] | None = None,
    every: int = 1,
) -> Training:
    """Train a federation inside a `federated_context`; a client or schedule that does not fit raises ValueError.

    Parameters
    ----------
    federation : Federation
    clients : sequence of (features, labels)
        Of the types that the federation stores; sizes may differ.
    schedule : ndarray of int, shape (rounds, clients per round)
        From `sample_clients`.
    weights : list of ndarray
        The server's, before the first round.
    score : callable of the weights, optional
        Taken after every `every` rounds.
    """
    schedule, rounds, scores = np.asarray(schedule), [], []
    if schedule.ndim != 2 or not schedule.size or schedule.min() < 0 or schedule.max() >= len(clients):
        raise ValueError(f"schedule {schedule.shape} does not fit {len(clients)} clients: use sample_clients")
    with _deploy(federation, clients, weights) as (state, paths):
        for number, chosen in enumerate(schedule, start=1):
            state = federation.process.next(state, [paths[k] for k in chosen]).state
            if score is not None and number % every == 0:
                rounds.append(number)
                scores.append(score(_get_weights(state)))
    return Training(np.array(rounds), np.array(scores), _get_weights(state))


def collect_updates(federation: Federation, clients: Clients, weights: Weights) -> list[Weights]:
    """Return what the server receives from each client alone: its weights after one round minus those before."""
    with _deploy(federation, clients, weights) as (state, paths):
        after = [_get_weights(federation.process.next(state, [path]).state) for path in paths]
    return [[new - old for new, old in zip(arrays, weights, strict=True)] for arrays in after]


def _get_weights(state: Any) -> Weights:
    return [np.asarray(array) for array in state.global_model_weights.trainable]


@contextlib.contextmanager
def _deploy(federation: Federation, clients: Clients, weights: Weights) -> Iterator[tuple]:
    """Store the clients' records for the length of the block; yields the first state and each client's path."""
    if not (_open_contexts and len(clients)):
        raise ValueError("give one client or more, inside `with federated_context():`")
    for number, (x, y) in enumerate(clients):
        if len(x) != len(y) or not len(x):
            raise ValueError(f"client {number}: {len(x)} records, {len(y)} labels: mend it or leave it out")
        if tuple((array.dtype, array.shape[1:]) for array in (x, y)) != federation.kinds:
            raise ValueError(f"client {number}: convert its arrays to {federation.kinds}, or set dtype=")
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}." for number in range(len(clients))]
        for path, client in zip(paths, clients, strict=True):
            for array, suffix in zip(client, "xy", strict=True):
                Path(path + suffix).write_bytes(array.tobytes())
        start = tff.learning.models.ModelWeights(tuple(weights), ())
        yield federation.process.set_model_weights(federation.process.initialize(), start), paths


def attack_dense_layer(kernel_update: np.ndarray, bias_update: np.ndarray) -> np.ndarray:
    """Read inputs out of a dense layer's update: an array (candidates, inputs), clipped to 0 to 1, as inputs are.

    For one input x, the gradient of a unit's kernel is x times that of its bias: their ratio is x. For more
    inputs a ratio is a mixture of them, each weighted by how much it moved the unit. Units whose bias moved less
    than a thousandth of the most are left out.

    Parameters
    ----------
    kernel_update : ndarray, shape (inputs, units)
    bias_update : ndarray, shape (units,)
        New minus old weights of one layer, or gradients; other shapes raise ValueError.
    """
    if kernel_update.shape[1:] != bias_update.shape:
        raise ValueError(f"kernel {kernel_update.shape} and bias {bias_update.shape}: give both of one layer")
    moved = np.abs(bias_update) > 1e-3 * np.abs(bias_update).max(initial=1e-30)
    return np.clip(kernel_update[:, moved] / bias_update[moved], 0, 1).T
