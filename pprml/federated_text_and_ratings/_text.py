"""Next-character prediction: every role of a play is a phone, and its lines are what was typed on it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from pprml.federated import Model, Process, Weights

SYMBOLS = "\n abcdefghijklmnopqrstuvwxyz0123456789!',-.:;?"
WIDTH = 8  # characters that the model sees
_CODES = {symbol: code for code, symbol in enumerate(SYMBOLS)}


def encode_text(text: str) -> np.ndarray:
    """Turn text into codes of `SYMBOLS`, int8: capitals become small, and what has no symbol is left out."""
    return np.array([_CODES[symbol] for symbol in text.lower() if symbol in _CODES], np.int8)


def split_roles(plays: Any) -> list[tuple[str, str, str]]:
    """Give each role of two lines or more its own text: the first eight tenths of its lines, one for choices, one for the test.

    Parameters
    ----------
    plays : DataFrame
        Columns play, role, line, in the order of speech.

    Returns
    -------
    list of (training, validation, test) text
        A role with few lines has no validation text.
    """
    parts = []
    for _, lines in plays.groupby(["play", "role"], sort=True)["line"]:
        if len(lines) >= 2:
            first, second = (min(int(np.ceil(len(lines) * share)), len(lines) - 1) for share in (0.8, 0.9))
            cut = lines.iloc[:first], lines.iloc[first:second], lines.iloc[second:]
            parts.append(tuple("\n".join(part) + "\n" if len(part) else "" for part in cut))
    return parts


def frame_text(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each character the `WIDTH` codes before it, int8 (n, WIDTH), and its own code, int32 (n,)."""
    padded = np.concatenate([np.zeros(WIDTH, np.int8), codes])
    frames = np.lib.stride_tricks.sliding_window_view(padded, WIDTH + 1)
    return frames[:, :-1], frames[:, -1].astype(np.int32)


def init_text_weights(seed: int, embedding: int = 8, hidden: int = 96) -> Weights:
    """Draw first weights: a vector for each symbol, a hidden layer over the vectors of `WIDTH` symbols, an output."""
    rng, size = np.random.default_rng(seed), len(SYMBOLS)
    shapes = (WIDTH * embedding, hidden), (hidden, size)
    layers = [rng.normal(0, np.sqrt(2 / shape[0]), shape).astype(np.float32) for shape in shapes]
    biases = [np.zeros(shape[1], np.float32) for shape in shapes]
    table = rng.normal(0, 0.5, (size, embedding)).astype(np.float32)
    return [table, layers[0], biases[0], layers[1] * np.float32(0.3), biases[1]]


def build_text_model(weights: Weights) -> Model:
    """Make a TFF model of weights from `init_text_weights`: a feed-forward net over the last `WIDTH` characters."""

    @tf.function
    def predict(model_weights, x, training):
        table, first, first_bias, second, second_bias = model_weights[0]
        marks = tf.one_hot(tf.cast(x, tf.int32), len(SYMBOLS))
        vectors = tf.reshape(tf.einsum("nws,se->nwe", marks, table), (-1, first.shape[0]))
        return tf.matmul(tf.nn.relu(tf.matmul(vectors, first) + first_bias), second) + second_bias

    def compute_loss(output, label, sample_weight=None):
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=output))

    specs = tf.TensorSpec((None, WIDTH), tf.int8), tf.TensorSpec((None,), tf.int32)
    return Model(
        initial_weights=(tuple(weights), ()),
        predict_on_batch_fn=predict,
        loss_fn=compute_loss,
        input_spec=specs,
    )


