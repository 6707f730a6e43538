"""What a table says about people beyond their names: proxies, chance matches, groups that talk, and counts with noise.

For teaching.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, gammaln
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from pprml._noise import add_laplace
from pprml._tables import check_columns, demand_columns, refuse_mixed
from pprml.accounting import PrivacyGuarantee, laplace_guarantee


def encode_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with text as whole numbers (alphabetical order); numbers and missing values stay."""
    return frame.apply(
        lambda c: c if pd.api.types.is_numeric_dtype(c) else c.astype("category").cat.codes.where(c.notna())
    )


def fit_scores(learn: pd.DataFrame, labels: np.ndarray, test: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """Fit boosted trees on encoded columns; return the chance of True for each row of `test`, (rows,)."""
    if len(np.unique(labels)) != 2:
        raise ValueError("labels must hold both True and False")
    # No early stopping: it would set aside part of the rows, by chance.
    settings = dict(max_iter=40, learning_rate=0.25, early_stopping=False, random_state=seed)
    model = HistGradientBoostingClassifier(**settings)
    # One thread: several wait for each other on a busy machine, and take ten times as long.
    with threadpool_limits(1):
        return model.fit(learn, labels).predict_proba(test)[:, 1]


def attack_removed_column(frame: pd.DataFrame, removed: pd.Series, seed: int) -> float:
    """Predict a yes-or-no column that was removed from a table out of the columns that stay.

    The attacker learns from two thirds of the rows. Returns the AUC on the other third: 0.5 where the column is really gone.
    Raises ValueError where `removed` is still in the frame, has another index, or is not bool.
    """
    if removed.name in frame:
        raise ValueError(f"{removed.name!r} is still in the frame: drop it first")
    if removed.dtype != bool or not removed.index.equals(frame.index):
        raise ValueError("removed must be bool and have the frame's index")
    learn, test = train_test_split(frame.index, test_size=1 / 3, random_state=seed, stratify=removed)
    coded = encode_columns(frame)
    scores = fit_scores(coded.loc[learn], removed[learn].to_numpy(), coded.loc[test], seed)
    return float(roc_auc_score(removed[test], scores))


def estimate_correct_matches(sizes: Sequence[int], rate: float) -> float:
    """Estimate how often a person found alone in a sample is the person looked for, from the sample alone.

    Parameters
    ----------
    sizes : sequence of int
        For each row of a simple random sample how many rows share its quasi-identifiers (rows,).
    rate : float
        Share of the population that was sampled.

    Returns
    -------
    float
        Of all people of the population who match a row that is alone in the sample, the share that is that row's own.

    Raises
    ------
    ValueError
        The rate is out of range, or the sample has no group of one or none of two.

    References
    ----------
    Skinner and Elliot 2002, DOI 10.1111/1467-9868.00365.
    """
    _check_rate(rate)
    ones, twos = (np.asarray(sizes) == 1).sum(), (np.asarray(sizes) == 2).sum() / 2
    if not ones or not twos:
        raise ValueError("no row of the sample is alone, or none is in a pair: take a larger sample")
    # Drop one of a pair and the other looks unique: pairs tell how many unique rows have a twin outside the sample.
    return float(rate * ones / (rate * ones + 2 * (1 - rate) * twos))


def estimate_population_uniqueness(sizes: Sequence[int], rate: float) -> float:
    """Estimate the share of a population that is unique, from a sample alone, by Pitman's sampling formula.

    The model: people come in one by one, and with g groups among the first n the next is alone with probability
    (theta + g alpha) / (theta + n), or else joins a group of m with probability (m - alpha) / (theta + n). The two numbers are fitted
    to the sample by maximum likelihood, and the model is run on to the size of the population.

    Parameters
    ----------
    sizes : sequence of int
        For each row of a simple random sample how many rows share its quasi-identifiers (rows,).
    rate : float
        Share of the population that was sampled.

    Returns
    -------
    float
        Share of the population's people who are alone with their quasi-identifiers.

    Raises
    ------
    ValueError
        The rate is out of range, nobody or everybody is alone in the sample, or the sizes are not those of groups.

    References
    ----------
    Pitman 1995, DOI 10.1007/BF01213386; compared with other estimators on clinical data by Dankar et al. 2012,
    DOI 10.1186/1472-6947-12-66.
    """
    _check_rate(rate)
    size, rows = np.unique(np.asarray(sizes), return_counts=True)
    if (size < 1).any() or (rows % size).any():
        raise ValueError("sizes must hold for each row the size of its group: n rows for each group of n")
    people, groups = rows.sum(), rows / size
    alone = groups[size == 1].sum()
    if not 0 < alone < people:
        raise ValueError("nobody or everybody is alone in the sample: take another sample or other columns")
    if rate == 1:
        return float(alone / people)
    others = np.arange(1, groups.sum())

    def loss(settings: np.ndarray) -> float:
        alpha, theta = expit(settings[0]), np.exp(settings[1])
        rising = gammaln(theta + people) - gammaln(theta + 1)
        joined = groups @ (gammaln(size - alpha) - gammaln(1 - alpha))
        return (rising - np.log(theta + alpha * others).sum() - joined) / people

    fit = minimize(loss, [0, np.log(people)], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12})
    alpha, theta, total = expit(fit.x[0]), np.exp(fit.x[1]), people / rate
    log_share = gammaln(theta + 1) - gammaln(theta + alpha) + gammaln(theta + alpha + total - 1)
    return float(np.exp(log_share - gammaln(theta + total)))


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"rate is the share of the population sampled: above 0 and at most 1, not {rate}")


