"""Rounds of training: clients are stored, called by name, and scored."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_federated as tff

from pprml.federated import _context
from pprml.federated._work import Federation
from pprml.partition import Weights

Clients = Sequence[tuple[np.ndarray, np.ndarray]]  # features and labels of each


class Training(NamedTuple):
    """The rounds after which a score was taken, the scores, the last weights, and every round's training metrics."""

    rounds: np.ndarray
    scores: np.ndarray
    weights: Weights
    metrics: Sequence[dict[str, float]] = ()


def run_rounds(
    federation: Federation,
    clients: Clients,
    schedule: np.ndarray,
    weights: Weights,
    score: Callable[[Weights], float] | None = None,
    every: int = 1,
    stop_at: float | None = None,
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
    stop_at : float, optional
        The score at which the training ends before its schedule does.
    """
    schedule, rounds, scores, metrics = np.asarray(schedule), [], [], []
    if schedule.ndim != 2 or not schedule.size or schedule.min() < 0 or schedule.max() >= len(clients):
        raise ValueError(f"schedule {schedule.shape} does not fit {len(clients)} clients: use sample_clients")
    if any(len(set(chosen)) < len(chosen) for chosen in schedule):
        raise ValueError("a round calls a client twice: use sample_clients")
    with _deploy(federation, clients, weights, set(schedule.ravel())) as (state, paths):
        for number, chosen in enumerate(schedule, start=1):
            output = federation.process.next(state, [paths[k] for k in chosen])
            state = output.state
            metrics.append(_get_metrics(output.metrics))
            if score is not None and number % every == 0:
                rounds.append(number)
                scores.append(score(_get_weights(state)))
                if stop_at is not None and scores[-1] >= stop_at:
                    break
    return Training(np.array(rounds), np.array(scores), _get_weights(state), metrics)


def collect_updates(federation: Federation, clients: Clients, weights: Weights) -> list[Weights]:
    """Return what the server receives from each client alone: its weights after one round minus those before."""
    with _deploy(federation, clients, weights, range(len(clients))) as (state, paths):
        after = [_get_weights(federation.process.next(state, [path]).state) for path in paths]
    return [[new - old for new, old in zip(arrays, weights, strict=True)] for arrays in after]


def _get_weights(state: Any) -> Weights:
    return [np.asarray(array) for array in state.global_model_weights.trainable]


def _get_metrics(metrics: Any) -> dict[str, float]:
    train = metrics["client_work"]["train"] or {}  # a model without metrics reports none
    return {name: float(value) for name, value in train.items()}


@contextlib.contextmanager
def _deploy(
    federation: Federation, clients: Clients, weights: Weights, used: Iterable[int]
) -> Iterator[tuple]:
    """Store the records of the clients `used` for the length of the block; yields the first state and each client's path."""
    if not (_context.is_open() and len(clients)):
        raise ValueError("give one client or more, inside `with federated_context():`")
    for number, (x, y) in enumerate(clients):
        if len(x) != len(y) or not len(x):
            raise ValueError(f"client {number}: {len(x)} records, {len(y)} labels: mend it or leave it out")
        if tuple((array.dtype, array.shape[1:]) for array in (x, y)) != federation.kinds:
            raise ValueError(f"client {number}: convert its arrays to {federation.kinds}, or set dtype=")
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise ValueError(
                f"client {number}: a feature is not a finite number: mend the record or leave it out"
            )
        if federation.classes is not None and not (y.min() >= 0 and y.max() < federation.classes):
            raise ValueError(
                f"client {number}: its labels are {y.min()} to {y.max()}: give 0 to {federation.classes - 1}"
            )
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}." for number in range(len(clients))]
        for number in used:
            for array, suffix in zip(clients[number], "xy", strict=True):
                Path(paths[number] + suffix).write_bytes(array.tobytes())
        start = tff.learning.models.ModelWeights(tuple(weights), ())
        yield federation.process.set_model_weights(federation.process.initialize(), start), paths
