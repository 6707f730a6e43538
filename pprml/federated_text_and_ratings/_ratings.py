"""Ratings: item factors that a server learns, user factors that never leave the phone, and what the difference still tells."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

MEAN_RATING = 3.5  # a public guess; a constant needs no data


class Ratings(NamedTuple):
    """Each user's films (codes from 0) and ratings for training, validation and test; the number of films."""

    train: list[tuple[np.ndarray, np.ndarray]]
    validation: list[tuple[np.ndarray, np.ndarray]]
    test: list[tuple[np.ndarray, np.ndarray]]
    films: int


def split_ratings(frame: Any, seed: int) -> Ratings:
    """Deal each user's ratings at random: eight tenths to train, one for choices, one for the test.

    Parameters
    ----------
    frame : DataFrame
        Columns user, film, rating.
    seed : int
    """
    rng, films = np.random.default_rng(seed), np.unique(frame["film"])
    parts = [], [], []
    for _, own in frame.groupby("user", sort=True):
        codes = np.searchsorted(films, own["film"].to_numpy()).astype(np.int32)
        order = rng.permutation(len(own))
        for part, chosen in zip(
            parts, np.split(order, [int(0.8 * len(own)), int(0.9 * len(own))]), strict=True
        ):
            part.append((codes[chosen], own["rating"].to_numpy(np.float32)[chosen]))
    return Ratings(*parts, len(films))


def measure_rmse(predictions: Sequence[np.ndarray], truth: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the root-mean-square error over all users' ratings, in stars."""
    errors = np.concatenate([guess - stars for guess, (_, stars) in zip(predictions, truth, strict=True)])
    return float(np.sqrt(np.mean(errors**2)))


def predict_user_mean(ratings: Ratings, asked: Sequence[tuple]) -> list[np.ndarray]:
    """Predict each user's own mean: what a phone can do alone."""
    return [
        np.full(len(films), stars.mean()) for (films, _), (_, stars) in zip(asked, ratings.train, strict=True)
    ]


def predict_item_mean(ratings: Ratings, asked: Sequence[tuple], damping: float = 5.0) -> list[np.ndarray]:
    """Predict each film's own mean, shrunk to `MEAN_RATING` by `damping` ratings: one sum over all phones, no user."""
    total, count = np.zeros(ratings.films), np.full(ratings.films, damping)
    for films, stars in ratings.train:
        total[films] += stars - MEAN_RATING
        count[films] += 1
    return [MEAN_RATING + (total / count)[films] for films, _ in asked]


def sum_offsets(ratings: Ratings, damping: float = 5.0) -> np.ndarray:
    """Return how far each film is rated above its raters' own means, shrunk by `damping` ratings: one sum over all phones."""
    total, count = np.zeros(ratings.films), np.full(ratings.films, damping)
    for films, stars in ratings.train:
        total[films] += stars - stars.mean()
        count[films] += 1
    return total / count


def predict_offsets(ratings: Ratings, asked: Sequence[tuple], damping: float = 5.0) -> list[np.ndarray]:
    """Predict the film's offset by `sum_offsets` plus what is left of the user's mean."""
    lift = sum_offsets(ratings, damping)
    own = [stars.mean() - lift[films].mean() for films, stars in ratings.train]
    return [mean + lift[films] for mean, (films, _) in zip(own, asked, strict=True)]


def fit_pooled(
    ratings: Ratings, rank: int, penalty: float, sweeps: int, seed: int
) -> Callable[[Sequence[tuple]], list[np.ndarray]]:
    """Factor all ratings in one place by alternating ridge regressions; returns what predicts.

    Each user and film has `rank` factors and an offset, with `penalty` on their squares (Koren, Bell and Volinsky 2009,
    DOI 10.1109/MC.2009.263).
    """
    rng = np.random.default_rng(seed)
    # Columns: factors, the side's own offset (which meets a 1), and a 1 (which meets the other's offset).
    users = np.column_stack([np.zeros((len(ratings.train), rank + 1)), np.ones(len(ratings.train))])
    items = np.column_stack(
        [rng.normal(0, 0.1, (ratings.films, rank)), np.ones(ratings.films), np.zeros(ratings.films)]
    )
    owner = np.repeat(np.arange(len(users)), [len(films) for films, _ in ratings.train])
    film, stars = (np.concatenate(part) for part in zip(*ratings.train, strict=True))
    order, rated, raters = np.argsort(film, kind="stable"), np.unique(film), np.unique(owner)
    kept, lent = np.r_[np.arange(rank), rank], np.r_[np.arange(rank), rank + 1]
    for _ in range(sweeps):
        gap = stars - MEAN_RATING - items[film, -1]
        users[np.ix_(raters, kept)] = _solve_each(items[film][:, kept], gap, owner, penalty)
        gap = (stars - MEAN_RATING - users[owner, rank])[order]
        items[np.ix_(rated, lent)] = _solve_each(users[owner[order]][:, lent], gap, film[order], penalty)
    return lambda asked: [
        MEAN_RATING + items[films] @ user for user, (films, _) in zip(users, asked, strict=True)
    ]


def _solve_each(x: np.ndarray, y: np.ndarray, group: np.ndarray, penalty: float) -> np.ndarray:
    """Solve a ridge regression for each group of rows; `group` ascends, and the result has a row a group."""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    squares = np.add.reduceat(x[:, :, None] * x[:, None, :], first) + penalty * np.eye(x.shape[1])
    return np.linalg.solve(squares, np.add.reduceat(x * y[:, None], first)[..., None])[..., 0]


def _solve(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


class _Output(NamedTuple):
    """What TFF's reconstruction reads of a batch; its own class for it is not public."""

    predictions: Any
    labels: Any
    num_examples: Any


class _Factors(tff.learning.models.ReconstructionModel):
    """A rating is a constant, the film's and the user's offsets, and the product of their factors."""

    def __init__(self, items: np.ndarray):
        self.items = tf.Variable(items, name="items")  # the last column is the film's offset
        self.user = tf.Variable(tf.zeros(items.shape[1]), name="user")  # the last entry is the user's offset

    global_trainable_variables = property(lambda self: [self.items])
    global_non_trainable_variables = property(lambda self: [])
    local_trainable_variables = property(lambda self: [self.user])
    local_non_trainable_variables = property(lambda self: [])
    input_spec = property(
        lambda self: (tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None, 1), tf.float32))
    )

    def forward_pass(self, batch_input, training=True):
        films, stars = batch_input
        rows = tf.gather(self.items, films)
        guess = MEAN_RATING + rows[:, -1] + self.user[-1] + tf.linalg.matvec(rows[:, :-1], self.user[:-1])
        return _Output(guess[:, None], stars, tf.size(films))


