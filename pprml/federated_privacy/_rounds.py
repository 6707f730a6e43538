"""Rounds of federated averaging whose aggregator can be exchanged: TFF's own, or one that looks at every update."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from pprml import federated as fed

Combine = Callable[[list[np.ndarray]], list[np.ndarray]]


class Rounds(NamedTuple):
    """Compiled by TFF: the aggregator's first state, one whole round, and what each client of a round sends."""

    initialize: Callable
    step: Callable
    collect: Callable


def sample_poisson(
    num_clients: int, clients_per_round: float, num_rounds: int, seed: int
) -> list[np.ndarray]:
    """Let each client join each round independently: the draw that the accountant's amplification assumes.

    Parameters
    ----------
    num_clients, num_rounds : int
    clients_per_round : float
        The expected number, above 0 and at most `num_clients`, else ValueError.
    seed : int
        A simulation's. In a deployment nobody may know who takes part: draw from the operating system.

    Returns
    -------
    list of ndarray of int
        Who takes part, for each round; the number varies.
    """
    if not (0 < clients_per_round <= num_clients and num_rounds >= 1):
        raise ValueError(f"{num_rounds} rounds of {clients_per_round}: give 1 or more, at most {num_clients}")
    rng = np.random.default_rng(seed)
    return [
        np.flatnonzero(rng.random(num_clients) < clients_per_round / num_clients) for _ in range(num_rounds)
    ]


def sample_passes(num_clients: int, clients_per_round: int, passes: int, seed: int) -> list[np.ndarray]:
    """Call every client exactly once a pass, in an order drawn once: what the tree's accountant assumes.

    Returns
    -------
    list of ndarray of int, each of shape (rounds a pass, clients_per_round)

    Raises
    ------
    ValueError
        `clients_per_round` does not divide `num_clients`, or there is no pass.
    """
    if clients_per_round < 1 or num_clients % clients_per_round or passes < 1:
        raise ValueError(f"{clients_per_round} a round must divide {num_clients} clients, in 1 pass or more")
    order = np.random.default_rng(seed).permutation(num_clients)
    return [order.reshape(-1, clients_per_round)] * passes


def build_rounds(
    model: fed.Model,
    learning_rate: float,
    aggregator: Any = None,
    batch_size: int = 20,
    local_noise: tuple[float, float] | None = None,
) -> Rounds:
    """Compile FedAvg rounds: clients make one pass of SGD, the server adds what `aggregator` makes of their updates.

    Parameters
    ----------
    model : FunctionalModel
        From `pprml.federated.build_mlp`.
    learning_rate : float
        The clients'; the server adds the aggregate as it is.
    aggregator : UnweightedAggregationFactory, optional
        TFF's; by default the plain mean. Secure sums are replaced by TFF's test arithmetic: the same clipping, integers and
        sums, without the cryptography.
    batch_size : int
    local_noise : (float, float), optional
        Clipping norm and noise multiplier: each client clips its own update and adds Gaussian noise before it sends.
    """
    logging.getLogger("tensorflow").addFilter(_is_wanted)
    parts = _compile(model, learning_rate, aggregator, batch_size, local_noise)
    return Rounds(*(tff.backends.test.replace_secure_intrinsics_with_bodies(part) for part in parts))


def _is_wanted(record: logging.LogRecord) -> bool:
    # TensorFlow reports each bound that TFF's secure sum checks as an object that nobody used.
    return "Object was never used" not in record.getMessage()


def _compile(model, learning_rate, aggregator, batch_size, local_noise) -> tuple:
    kinds = tff.StructWithPythonType(
        [tff.TensorType(np.float32, array.shape) for array in model.initial_weights[0]], list
    )
    client_kind = tff.StructType([("path", np.str_), ("boost", np.float32)])
    train = _build_client_work(model, kinds, client_kind, learning_rate, batch_size, local_noise)
    process = (aggregator or tff.aggregators.UnweightedMeanFactory()).create(kinds)
    add = tff.tensorflow.computation(
        lambda old, new: [a + b for a, b in zip(old, new, strict=True)], (kinds, kinds)
    )
    initialize = process.initialize
    at_server, at_clients = tff.FederatedType(kinds, tff.SERVER), tff.FederatedType(client_kind, tff.CLIENTS)

    @tff.federated_computation(initialize.type_signature.result, at_server, at_clients)
    def step(state, weights, clients):
        sent = tff.federated_map(train, (tff.federated_broadcast(weights), clients))
        output = process.next(state, sent)
        return output.state, tff.federated_map(add, (weights, output.result))

    @tff.federated_computation(at_server, at_clients)
    def collect(weights, clients):
        return tff.federated_map(train, (tff.federated_broadcast(weights), clients))

    return initialize, step, collect


