"""Who has which record, who takes part when, and the first weights: the same NumPy draws in TensorFlow and in PyTorch."""

from collections.abc import Sequence

import numpy as np

Weights = list[np.ndarray]  # kernel, bias, kernel, bias, ...
Positions = list[np.ndarray]


def partition_records(labels: np.ndarray, num_clients: int, alpha: float | None, seed: int) -> Positions:
    """Deal every record to exactly one client; the clients' sizes differ by one at most.

    Parameters
    ----------
    labels : ndarray of int, shape (records,)
    num_clients : int
        From 1 to the number of records, else ValueError.
    alpha : float or None
        None deals at random: all clients are alike. A number above 0 (else ValueError) gives each client a label
        mix from a Dirichlet distribution around the mix of all (arXiv 1909.06335): at 0.1 a few labels, at 100
        nearly even. Records are not replaced: a label that has run out is missing from the mixes that follow.
    seed : int

    Returns
    -------
    list of ndarray of int
        For each client, the positions of its records, in random order.
    """
    if not 1 <= num_clients <= len(labels):
        raise ValueError(f"num_clients is {num_clients}: give 1 to {len(labels)}, the number of records")
    if alpha is not None and not (np.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha is {alpha}: give a finite number above 0, or None for a random deal")
    rng = np.random.default_rng(seed)
    parts = np.array_split(rng.permutation(len(labels)), num_clients)
    if alpha is None:
        return parts
    pools = [list(rng.permutation(np.flatnonzero(labels == label))) for label in np.unique(labels)]
    center = alpha * np.array([len(pool) for pool in pools]) * len(pools) / len(labels)
    dealt = []
    for part in parts:
        left = np.array([len(pool) for pool in pools])
        counts = _draw_counts(rng, rng.dirichlet(center), left, len(part))
        records = [pool.pop() for pool, count in zip(pools, counts, strict=True) for _ in range(count)]
        dealt.append(rng.permutation(records))
    return dealt


def _draw_counts(rng: np.random.Generator, mix: np.ndarray, left: np.ndarray, size: int) -> np.ndarray:
    """Draw how many records a client takes of each label, never more than are left."""
    taken = np.zeros_like(left)
    while taken.sum() < size:
        room = left - taken
        odds = np.where(room > 0, mix, 0.0)
        # Every label of this mix has run out: take the rest in the proportions that are left.
        odds = odds if odds.sum() > 1e-12 else room.astype(float)
        taken += np.minimum(rng.multinomial(size - taken.sum(), odds / odds.sum()), room)
    return taken


def sample_clients(num_clients: int, clients_per_round: int, num_rounds: int, seed: int) -> np.ndarray:
    """Choose each round's clients uniformly, none twice in a round: an int array (rounds, clients per round)."""
    if not (1 <= clients_per_round <= num_clients and num_rounds >= 1):
        raise ValueError(f"{num_rounds} rounds of {clients_per_round}: give 1 or more, at most {num_clients}")
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(num_clients, clients_per_round, replace=False) for _ in range(num_rounds)])


def init_mlp(sizes: Sequence[int], seed: int) -> Weights:
    """Draw a fully connected network of `sizes` units, input first: Glorot uniform kernels, zero biases."""
    rng, weights = np.random.default_rng(seed), []
    for inputs, units in zip(sizes[:-1], sizes[1:], strict=True):
        limit = np.sqrt(6 / (inputs + units))
        kernel = rng.uniform(-limit, limit, (inputs, units)).astype(np.float32)
        weights += [kernel, np.zeros(units, np.float32)]
    return weights