def split_groups(
    frame: pd.DataFrame, quasi_identifiers: Sequence[str], allowed: Callable[[np.ndarray], bool]
) -> pd.Series:
    """Cut a table into groups, halving each at the median of its widest column for as long as both halves are allowed.

    Parameters
    ----------
    frame : DataFrame
        One row a person. Text columns are taken in alphabetical order.
    quasi_identifiers : sequence of str
        Columns to cut by; a release shows of each group only the range of these.
    allowed : callable
        Takes the positions of rows (n,) and tells whether they may be a group.

    Returns
    -------
    Series of int
        The group of each row, in the frame's order.

    Raises
    ------
    ValueError
        The whole table is not allowed as one group, the frame has no row, or a column is missing or mixes types.

    References
    ----------
    LeFevre, DeWitt and Ramakrishnan 2006 ("Mondrian"), DOI 10.1109/ICDE.2006.101.
    """
    check_columns(frame, quasi_identifiers)
    refuse_mixed(frame, quasi_identifiers)
    codes = encode_columns(frame[list(quasi_identifiers)]).fillna(-1).rank(method="dense").to_numpy()
    codes = codes / codes.max(axis=0)
    if not allowed(np.arange(len(frame))):
        raise ValueError("even the whole table is not allowed as one group: ask for less")
    return pd.Series(halve_groups(codes, allowed), index=frame.index)


def halve_groups(codes: np.ndarray, allowed: Callable[[np.ndarray], bool]) -> np.ndarray:
    """Halve the rows of an array at the median of their widest column for as long as both halves are `allowed`.

    Returns the group of each row, counted from 0. `split_groups` numbers the columns of a table for it, each from 0 to 1.
    """
    group, waiting = np.full(len(codes), -1), [np.arange(len(codes))]
    while waiting:
        rows = waiting.pop()
        for column in np.argsort(-np.ptp(codes[rows], axis=0), kind="stable"):
            values = codes[rows, column]
            middle = np.median(values)
            low = values <= middle if middle < values.max() else values < middle
            halves = rows[low], rows[~low]
            if all(len(half) and allowed(half) for half in halves):
                waiting += halves
                break
        else:
            group[rows] = group.max() + 1
    return group