def _build_client_work(model, kinds, client_kind, learning_rate, batch_size, local_noise) -> Any:
    @tf.function
    def train(start, x, y):
        weights = list(start)
        for first in tf.range(0, tf.shape(y)[0], batch_size):
            batch = tf.cast(x[first : first + batch_size], tf.float32) / 255.0
            with tf.GradientTape() as tape:
                tape.watch(weights)
                output = model.predict_on_batch((tuple(weights), ()), batch, training=True)
                loss = model.loss(output, y[first : first + batch_size])
            slopes = tape.gradient(loss, weights)
            weights = [w - learning_rate * slope for w, slope in zip(weights, slopes, strict=True)]
        return [new - old for new, old in zip(weights, start, strict=True)]

    @tff.tensorflow.computation(kinds, client_kind)
    def work(weights, client):
        x = tf.io.decode_raw(tf.io.read_file(client["path"] + "x"), tf.uint8)
        y = tf.io.decode_raw(tf.io.read_file(client["path"] + "y"), tf.int32)
        update = train(list(weights), tf.reshape(x, (-1, len(model.initial_weights[0][0]))), y)
        if local_noise:
            # L2 sensitivity: a client's whole update has norm clip_norm at most, so replacing it moves it by twice that.
            clip_norm, noise_multiplier = local_noise
            update, _ = tf.clip_by_global_norm(update, clip_norm)
            update = [u + tf.random.normal(tf.shape(u), stddev=clip_norm * noise_multiplier) for u in update]
        return [client["boost"] * u for u in update]

    return work


@contextlib.contextmanager
def store_clients(clients: fed.Clients) -> Iterator[list[str]]:
    """Give each client a file of its own for the length of the block; yields their paths.

    Raises
    ------
    ValueError
        A client with no records, with another number of labels than of pictures, or of other types than uint8 and int32.
    """
    for number, (x, y) in enumerate(clients):
        if len(x) != len(y) or not len(x):
            raise ValueError(f"client {number}: {len(x)} records, {len(y)} labels: mend it or leave it out")
        if x.dtype != np.uint8 or y.dtype != np.int32 or x.ndim != 2 or x.shape[1] != clients[0][0].shape[1]:
            raise ValueError(
                f"client {number}: give uint8 pictures of one width, one a row, and int32 labels"
            )
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}." for number in range(len(clients))]
        for path, (x, y) in zip(paths, clients, strict=True):
            Path(path + "x").write_bytes(x.tobytes())
            Path(path + "y").write_bytes(y.tobytes())
        yield paths


def run_rounds(
    rounds: Rounds,
    paths: Sequence[str],
    schedule: Sequence[np.ndarray],
    weights: fed.Weights,
    score: Callable[[fed.Weights], Any] | None = None,
    every: int = 1,
    boosts: np.ndarray | None = None,
    combine: Combine | None = None,
) -> fed.Training:
    """Train inside a `federated_context`.

    Parameters
    ----------
    rounds : Rounds
        From `build_rounds`. Each call starts the aggregator afresh: its clipping norm, and its tree.
    paths : sequence of str
        From `store_clients`.
    schedule : sequence of ndarray of int
        Who takes part in each round; from `sample_poisson`, a pass of `sample_passes`, or any other.
    weights : list of ndarray
    score : callable of the weights, optional
        Taken after every `every` rounds.
    boosts : ndarray, shape (clients,), optional
        What each client multiplies its update by: 1 if it is honest.
    combine : callable, optional
        Takes the place of TFF's aggregator: from the updates, one array a layer of shape (clients, ...), to one update.

    Raises
    ------
    ValueError
        A round that drew nobody, or a client that there is not.
    """
    boosts = np.ones(len(paths), np.float32) if boosts is None else np.asarray(boosts, np.float32)
    for number, chosen in enumerate(schedule, start=1):
        if not len(chosen) or min(chosen) < 0 or max(chosen) >= len(paths):
            raise ValueError(
                f"round {number} asks for clients {chosen!r} of {len(paths)}: raise clients_per_round"
            )
    state, weights = (None if combine else rounds.initialize()), list(weights)
    numbers, scores = [], []
    for number, chosen in enumerate(schedule, start=1):
        clients = [dict(path=paths[k], boost=boosts[k]) for k in chosen]
        if combine:
            sent = rounds.collect(weights, clients)
            step = combine([np.stack(layer) for layer in zip(*sent, strict=True)])
            weights = [old + change for old, change in zip(weights, step, strict=True)]
        else:
            state, weights = rounds.step(state, weights, clients)
            weights = [np.asarray(layer) for layer in weights]
        if score is not None and number % every == 0:
            numbers.append(number)
            scores.append(score(weights))
    return fed.Training(np.array(numbers), np.array(scores), weights)


def collect_updates(
    rounds: Rounds, paths: Sequence[str], chosen: Sequence[int], weights: fed.Weights
) -> list[fed.Weights]:
    """Return what each of the chosen clients sends to the server in a round, in one call."""
    sent = rounds.collect(list(weights), [dict(path=paths[k], boost=np.float32(1)) for k in chosen])
    return [[np.asarray(layer) for layer in update] for update in sent]
