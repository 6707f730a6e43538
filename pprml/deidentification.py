"""Tables without names: how they are joined back, what hides a phone number, and what k-anonymity buys and costs.

For teaching. A keyed token is a pseudonym, not anonymity, and `anonymize_k` chooses its steps greedily.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import bdtr

from pprml import datasets
from pprml._files import name_nearest

#: How many equally likely birth dates, months or years lie within one year of age.
CELLS_PER_YEAR = {"day": 365.25, "month": 12, "year": 1}

Level = Callable[[pd.Series], pd.Series]


class LinkageScore(NamedTuple):
    """Share of the claimed pairs that are right, and share of the true pairs that were found."""

    precision: float
    recall: float


class Release(NamedTuple):
    """The rows that may be published (reset their index first), how often each column was coarsened, who is left out."""

    frame: pd.DataFrame
    levels: dict[str, int]
    suppressed: pd.Index


def attack_linkage(left: pd.DataFrame, right: pd.DataFrame, on: Sequence[str]) -> pd.MultiIndex:
    """Join two tables on shared columns and keep only the matches that are unambiguous in both.

    Parameters
    ----------
    left, right : DataFrame
        One row a person; the index names the row.
    on : sequence of str
        Columns that both tables hold. A row with a missing value matches nothing.

    Returns
    -------
    MultiIndex
        Pairs (index of left, index of right).
    """
    on = list(on)
    keys = []
    for frame, name in ((left, "left"), (right, "right")):
        _check_columns(frame, on)
        # pandas joins a missing value with a missing value: those rows go first.
        known = frame[on].dropna()
        keys.append(known[~known.duplicated(keep=False)].rename_axis(name).reset_index())
    return pd.MultiIndex.from_frame(keys[0].merge(keys[1], on=on)[["left", "right"]])


def score_linkage(pairs: pd.MultiIndex, truth: pd.MultiIndex) -> LinkageScore:
    """Compare claimed pairs with the true ones; no claim at all has precision 0."""
    if len(truth) == 0:
        raise ValueError("truth is empty: pass the true pairs")
    correct = pairs.isin(truth).sum()
    return LinkageScore(correct / max(len(pairs), 1), correct / len(truth))


def share_in_small_groups(
    zip_sizes: Sequence[int], shares: Sequence[float], cells_each: float = 1.0, at_most: int = 1
) -> float:
    """Return the expected share of people whose group has `at_most` members.

    A group is the people of one ZIP code in one cell. A person in a cell of probability q, in a ZIP of N people, has
    Binomial(N - 1, q) companions: with ``at_most=1`` the answer is ``sum N p (1 - q)**(N - 1) / sum N``.

    Parameters
    ----------
    zip_sizes : sequence of int, shape (zips,)
        People a ZIP.
    shares : sequence of float, shape (classes,)
        Share of the population in each class (age and sex, say); they sum to 1.
    cells_each : float
        Equally likely cells (days of birth, say) that each class is divided into.
    at_most : int
        Largest group that counts; 1 counts the unique.

    Returns
    -------
    float
        Between 0 and 1, over people, not over ZIPs.
    """
    sizes, shares = np.asarray(zip_sizes, float), np.asarray(shares, float)
    if sizes.size == 0 or not np.isfinite(sizes).all() or (sizes < 1).any() or (sizes % 1).any():
        raise ValueError("zip_sizes must be whole numbers of 1 or more: drop missing and empty ZIPs first")
    if not np.isclose(shares.sum(), 1) or (shares < 0).any():
        raise ValueError("shares must be 0 or more and sum to 1: divide the counts by their sum")
    if at_most < 1 or cells_each < 1:
        raise ValueError("at_most and cells_each must be 1 or more")
    others = sizes.astype(np.int64) - 1
    # bdtr is the binomial distribution function; a ZIP with fewer others than asked for has a group small enough.
    most_others = np.minimum(at_most - 1, others)
    people = sum(share * (sizes @ bdtr(most_others, others, share / cells_each)) for share in shares)
    return float(people / sizes.sum())


def us_unique_share(precision: str = "day", at_most: int = 1, mean_zip: bool = False) -> float:
    """Apply `share_in_small_groups` to ZIP code, sex and birth date (or month, or year) in the US of 2010.

    Every ZIP gets the national age and sex pyramid. ``mean_zip=True`` also gives every ZIP the same size: the
    back-of-envelope mistake, kept here to be measured.
    """
    if precision not in CELLS_PER_YEAR:
        raise ValueError(name_nearest("precision", precision, CELLS_PER_YEAR))
    sizes = datasets.load("us_zip_population")
    sizes = [round(sizes.mean())] if mean_zip else sizes
    return share_in_small_groups(sizes, us_age_sex_shares(), CELLS_PER_YEAR[precision], at_most)


def us_age_sex_shares() -> np.ndarray:
    """Return the share of the US population of 2010 in each year of age and sex, shape (202,)."""
    counts = datasets.load("us_age_sex")[["male", "female"]].to_numpy(float).ravel()
    return counts / counts.sum()


def make_phone_numbers(count: int, seed: int, area_code: str = "555") -> list[str]:
    """Make up `count` different ten-digit numbers of one area code (555 is nobody's), 200-0000 to 999-9999."""
    if not 1 <= count <= 8_000_000 or not re.fullmatch(r"[0-9]{3}", area_code):
        raise ValueError("count must be 1 to 8,000,000 and area_code three digits")
    local = np.random.default_rng(seed).choice(8_000_000, size=count, replace=False) + 2_000_000
    return [f"{area_code}{number}" for number in local]


def naive_hash(number: str) -> str:
    """Replace a ten-digit phone number by its SHA-256 hash. Anyone can compute it, so anyone can undo it."""
    return hashlib.sha256(_digits(number)).hexdigest()


def pseudonymize(number: str, key: bytes) -> str:
    """Replace a ten-digit phone number by its HMAC-SHA-256 under a secret key.

    Without the key a token cannot be enumerated; with the same key the same number still gets the same token. A key
    shorter than 16 bytes is refused with a ValueError: it could be enumerated like the numbers.
    """
    if not isinstance(key, bytes) or len(key) < 16:
        raise ValueError("key must be 16 bytes or more: make one with secrets.token_bytes(32)")
    return hmac.digest(key, _digits(number), "sha256").hex()


def attack_hash(
    tokens: Iterable[str], area_code: str, exchanges: Iterable[int] = range(200, 1000)
) -> dict[str, str]:
    """Hash every number of an area code, keeping in memory only the hashes that are among the tokens.

    Parameters
    ----------
    tokens : iterable of str
        Hexadecimal SHA-256 hashes.
    area_code : str
        Three digits.
    exchanges : iterable of int
        The next three digits to try; all 800 by default, 8 million numbers.

    Returns
    -------
    dict of str to str
        Token to phone number, for the tokens found.
    """
    if not re.fullmatch(r"[0-9]{3}", area_code):
        raise ValueError("area_code must be three digits")
    wanted = {bytes.fromhex(token) for token in tokens}
    lines = [b"%04d" % line for line in range(10_000)]
    found = {}
    for exchange in exchanges:
        stem = f"{area_code}{exchange:03d}".encode()
        for line in lines:
            digest = hashlib.sha256(stem + line).digest()
            if digest in wanted:
                found[digest.hex()] = (stem + line).decode()
    return found


def _digits(number: str) -> bytes:
    if not re.fullmatch(r"[0-9]{10}", str(number)):
        raise ValueError("a phone number must be ten digits: strip blanks, signs and the country code first")
    return str(number).encode()


def group_sizes(frame: pd.DataFrame, quasi_identifiers: Sequence[str]) -> pd.Series:
    """Return for each row how many rows share its quasi-identifiers; a missing value is a value of its own."""
    columns = list(quasi_identifiers)
    _check_columns(frame, columns)
    # Left to itself, groupby drops rows with a missing value, and the smallest group with them.
    return frame.groupby(columns, dropna=False, observed=True, sort=False)[columns[0]].transform("size")


def k_of(frame: pd.DataFrame, quasi_identifiers: Sequence[str]) -> int:
    """Return k, the size of the smallest group."""
    return int(group_sizes(frame, quasi_identifiers).min())


def uniqueness(frame: pd.DataFrame, quasi_identifiers: Sequence[str]) -> float:
    """Return the share of rows that are alone in their group."""
    return float((group_sizes(frame, quasi_identifiers) == 1).mean())


def reidentification_rate(frame: pd.DataFrame, quasi_identifiers: Sequence[str]) -> float:
    """Return how often an attacker is right who knows a person's quasi-identifiers and guesses within the group.

    The mean of 1 / group size, which is groups / rows. The attacker knows that the person is in the table.
    """
    return float((1 / group_sizes(frame, quasi_identifiers)).mean())


def homogeneous_share(frame: pd.DataFrame, quasi_identifiers: Sequence[str], sensitive: str) -> float:
    """Return the share of rows whose whole group has one value of `sensitive`: no guess within the group is needed."""
    columns = list(quasi_identifiers)
    _check_columns(frame, [*columns, sensitive])
    # The value counts as one more column: a group is homogeneous where adding it leaves the group its size.
    return float((group_sizes(frame, columns) == group_sizes(frame, [*columns, sensitive])).mean())


def generalize(
    frame: pd.DataFrame, levels: Mapping[str, int], hierarchies: Mapping[str, Sequence[Level]]
) -> pd.DataFrame:
    """Return a copy of `frame` with each column of `levels` taken to that level of its hierarchy (0: as it is)."""
    _check_columns(frame, levels)
    coarse = {name: hierarchies[name][level - 1](frame[name]) for name, level in levels.items() if level}
    return frame.assign(**coarse)


def anonymize_k(
    frame: pd.DataFrame,
    quasi_identifiers: Sequence[str],
    k: int,
    hierarchies: Mapping[str, Sequence[Level]],
    max_suppressed: float = 0.02,
) -> Release:
    """Coarsen the column with the most values until few rows are in groups below `k`, then leave those rows out.

    Parameters
    ----------
    frame : DataFrame
        One row a person. Columns that are not quasi-identifiers are published as they are.
    quasi_identifiers : sequence of str
        What an attacker may know.
    k : int
        Smallest group allowed.
    hierarchies : mapping of str to sequence of callable
        For each quasi-identifier its coarser versions, finest first; each takes the original column.
    max_suppressed : float
        Largest share of rows that may be left out.

    Returns
    -------
    Release

    Raises
    ------
    ValueError
        A column or hierarchy is missing, `k` is out of range, or the hierarchies end too early.

    References
    ----------
    Sweeney 2002, "Achieving k-anonymity privacy protection using generalization and suppression" (the Datafly
    procedure), DOI 10.1142/S021848850200165X.
    """
    columns = list(quasi_identifiers)
    _check_columns(frame, columns)
    if missing := [name for name in columns if name not in hierarchies]:
        raise ValueError(f"hierarchies has no entry for {missing[0]!r}: an empty list keeps it as it is")
    if not 1 <= k <= len(frame):
        raise ValueError(f"k must be 1 to {len(frame)}, the number of rows; it is {k}")
    if not 0 <= max_suppressed < 1:
        raise ValueError("max_suppressed must be 0 or more and below 1")
    levels = dict.fromkeys(columns, 0)
    while True:
        coarse = generalize(frame, levels, hierarchies)
        small = group_sizes(coarse, columns) < k
        if small.mean() <= max_suppressed:
            return Release(coarse[~small], levels, frame.index[small])
        left = [name for name in columns if levels[name] < len(hierarchies[name])]
        if not left:
            raise ValueError(f"hierarchies end before groups of {k}: add a level or raise max_suppressed")
        levels[max(left, key=lambda name: coarse[name].nunique(dropna=False))] += 1


def _check_columns(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    if len(frame) == 0:
        raise ValueError("the frame is empty: pass at least one row")
    if not list(columns):
        raise ValueError("no column is named: pass at least one quasi-identifier")
    for name in columns:
        if name not in frame.columns:
            raise ValueError(name_nearest("column", str(name), map(str, frame.columns)))