def init_items(offsets: np.ndarray, rank: int, seed: int) -> np.ndarray:
    """Draw small item factors, float32 (films, rank + 1); the last column holds the films' offsets."""
    factors = np.random.default_rng(seed).normal(0, 0.1, (len(offsets), rank))
    return np.column_stack([factors, offsets]).astype(np.float32)


def build_ratings_process(
    items: np.ndarray,
    user_steps: int = 10,
    user_rate: float = 0.2,
    item_steps: int = 1,
    item_rate: float = 1.0,
    server_rate: float = 1.0,
    aggregator: Any = None,
) -> Any:
    """Compile federated reconstruction (arXiv 2102.03448): phones refit their own factors, then send a change of the items'.

    Parameters
    ----------
    items : ndarray, shape (films, rank + 1)
        From `init_items`.
    user_steps, item_steps : int
        Passes over the phone's ratings, each one step on all of them, for the user's factors and then for the items'.
    user_rate, item_rate : float
        Of Adam for the user's factors, of SGD for the items'.
    server_rate : float
        What the server multiplies the mean change by: above 1, since few phones move one film.
    aggregator : UnweightedAggregationFactory, optional
        TFF's; by default the mean.
    """
    optimizers = tff.learning.optimizers
    return tff.learning.algorithms.build_fed_recon(
        lambda: _Factors(items),
        loss_fn=tf.keras.losses.MeanSquaredError,
        server_optimizer_fn=optimizers.build_sgdm(server_rate),
        client_optimizer_fn=optimizers.build_sgdm(item_rate),
        reconstruction_optimizer_fn=optimizers.build_adam(user_rate),
        dataset_split_fn=tff.learning.models.ReconstructionModel.build_dataset_split_fn(
            recon_epochs=user_steps, post_recon_epochs=item_steps
        ),
        client_weighting=tff.learning.ClientWeighting.UNIFORM,
        model_aggregator_factory=aggregator or tff.aggregators.UnweightedMeanFactory(),
    )


