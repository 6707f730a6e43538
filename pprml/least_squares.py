"""Least squares as sums that parties can add: what chapters 10 and 12 do in the clear, before anything is encrypted or shared."""

from typing import Any

import numpy as np

#: Typical adult value and spread, agreed before anyone looks at data. Age in years; sex coded 1, 2; bmi in kg/m2; bp in mmHg;
#: blood serum: total (s1), low- (s2) and high-density (s3) cholesterol in mg/dl, s1/s3, log triglycerides, glucose in mg/dl.
REFERENCE = {
    "age": (50, 15), "sex": (1.5, 0.5), "bmi": (25, 5), "bp": (90, 15), "s1": (200, 40), "s2": (120, 30),
    "s3": (50, 15), "s4": (4, 1), "s5": (4.6, 0.5), "s6": (90, 15), "progression": (150, 75),
}  # fmt: skip
TARGET = "progression"  # a disease score after one year, in points
MAX_DEVIATION = 8.0  # spreads that a value may lie from its typical one
MAX_ROWS = 1024  # patients of one party: each of its sums is at most 1024 * 8^2 = 2^16


def split_rows(X: Any, y: Any, parties: int = 3, seed: int = 0, sort_by: str | None = None) -> list:
    """Deal the rows of a frame, with the target as last column, at random or in the order of one column; a frame a party."""
    table = X.assign(**{TARGET: np.asarray(y, float)}).sample(frac=1, random_state=seed)
    table = table if sort_by is None else table.sort_values(sort_by, kind="stable")
    return [table.iloc[part] for part in np.array_split(np.arange(len(table)), parties)]


def scale_columns(table: Any) -> np.ndarray:
    """Check one party's patients and return their columns in agreed spreads; (n, columns)."""
    names = np.array(table.columns)
    if unknown := ", ".join(set(names) - set(REFERENCE)):
        raise ValueError(f"no agreed reference for column {unknown}: add it to REFERENCE")
    if not 1 <= len(table) <= MAX_ROWS:
        raise ValueError(f"expected 1 to {MAX_ROWS} rows")
    middle, spread = np.array([REFERENCE[name] for name in names], float).T
    scaled = (table.to_numpy(float) - middle) / spread
    # The messages name columns, never a patient's value.
    if bad := ", ".join(names[~np.isfinite(scaled).all(axis=0)]):
        raise ValueError(f"a missing or infinite value in column {bad}: impute it or leave the row out")
    if bad := ", ".join(names[np.abs(scaled).max(axis=0) > MAX_DEVIATION]):
        raise ValueError(f"column {bad} leaves the agreed range and could overflow a sum: check its unit")
    return scaled


def scale_rows(table: Any) -> np.ndarray:
    """Check one party's patients and return their rows: a one, then the columns, the target last, in agreed spreads; (n, d + 2)."""
    scaled = scale_columns(table)
    if table.columns[-1] != TARGET:
        raise ValueError(f"expected {TARGET} as the last column")
    return np.column_stack([np.ones(len(scaled)), scaled])


def compute_sums(table: Any) -> np.ndarray:
    """Add up the products that least squares needs, after scaling by the public `REFERENCE`.

    Parameters
    ----------
    table : DataFrame of shape (n, d + 1)
        One party's patients in clinical units, the target last.

    Returns
    -------
    ndarray of shape ((d + 1) * (d + 4) / 2,)
        The upper triangle of A'A, then A'y, where A is a column of ones and the scaled columns. The first number is n.

    Raises
    ------
    ValueError
        No or too many rows, a column without a reference, a value that is missing, infinite or out of the agreed range.
    """
    rows = scale_rows(table)
    A = rows[:, :-1]
    return np.concatenate([(A.T @ A)[np.triu_indices(A.shape[1])], A.T @ rows[:, -1]])


def solve_sums(sums: np.ndarray, columns: list[str]) -> np.ndarray:
    """Solve the normal equations from `compute_sums` added over the parties, of `columns` without the target.

    Returns
    -------
    ndarray of shape (d + 1,)
        Intercept in points of the target, then points for one clinical unit of each column.

    Raises
    ------
    ValueError
        X'X is singular; the message names the constant or collinear columns.
    """
    gram, right = unpack_sums(sums, len(columns) + 1)
    unit = np.sqrt(np.where(np.diag(gram) > 1e-6, np.diag(gram), 1.0))
    values, vectors = np.linalg.eigh(gram / np.outer(unit, unit))
    # 1e-7 is far above the noise of a decryption (about 1e-11 here) and far below any usable column.
    guilty = np.abs(vectors[1:, values < 1e-7]).max(axis=1, initial=0.0) > 1e-3
    if bad := ", ".join(np.array(columns)[guilty]):
        raise ValueError(f"X'X is singular: constant or collinear columns {bad}; drop one or pool more rows")
    return restore_units(np.linalg.solve(gram, right), columns)


def unpack_sums(sums: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay the numbers of `compute_sums` out as A'A (size, size) and A'y (size,)."""
    gram, upper = np.zeros((size, size)), np.triu_indices(size)
    gram[upper] = gram.T[upper] = sums[:-size]
    return gram, sums[-size:]


def restore_units(scaled: np.ndarray, columns: list[str]) -> np.ndarray:
    """Turn coefficients of the scaled columns into points for one clinical unit of each."""
    middle, spread = np.array([REFERENCE[name] for name in columns], float).T
    slopes = scaled[1:] * REFERENCE[TARGET][1] / spread
    return np.r_[REFERENCE[TARGET][0] + REFERENCE[TARGET][1] * scaled[0] - slopes @ middle, slopes]
