"""Faces, places and ratings: how few of them name a person, what hides them, and what a guarantee costs.

For teaching. The traces of places are simulated, and the k-same averages promise something about one picture a person only.
"""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from sklearn.neighbors import KNeighborsClassifier

from pprml._noise import add_laplace, check_epsilon
from pprml._tables import demand_columns
from pprml.accounting import PrivacyGuarantee, laplace_guarantee

WHITE = 255  # the largest pixel: a cell's mean can change by no more
#: Exploration and preferential return as Song et al. (2010) fitted it to mobile phones: the chance of a new place after S places
#: is RHO * S**-GAMMA, a jump of d km has density d**-(1 + ALPHA), a stay of t hours has density t**-(1 + BETA), cut at 17 hours.
RHO, GAMMA, ALPHA, BETA, LONGEST_STAY = 0.6, 0.21, 0.55, 0.8, 17


class Traces(NamedTuple):
    """Calls as int arrays (calls,): who, in which hour, at which antenna; and the antennas' positions in km (antennas, 2)."""

    person: np.ndarray
    hour: np.ndarray
    antenna: np.ndarray
    positions: np.ndarray


def split_pictures(people: Sequence[int], seed: int) -> np.ndarray:
    """Choose half of each person's pictures at random; True marks the attacker's gallery, False what is released."""
    draw = pd.Series(np.random.default_rng(seed).random(len(people))).groupby(np.asarray(people))
    if draw.size().min() < 2:
        raise ValueError("somebody has one picture: two or more are needed, one on each side")
    return (draw.rank() <= draw.transform("size") // 2).to_numpy()


def cell_means(pictures: np.ndarray, cell: int) -> np.ndarray:
    """Return the mean of every square of `cell` x `cell` pixels (smaller at the right and lower edge), (n, rows, columns)."""
    pictures = _check_pictures(pictures)
    if not 1 <= cell <= min(pictures.shape[1:]):
        raise ValueError(f"cell must be 1 to {min(pictures.shape[1:])} pixels, the picture's shorter side")
    for axis in (1, 2):
        starts = np.arange(0, pictures.shape[axis], cell)
        sizes = np.diff([*starts, pictures.shape[axis]])
        pictures = np.add.reduceat(pictures, starts, axis=axis) / np.expand_dims(sizes, (0, 3 - axis))
    return pictures


def naive_mosaic(pictures: np.ndarray, cell: int = 16) -> np.ndarray:
    """Replace every square of `cell` x `cell` pixels by its mean."""
    return _paint(cell_means(pictures, cell), cell, np.shape(pictures)[1:])


def attack_faces(gallery: np.ndarray, people: Sequence[int], released: np.ndarray) -> np.ndarray:
    """Name each of the m released pictures after the person on the nearest of the n in the gallery (Euclidean); returns (m,)."""
    gallery, released = _check_pictures(gallery), _check_pictures(released)
    if gallery.shape[1:] != released.shape[1:] or len(gallery) != len(people):
        raise ValueError(
            "gallery and released must have the same height and width, and gallery one name a picture"
        )
    return nearest_person(gallery, people, released)


def nearest_person(gallery: np.ndarray, names: Sequence[int], released: np.ndarray) -> np.ndarray:
    """Do what `attack_faces` does, without its checks."""
    known, unknown = (array.reshape(len(array), -1) for array in (gallery, released))
    return KNeighborsClassifier(n_neighbors=1).fit(known, names).predict(unknown)


def average_k(pictures: np.ndarray, k: int) -> np.ndarray:
    """Replace each picture by the average of a group of `k` similar ones (k-same).

    Pass one picture a person, (n, height, width). Whoever names the results from their looks gets at most one of each group right,
    so at most 1 in `k`: provided every picture is of another person, and no second release of the same people exists. Newton,
    Sweeney and Malin 2005, DOI 10.1109/TKDE.2005.32.
    """
    pictures = _check_pictures(pictures)
    if not 2 <= k <= len(pictures):
        raise ValueError(
            f"k must be 2 to {len(pictures)}, the number of pictures; 1 would publish them as they are"
        )
    return average_groups(pictures, k)


def average_groups(pictures: np.ndarray, k: int) -> np.ndarray:
    """Do what `average_k` does, without its checks."""
    flat = pictures.reshape(len(pictures), -1)
    distance, released, left = cdist(flat, flat), np.empty_like(flat), np.arange(len(pictures))
    while len(left):
        # The last group takes the remainder, which alone would be smaller than k.
        size = k if len(left) >= 2 * k else len(left)
        group = left[np.argsort(distance[left[0], left], kind="stable")[:size]]
        released[group] = flat[group].mean(axis=0)
        left = np.setdiff1d(left, group)
    return released.reshape(pictures.shape)


def release_mosaic(
    pictures: np.ndarray, epsilon: float, cell: int = 16
) -> tuple[np.ndarray, PrivacyGuarantee]:
    """Release mosaics with Laplace noise on every cell: differentially private for each picture by itself.

    Replacing one picture by any other can move every cell by 255, so the L1 sensitivity is the number of cells times 255. The noise is OpenDP's, on means rounded to whole grey levels; values are then
    cut to 0 to 255, which costs nothing. `epsilon` is for one picture: whoever is on five has five times as much.
    """
    means = np.rint(cell_means(pictures, cell)).astype(int)
    if means.min() < 0 or means.max() > WHITE:
        raise ValueError("pixels must be 0 to 255: the sensitivity is computed from that range")
    check_epsilon(epsilon)
    sensitivity = means[0].size * WHITE
    scale = sensitivity / epsilon
    noisy = add_laplace(means, scale).clip(0, WHITE)
    guarantee = laplace_guarantee(scale, sensitivity, unit="record", adjacency="replace")
    return _paint(noisy, cell, np.shape(pictures)[1:]).astype(float), guarantee


def simulate_traces(
    people: int = 20_000, antennas: int = 1_000, days: int = 60, calls_a_day: float = 3.8, seed: int = 0
) -> Traces:
    """Simulate where and when people use their phones, by exploration and preferential return.

    Everybody moves alone and calls at any hour alike: there are no families, no colleagues and no nights in it.

    Antennas of heavy-tailed popularity are scattered over a square of 200 km; `calls_a_day` is the mean of a log-normal distribution. Song et al.
    2010, DOI 10.1038/nphys1760.
    """
    if min(people, antennas, days) < 2 or not 0 < calls_a_day <= 24:
        raise ValueError(
            "people, antennas and days must be 2 or more, and calls_a_day above 0 and at most 24"
        )
    rng = np.random.default_rng(seed)
    popularity, positions = rng.pareto(1.2, antennas) + 1, rng.random((antennas, 2)) * 200
    weight = popularity * (cdist(positions, positions) + 1) ** -(1 + ALPHA)
    np.fill_diagonal(weight, 0)
    jumps = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
    # Row l of the cumulative chances lies in (l, l + 1]: one sorted array answers a jump from any antenna.
    jumps = np.minimum(jumps, 1.0) + np.arange(antennas)[:, None]
    chance = rng.lognormal(0, 1, people)
    chance = np.minimum(chance * calls_a_day / 24 / chance.mean(), 0.9)
    here = rng.choice(antennas, people, p=popularity / popularity.sum())
    visits = np.empty((people, 24 * days + 1), np.int32)
    visits[:, 0], number, places = here, np.ones(people, int), np.ones(people, int)
    wait, seen = rng.integers(1, 12, people), []
    for hour in range(24 * days):
        caller = np.flatnonzero(rng.random(people) < chance)
        seen.append((caller, np.full(len(caller), hour), here[caller]))
        wait -= 1
        mover = np.flatnonzero(wait <= 0)
        new = rng.random(len(mover)) < RHO * places[mover] ** -GAMMA
        explorer, returner = mover[new], mover[~new]
        found = np.searchsorted(jumps.ravel(), here[explorer] + rng.random(len(explorer)), side="right")
        # A return picks one of the past visits, so a place that was visited often is picked often.
        past = visits[returner, (rng.random(len(returner)) * number[returner]).astype(int)]
        here[explorer], here[returner] = np.minimum(found - here[explorer] * antennas, antennas - 1), past
        places[explorer] += 1
        visits[mover, number[mover]] = here[mover]
        number[mover] += 1
        wait[mover] = np.minimum((1 - rng.random(len(mover))) ** (-1 / BETA), LONGEST_STAY).astype(int) + 1
    return Traces(*(np.concatenate(column) for column in zip(*seen, strict=True)), positions)


def merge_antennas(positions: np.ndarray, regions: int) -> np.ndarray:
    """Group antennas into `regions` compact regions of equal size by halving along the longer side; returns (antennas,)."""
    positions = np.asarray(positions, float)
    if regions < 1 or regions & (regions - 1) or regions > len(positions):
        raise ValueError(f"regions must be a power of two, at most the {len(positions)} antennas")
    region = np.zeros(len(positions), int)
    for _ in range(regions.bit_length() - 1):
        halved = np.empty_like(region)
        for number in np.unique(region):
            inside = np.flatnonzero(region == number)
            longer = np.ptp(positions[inside], axis=0).argmax()
            rank = positions[inside, longer].argsort(kind="stable").argsort(kind="stable")
            halved[inside] = 2 * number + (rank >= len(inside) // 2)
        region = halved
    return region


def places_unicity(
    person: np.ndarray,
    place: np.ndarray,
    hour: np.ndarray,
    points: int = 4,
    sample: int = 1_000,
    seed: int = 0,
) -> np.ndarray:
    """Return the share of people whom 1, 2, ... `points` of their own (place, hour) points single out, shape (points,).

    Each call is a point (person, place, hour), as whole numbers of 0 or more, none missing; calls that coarsening made equal count once. `sample`
    people are drawn among those who have enough points, and their points at random. De Montjoye et al.
    2013, DOI 10.1038/srep01376.
    """
    person, place, hour = (_check_whole(column) for column in (person, place, hour))
    if not len(person) == len(place) == len(hour):
        raise ValueError("person, place and hour must have one entry for each call")
    if points < 1 or sample < 1:
        raise ValueError("points and sample must be 1 or more")
    cell = place * (hour.max(initial=0) + 1) + hour
    size = cell.max(initial=0) + 1, person.max(initial=0) + 1
    # The same distinct (person, cell) pairs twice: sorted by person for the target's points, by cell for who else was there.
    owner, cell = np.divmod(np.unique(person * size[0] + cell), size[0])
    sorted_cell, visitors = np.divmod(np.sort(cell * size[1] + owner), size[1])
    own = np.searchsorted(owner, np.arange(size[1] + 1))
    eligible = np.flatnonzero(np.diff(own) >= points)
    if not len(eligible):
        raise ValueError(f"nobody has {points} points: ask for fewer")
    rng = np.random.default_rng(seed)
    alone = []
    for target in rng.permutation(eligible)[:sample]:
        known = cell[rng.choice(np.arange(own[target], own[target + 1]), points, replace=False)]
        starts, ends = (np.searchsorted(sorted_cell, known, side=side) for side in ("left", "right"))
        alone.append(_alone_after([visitors[a:b] for a, b in zip(starts, ends, strict=True)]))
    return np.mean(alone, axis=0)


def ratings_unicity(
    ratings: pd.DataFrame, points: int = 8, rating_slack: float = 1.0, day_slack: float = 14.0, seed: int = 0
) -> np.ndarray:
    """Return the share of users whom 1, 2, ... `points` of their own ratings single out, shape (points,).

    `ratings` has the columns user, film, rating and day. The attacker may be off by `rating_slack` stars and `day_slack` days;
    ``math.inf`` ignores them. Users with fewer ratings are left out; a missing value is refused. After Narayanan
    and Shmatikov 2008, DOI 10.1109/SP.2008.33.
    """
    _check_ratings(ratings, ["user", "film", "rating", "day"])
    if points < 1 or not rating_slack >= 0 or not day_slack >= 0:
        raise ValueError("points must be 1 or more, and the slacks 0 or more")
    by_film = ratings.groupby("film")[["user", "rating", "day"]]
    rows = {film: part.to_numpy(float) for film, part in by_film}
    rng = np.random.default_rng(seed)
    alone = []
    for _, own in ratings.groupby("user")[["film", "rating", "day"]]:
        if len(own) < points:
            continue
        fitting = []
        for film, stars, day in own.to_numpy(float)[rng.choice(len(own), points, replace=False)]:
            others = rows[film]
            near = (abs(others[:, 1] - stars) <= rating_slack) & (abs(others[:, 2] - day) <= day_slack)
            fitting.append(np.unique(others[near, 0]))
        alone.append(_alone_after(fitting))
    if not alone:
        raise ValueError(f"nobody has {points} ratings: ask for fewer")
    return np.mean(alone, axis=0)


def release_counts(
    ratings: pd.DataFrame, column: str, values: Sequence, epsilon: float, most: int = 20
) -> tuple[pd.Series, PrivacyGuarantee]:
    """Count the ratings of each film, or of each number of stars: differentially private for users, with all their ratings.

    At most `most` ratings of a user are counted, drawn at random: adding or removing a user moves the counts by so much in all, the
    L1 sensitivity. `values` of `column` is what is counted: a public list, not one taken from the ratings, where a film that one
    user alone has rated gives her away. The counts, a Series by value, may be negative.
    """
    check_epsilon(epsilon)
    _check_ratings(ratings, ["user", "film", column])
    if most < 1:
        raise ValueError("most must be 1 or more films a user")
    # Fresh, not seeded: with a seed, one person's presence would decide in advance which ratings of others are drawn.
    shuffled = ratings.sample(frac=1, random_state=np.random.default_rng(secrets.randbits(128)))
    kept = shuffled.drop_duplicates(["user", "film"]).groupby("user").head(most)
    counts = kept[column].value_counts().reindex(list(values), fill_value=0)
    noisy = pd.Series(add_laplace(counts.to_numpy(), most / epsilon), counts.index)
    return noisy, laplace_guarantee(most / epsilon, most, unit="user", adjacency="add/remove")


def _paint(means: np.ndarray, cell: int, shape: tuple[int, int]) -> np.ndarray:
    return means.repeat(cell, axis=1).repeat(cell, axis=2)[:, : shape[0], : shape[1]]


def _check_whole(column: np.ndarray) -> np.ndarray:
    column = np.asarray(column)
    if column.dtype.kind not in "iuf" or not (np.isfinite(column) & (column >= 0) & (column % 1 == 0)).all():
        raise ValueError(
            "person, place and hour must be whole numbers of 0 or more: drop missing calls first"
        )
    return column.astype(np.int64)


def _check_ratings(ratings: pd.DataFrame, columns: Sequence[str]) -> None:
    demand_columns(columns, ratings.columns)
    if ratings[list(columns)].isna().any(axis=None):
        raise ValueError("a rating lacks its user, film, stars or day: drop such rows first")


def _check_pictures(pictures: np.ndarray) -> np.ndarray:
    pictures = np.asarray(pictures, float)
    if pictures.ndim != 3 or not pictures.size or not np.isfinite(pictures).all():
        raise ValueError(
            "pictures must be a finite array (pictures, height, width): add a first axis to a single one"
        )
    return pictures


def _alone_after(groups: Sequence[np.ndarray]) -> list[bool]:
    """Tell after each group whether exactly one member is in all groups so far; members of a group are sorted and distinct."""
    left, alone = groups[0], [len(groups[0]) == 1]
    for group in groups[1:]:
        left = left if len(left) == 1 else np.intersect1d(left, group, assume_unique=True)
        alone.append(len(left) == 1)
    return alone