def train_items(
    process: Any,
    clients: Sequence[tuple[np.ndarray, np.ndarray]],
    schedule: Sequence[np.ndarray],
    items: np.ndarray,
    score: Callable[[np.ndarray], Any] | None = None,
    every: int = 10,
) -> tuple[np.ndarray, list]:
    """Train inside a `federated_context`; returns the server's item factors and the scores taken every `every` rounds.

    Raises
    ------
    ValueError
        A client without ratings, one whose films and ratings are not two lists of the same length, a film that there is not, a
        rating that is not a finite number; or a round that is empty or asks for a client that there is not.
    """
    if not clients or any(not len(films) for films, _ in clients):
        raise ValueError("a client has no ratings: leave it out")
    if any(not len(chosen) or min(chosen) < 0 or max(chosen) >= len(clients) for chosen in schedule):
        raise ValueError(f"a round is empty or asks for more than {len(clients)} clients: draw it again")
    for number, (films, stars) in enumerate(clients):
        if films.ndim != 1 or films.shape != stars.shape:
            raise ValueError(
                f"client {number}: films {films.shape}, ratings {stars.shape}: give one rating a film"
            )
        if films.min() < 0 or films.max() >= len(items):
            raise ValueError(
                f"client {number}: a film is outside 0 to {len(items) - 1}: mend it or leave it out"
            )
        if not np.isfinite(stars).all():
            raise ValueError(f"client {number}: a rating is not a finite number: mend it or leave it out")
    data = [
        tf.data.Dataset.from_tensors((films, stars[:, None].astype(np.float32))) for films, stars in clients
    ]
    start, scores = tff.learning.models.ModelWeights([items], []), []
    state = process.set_model_weights(process.initialize(), start)
    for number, chosen in enumerate(schedule, start=1):
        state = process.next(state, [data[k] for k in chosen]).state
        if score is not None and number % every == 0:
            scores.append(score(np.asarray(state.global_model_weights.trainable[0])))
    return np.asarray(state.global_model_weights.trainable[0]), scores


def fit_users(
    items: np.ndarray, clients: Sequence[tuple[np.ndarray, np.ndarray]], penalty: float = 2.0
) -> list[np.ndarray]:
    """Fit each user's factors on that user's phone, by a ridge regression on the items' factors as they are."""
    x = np.column_stack([items[:, :-1], np.ones(len(items))]).astype(float)
    return [_solve(x[films], stars - MEAN_RATING - items[films, -1], penalty) for films, stars in clients]


def predict_ratings(
    items: np.ndarray, users: Sequence[np.ndarray], asked: Sequence[tuple]
) -> list[np.ndarray]:
    """Predict on each phone, from its user's factors and the items'."""
    x = np.column_stack([items[:, :-1], np.ones(len(items))])
    return [
        MEAN_RATING + items[films, -1] + x[films] @ user
        for user, (films, _) in zip(users, asked, strict=True)
    ]


def attack_rated_films(update: np.ndarray, number: int | None = None) -> np.ndarray:
    """Name the films that a client has rated: the rows of its item update that moved.

    Parameters
    ----------
    update : ndarray, shape (films, rank + 1)
        Item factors after a round of this client alone, minus those before.
    number : int, optional
        Name only this many, those that moved most.
    """
    moved = np.abs(update).max(axis=1)
    named = np.argsort(-moved, kind="stable")[:number]
    return named[moved[named] > 1e-7] if number is None else named


def attack_liked_films(update: np.ndarray, films: np.ndarray) -> np.ndarray:
    """Tell for each film whether the client rated it above what the model expected: its offset rose."""
    return update[films, -1] > 0


def score_guess(named: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return precision and recall of the named films."""
    hits = len(np.intersect1d(named, truth))
    return hits / max(len(named), 1), hits / len(truth)