def build_text_process(
    model: Model,
    client_rate: float = 0.5,
    server_rate: float = 0.01,
    aggregator: Any = None,
    batch_size: int = 50,
) -> Process:
    """Compile FedAvg with Adam at the server (arXiv 2003.00295); a client's input is its text in codes, int8.

    Parameters
    ----------
    model : FunctionalModel
        From `build_text_model`.
    client_rate, server_rate : float
        Learning rates of the clients' SGD and of the server's Adam. A `server_rate` of 0 adds the mean as it is.
    aggregator : UnweightedAggregationFactory, optional
        TFF's, for example one that clips and adds noise; by default the mean.
    batch_size : int
        Characters a step; 1 or more, else ValueError.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give 1 or more")
    optimizers = tff.learning.optimizers

    @tff.tensorflow.computation(tff.TensorType(np.int8, [None]))
    def read_client(codes):
        frames = tf.signal.frame(tf.cast(codes, tf.int32), WIDTH + 1, 1)
        frames = tf.random.experimental.stateless_shuffle(frames, seed=[0, 0])
        pair = tf.cast(frames[:, :-1], tf.int8), frames[:, -1]
        return tf.data.Dataset.from_tensor_slices(pair).batch(batch_size)

    process = tff.learning.algorithms.build_unweighted_fed_avg(
        model,
        client_optimizer_fn=optimizers.build_sgdm(client_rate),
        server_optimizer_fn=optimizers.build_adam(server_rate) if server_rate else optimizers.build_sgdm(1.0),
        model_aggregator=aggregator,
        loop_implementation=tff.learning.LoopImplementation.DATASET_ITERATOR,
    )
    return tff.simulation.compose_dataset_computation_with_learning_process(read_client, process)


def train_text(
    process: Process,
    clients: Sequence[np.ndarray],
    schedule: Sequence[np.ndarray],
    weights: Weights,
    limit: int = 500,
    seed: int = 0,
    score: Callable[[Weights], Any] | None = None,
    every: int = 10,
) -> tuple[Weights, list]:
    """Train inside a `federated_context`; returns the last weights and the scores.

    Parameters
    ----------
    process : LearningProcess
        From `build_text_process`.
    clients : sequence of ndarray of int8
        The codes that each client typed; more than none each.
    schedule : sequence of ndarray of int
        Who takes part in each round.
    weights : list of ndarray
    limit : int
        The most characters that a client trains on in a round, from a place of its own choice; 0 for all.
    seed : int
        Of those places.
    score : callable of the weights, optional
        Taken after every `every` rounds.

    Raises
    ------
    ValueError
        A client without text, or a round that asks for one that there is not.
    """
    if not clients or any(not len(codes) for codes in clients):
        raise ValueError("a client has no text: leave it out")
    if any(not len(chosen) or min(chosen) < 0 or max(chosen) >= len(clients) for chosen in schedule):
        raise ValueError(f"a round is empty or asks for more than {len(clients)} clients: draw it again")
    rng, scores = np.random.default_rng(seed), []
    start = tff.learning.models.ModelWeights(tuple(weights), ())
    state = process.set_model_weights(process.initialize(), start)
    for number, chosen in enumerate(schedule, start=1):
        state = process.next(state, [_take(clients[k], limit, rng) for k in chosen]).state
        if score is not None and number % every == 0:
            scores.append(score(get_weights(state)))
    return get_weights(state), scores


def get_weights(state: Any) -> Weights:
    """Read the server's weights out of a process's state."""
    return [np.asarray(array) for array in state.global_model_weights.trainable]


def _take(codes: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    padded = np.concatenate([np.zeros(WIDTH, np.int8), codes])
    if not limit or len(codes) <= limit:
        return padded
    place = rng.integers(0, len(codes) - limit + 1)
    return padded[place : place + limit + WIDTH]


def measure_text_accuracy(model: Model, weights: Weights, codes: np.ndarray) -> float:
    """Return the share of characters that are the model's first choice."""
    x, y = frame_text(codes)
    return float(np.mean(np.argmax(_logits(model, weights, x), axis=1) == y))


def _logits(model, weights, x) -> np.ndarray:
    return model.predict_on_batch((tuple(weights), ()), tf.constant(x), training=False).numpy()


def measure_ngram_accuracy(train: np.ndarray, test: np.ndarray, order: int) -> float:
    """Return the same for the commonest next symbol after the last `order` - 1 in pooled text (the shorter where unseen)."""
    size = len(SYMBOLS)
    guess = np.full(len(test), np.bincount(train, minlength=size).argmax())
    x, y = frame_text(train)
    x_test, y_test = frame_text(test)
    for used in range(1, order):
        powers = size ** np.arange(used)
        keys, test_keys = (part[:, -used:].astype(int) @ powers for part in (x, x_test))
        counts = np.zeros((size**used, size), np.int32)
        np.add.at(counts, (keys, y), 1)
        seen = counts[test_keys].any(axis=1)
        guess = np.where(seen, counts.argmax(axis=1)[test_keys], guess)
    return float(np.mean(guess == y_test))


def score_secrets(model: Model, weights: Weights, prefix: str, alphabet: str) -> np.ndarray:
    """Return the log-likelihood of each of 10,000 secrets of four symbols out of ten, after `prefix`; secret 4821 is entry 4821."""
    codes, start, scores = encode_text(alphabet), encode_text(prefix), np.zeros(1)
    if len(codes) != 10 or len(start) < WIDTH - 3:
        raise ValueError(
            f"give ten symbols and a prefix of {WIDTH - 3} or more, not {alphabet!r} and {prefix!r}"
        )
    for place in range(4):
        written = np.arange(10**place)[:, None] // 10 ** np.arange(place)[::-1] % 10
        contexts = np.concatenate([np.tile(start, (10**place, 1)), codes[written]], axis=1)[:, -WIDTH:]
        contexts = (
            np.pad(contexts, ((0, 0), (WIDTH - contexts.shape[1], 0)))
            if contexts.shape[1] < WIDTH
            else contexts
        )
        step = tf.nn.log_softmax(_logits(model, weights, contexts)).numpy()[:, codes]
        scores = (scores[:, None] + step).ravel()
    return scores
