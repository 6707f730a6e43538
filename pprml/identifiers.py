"""Identifiers: whom a ZIP code, a sex and a birth date single out, what hides a phone number, and what Safe Harbor removes.

For teaching. A keyed token is a pseudonym, not anonymity. `apply_safe_harbor` follows the form of the HIPAA rule; whether a table
meets it is a question for a lawyer.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import bdtr

from pprml import datasets
from pprml._files import name_nearest

#: How many equally likely birth dates, months or years lie within one year of age.
CELLS_PER_YEAR = {"day": 365.25, "month": 12, "year": 1}

#: The three digits that may follow an area code.
EXCHANGES = range(200, 1000)

#: What Safe Harbor does with a column.
SAFE_HARBOR_KINDS = ("remove", "date", "age", "postcode", "keep")


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
    tokens: Iterable[str], area_code: str, exchanges: Iterable[int] = EXCHANGES
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
    wanted, found = {bytes.fromhex(token) for token in tokens}, {}
    lines = [b"%04d" % line for line in range(10_000)]
    for exchange in exchanges:
        stem = f"{area_code}{exchange:03d}".encode()
        for line in lines:
            digest = hashlib.sha256(stem + line).digest()
            if digest in wanted:
                found[digest.hex()] = (stem + line).decode()
    return found


def apply_safe_harbor(
    frame: pd.DataFrame, kinds: Mapping[str, str], year: int, large_areas: Sequence[str] = ()
) -> pd.DataFrame:
    """Apply the form of HIPAA's Safe Harbor to a table.

    Parameters
    ----------
    frame : DataFrame
        One row a person.
    kinds : mapping of str to str
        For every column one of `SAFE_HARBOR_KINDS`: ``"remove"`` (names, addresses below the state, numbers of any kind, ...),
        ``"date"`` (text YYYYMMDD of a birth; its year stays), ``"age"`` (years), ``"postcode"`` (three digits stay), ``"keep"``.
    year : int
        Year of the release: people who are 90 or older in it become one class.
    large_areas : sequence of str
        Three-digit postcodes whose areas hold more than 20,000 people; the others become ``"000"``.

    Returns
    -------
    DataFrame

    Raises
    ------
    ValueError
        A column has no kind or an unknown one (the rule is about every column), a date is not text YYYYMMDD, a postcode is not
        text, or an age is not a number. Missing values stay missing.

    References
    ----------
    US 45 CFR 164.514(b)(2).
    """
    if odd := [name for name in frame if kinds.get(name) not in SAFE_HARBOR_KINDS]:
        raise ValueError(f"say what {odd[0]!r} is: one of {', '.join(SAFE_HARBOR_KINDS)}")
    safe = frame[[name for name in frame if kinds[name] != "remove"]].copy()
    for name in safe:
        _check_kind(safe[name], kinds[name])
        if kinds[name] == "date":
            safe[name] = (
                pd.to_numeric(safe[name].astype(object).str[:4]).clip(lower=year - 90).astype("Int64")
            )
        elif kinds[name] == "age":
            safe[name] = safe[name].clip(upper=90)
        elif kinds[name] == "postcode":
            area = safe[name].astype(object).str[:3]
            safe[name] = area.where(area.isin(large_areas) | area.isna(), "000")
    return safe


def _check_kind(column: pd.Series, kind: str) -> None:
    known = column.dropna()
    if kind == "age" and not pd.api.types.is_numeric_dtype(column):
        raise ValueError(f"{column.name!r} must hold ages as numbers")
    if kind in ("date", "postcode") and not known.map(lambda value: isinstance(value, str)).all():
        # As a number 02138 is 2138, and its first three digits are those of another area.
        raise ValueError(
            f"{column.name!r} must be text: a number has lost its leading zeros, and a date must be YYYYMMDD"
        )
    if kind == "date" and not known.astype(str).str.fullmatch("[0-9]{8}").all():
        raise ValueError(f"{column.name!r} must hold dates as YYYYMMDD")


def _digits(number: str) -> bytes:
    if not re.fullmatch(r"[0-9]{10}", str(number)):
        raise ValueError("a phone number must be ten digits: strip blanks, signs and the country code first")
    return str(number).encode()
