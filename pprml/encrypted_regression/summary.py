"""What else the same sums give: standard errors, t-values, and ridge with a penalty chosen without another look at a row (chapter 10)."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from pprml.least_squares import REFERENCE, TARGET, restore_units, solve_sums, unpack_sums


class Summary(NamedTuple):
    """Arrays of shape (d + 1,), the intercept first, in points for one clinical unit; `sigma` is the residuals' spread in points."""

    coefficients: np.ndarray
    standard_errors: np.ndarray
    t_values: np.ndarray
    p_values: np.ndarray
    sigma: float
    r2: float


def summarize_sums(sums: np.ndarray, columns: list[str]) -> Summary:
    """Return the least-squares line with its standard errors, for independent errors of one variance.

    Parameters
    ----------
    sums : ndarray of shape ((d + 1) * (d + 4) / 2 + 1,)
        Those of `compute_sums` over all rows, and the sum of the squared scaled target last: the residuals need it.
    columns : list of str
        Names without the target.

    Raises
    ------
    ValueError
        X'X is singular; or no more rows than coefficients, so that no residual is left.
    """
    size = len(columns) + 1
    if len(sums) != size * (size + 3) // 2 + 1:
        raise ValueError(f"expected {size * (size + 3) // 2 + 1} sums: is the squared target missing?")
    coefficients = solve_sums(sums[:-1], columns)
    gram, right = unpack_sums(sums[:-1], size)
    rows = round(gram[0, 0])
    if rows <= size:
        raise ValueError(f"{rows} rows leave no residual for {size} coefficients: find more rows")
    scaled = np.linalg.solve(gram, right)
    residual = sums[-1] - scaled @ right
    total = sums[-1] - right[0] ** 2 / rows
    # Clinical units are a linear map of the scaled coefficients.
    middle_row = restore_units(np.zeros(size), columns)
    turn = np.column_stack([restore_units(unit, columns) - middle_row for unit in np.eye(size)])
    variance = residual / (rows - size)
    errors = np.sqrt(np.diag(turn @ np.linalg.inv(gram) @ turn.T) * variance)
    t = coefficients / errors
    p = 2 * stats.t.sf(np.abs(t), rows - size)
    return Summary(coefficients, errors, t, p, REFERENCE[TARGET][1] * np.sqrt(variance), 1 - residual / total)


def solve_ridge(sums: np.ndarray, columns: list[str], penalty: float) -> np.ndarray:
    """Return the ridge line, as `solve_sums` does: `penalty` times the squared scaled slopes is added; the intercept is free."""
    if not 0 <= penalty < np.inf:
        raise ValueError(f"penalty must be finite and 0 or more, got {penalty!r}")
    gram, right = unpack_sums(sums[:-1], len(columns) + 1)
    return restore_units(np.linalg.solve(gram + penalty * _free_intercept(len(right)), right), columns)


def cross_validate(sums: np.ndarray, penalty: float) -> float:
    """Return the generalised cross-validation score of a penalty, in squared scaled points: lower is better.

    n RSS / (n - trace H)^2 needs the sums alone: nobody opens another row.

    References
    ----------
    Golub, Heath and Wahba 1979, DOI 10.1080/00401706.1979.10489751.
    """
    size = int(round((np.sqrt(9 + 8 * (len(sums) - 1)) - 3) / 2))
    gram, right = unpack_sums(sums[:-1], size)
    inverse = np.linalg.inv(gram + penalty * _free_intercept(size))
    b, rows = inverse @ right, gram[0, 0]
    residual = sums[-1] - 2 * b @ right + b @ gram @ b
    return float(rows * residual / (rows - np.trace(inverse @ gram)) ** 2)


def choose_penalty(sums: np.ndarray, penalties: list[float]) -> float:
    """Return the penalty with the lowest score of `cross_validate`."""
    return min(penalties, key=lambda penalty: cross_validate(sums, penalty))


def _free_intercept(size):
    shape = np.eye(size)
    shape[0, 0] = 0
    return shape