def attack_intersection(groups: Sequence[pd.Series], sensitive: pd.Series) -> pd.DataFrame:
    """Intersect what several releases say about each person.

    Parameters
    ----------
    groups : sequence of Series
        For each release the group of every person it holds, by the person's label; people whom it left out are absent.
    sensitive : Series
        The sensitive value of every person (one missing value counts as a value).

    Returns
    -------
    DataFrame of bool
        People x values: True where no release rules the value out. About people in no release every value stays possible.

    Raises
    ------
    ValueError
        A release holds somebody who has no sensitive value, or a person is named twice.
    """
    values = sensitive.astype(object).where(sensitive.notna(), "(missing)")
    names = sorted(values.unique())
    possible = pd.DataFrame(True, index=sensitive.index, columns=names)
    for release in groups:
        if not (
            release.index.is_unique and values.index.is_unique and release.index.isin(values.index).all()
        ):
            raise ValueError("each release must hold people of `sensitive`, each once")
        seen = pd.crosstab(release, values[release.index]).reindex(columns=names, fill_value=0) > 0
        possible.loc[release.index] &= seen.loc[release].to_numpy()
    return possible


def count_cells(frame: pd.DataFrame, values: Mapping[str, Sequence[Hashable]]) -> pd.Series:
    """Count the rows of every combination of values, with the combinations that nobody has.

    Which values exist must be known without looking at the table: a cell that appears only when somebody is in it gives that
    person away before any noise. A row adds 1 to one count; a frame without rows has a count of 0 in every cell. Raises ValueError
    where a row has a value that is not listed, and where a column is not in the frame or none is named.
    """
    if not values:
        raise ValueError("no column is named: list the values of at least one")
    demand_columns(values, frame.columns)
    for name, listed in values.items():
        if not frame[name].isin(list(listed)).all():
            raise ValueError(
                f"column {name!r} has values that are not listed, or missing ones: list or map them"
            )
    cells = pd.MultiIndex.from_product(list(values.values()), names=list(values))
    return frame.groupby(list(values), observed=True).size().reindex(cells, fill_value=0)


def release_histogram(counts: pd.Series, scale: float) -> tuple[pd.Series, PrivacyGuarantee]:
    """Add noise to counts by OpenDP's discrete Laplace mechanism, drawn afresh in each call from the system's secure source.

    Parameters
    ----------
    counts : Series of int
        Of `count_cells`, where one record adds 1 to one count.
    scale : float
        Scale of the noise, in people.

    Returns
    -------
    tuple of (Series of int, PrivacyGuarantee)
    """
    if not pd.api.types.is_integer_dtype(counts):
        raise ValueError("counts must be whole numbers: pass what count_cells returns")
    # Sensitivity 1: adding or removing a record changes one count by 1.
    guarantee = laplace_guarantee(scale, sensitivity=1, unit="record", adjacency="add/remove")
    return pd.Series(add_laplace(counts.to_numpy(), scale), index=counts.index), guarantee


def attack_differencing(before: np.ndarray, after: np.ndarray, seed: int = 0) -> np.ndarray:
    """Guess in which of two cells a person was who left between two releases.

    `before` and `after` hold the released counts of both cells, (trials, 2). Returns the cell that fell by more, 0 or 1,
    (trials,); a coin with this seed, and a stream that is its own, settles ties.
    """
    before, after = np.asarray(before), np.asarray(after)
    if before.shape != after.shape or before.shape[1:] != (2,):
        raise ValueError("before and after must both be (trials, 2)")
    fell = before - after
    coin = np.random.default_rng([seed, len(fell)]).integers(0, 2, len(fell))
    return np.where(fell[:, 0] == fell[:, 1], coin, fell.argmax(axis=1))


def accuracy_bound(guarantee: PrivacyGuarantee) -> float:
    """Return the best accuracy that any attacker can have who tells two neighbouring tables apart, each as likely as the other."""
    if guarantee.delta:
        raise ValueError("this bound is for delta 0")
    return float(1 / (1 + np.exp(-guarantee.epsilon)))
