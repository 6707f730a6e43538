"""Regression on shares with TF Encrypted (ABY3): checks before work starts, and the programs that the analyst runs.

The programs run in the analyst's process. They name the owners and the shapes of what they bring; the numbers never pass there.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pprml.least_squares import compute_sums, unpack_sums

#: Spreads that a value may lie from its column's mean: a sum of 2^20 products of such values stays below 2^62 with 16 bits each.
MAX_SCALED = 16.0
#: Newton's iteration for an inverse starts from START * I; it converges for eigenvalues below 2 / START.
START = 1 / 8
NEWTON_STEPS = 16  # 2^16 steps of gradient descent in effect: enough for a condition number of some thousands


class Fit(NamedTuple):
    """Coefficients as they were opened, and the seconds of each step, the first of which includes building the graph."""

    coefficients: np.ndarray
    seconds: list[float]


def prepare_rows(tables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Check owners of whole rows, and add up what each brings to a linear regression.

    Parameters
    ----------
    tables : dict of owner to DataFrame (n_k, d + 1)
        In clinical units, the target last, as from `least_squares.split_rows`.

    Returns
    -------
    dict of owner to ndarray (d + 1, d + 2)
        A'A and, as last column, A'y, divided by the number of all rows, which is public.

    Raises
    ------
    ValueError
        Columns that differ, a value that is missing or not scaled, too few rows, a column that is constant everywhere.
    """
    (first, reference), total = next(iter(tables.items())), sum(map(len, tables.values()))
    columns = list(reference.columns)
    inputs, flat = {}, set(columns[:-1])
    for owner, table in tables.items():
        if list(table.columns) != columns:
            differing = ", ".join(sorted(set(columns) ^ set(table.columns))) or "the same in another order"
            raise ValueError(f"{first} and {owner} have different columns: {differing}; agree on them first")
        try:
            gram, right = unpack_sums(compute_sums(table), len(columns))
        except ValueError as error:
            raise ValueError(f"{owner}: {error}") from None
        # Each owner's trace bounds the largest eigenvalue of the pooled matrix.
        if np.trace(gram) / len(table) >= 2 / START:
            raise ValueError(
                f"{owner}: scaled squares add up to {2 / START:g} or more a row: check the units"
            )
        flat &= {name for name in columns if table[name].nunique() == 1}
        inputs[owner] = np.column_stack([gram, right]) / total
    if total < len(columns):
        raise ValueError(f"{total} rows in all cannot fix {len(columns)} coefficients: find more parties")
    if flat:
        raise ValueError(f"column {', '.join(sorted(flat))} is constant at every owner: drop it")
    return inputs


def prepare_columns(tables: dict[str, Any], labels: str) -> dict[str, np.ndarray]:
    """Check owners of different columns of the same rows, and scale each column by its owner's own mean and spread.

    Parameters
    ----------
    tables : dict of owner to DataFrame (n, d_k)
        Row i is the same person everywhere. The owner `labels` brings one column of 0 and 1.

    Returns
    -------
    dict of owner to ndarray (n, d_k)
        Scaled; the first owner's with a column of ones before it.

    Raises
    ------
    ValueError
        Rows or columns that do not match, a missing value, an outlier, a constant column, too few rows.
    """
    rows = {owner: len(table) for owner, table in tables.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"the owners disagree on the number of rows ({rows}): match the people first")
    names = [name for table in tables.values() for name in table.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"more than one owner has column {', '.join(twice)}: let one of them bring it")
    inputs = {}
    for owner, table in tables.items():
        values = table.to_numpy(float)
        if bad := ", ".join(table.columns[~np.isfinite(values).all(axis=0)]):
            raise ValueError(f"{owner}: a missing or infinite value in column {bad}: impute it")
        if bad := ", ".join(table.columns[np.ptp(values, axis=0) == 0]):
            raise ValueError(f"{owner}: column {bad} is constant: drop it")
        if owner == labels:
            if values.shape[1] != 1 or set(np.unique(values)) != {0.0, 1.0}:
                raise ValueError(f"{owner}: labels must be one column of 0 and 1, with both present")
        else:
            values = (values - values.mean(axis=0)) / values.std(axis=0)
            if bad := ", ".join(table.columns[np.abs(values).max(axis=0) > MAX_SCALED]):
                raise ValueError(
                    f"{owner}: column {bad} has a value {MAX_SCALED:g} spreads out, which could overflow the fixed point: "
                    "take its logarithm, or clip it"
                )
            if not inputs:
                values = np.column_stack([np.ones(len(values)), values])
        inputs[owner] = values
    if len(next(iter(tables.values()))) < len(names):
        raise ValueError(f"{len(values)} rows cannot fix {len(names)} coefficients: find more people")
    return inputs


def _bring(owner: str, path: str, shape: tuple[int, ...]) -> Any:
    """Share what an owner's process reads from its own file; runs on the owner's machine, and only shares leave it."""
    import tensorflow as tf
    import tf_encrypted as tfe

    def read():
        return tf.reshape(tf.io.decode_raw(tf.io.read_file(path), tf.float64), shape)

    return tfe.define_private_input(owner, read)


def _compile(protocol: Any, body: Callable) -> Callable:
    """Compile `body` so that each call draws fresh keys, and returns only what `body` revealed.

    TF Encrypted's masks are drawn from keys and a counter that counts while the graph is built, so a second call of the same graph
    would repeat them. And whatever a compiled function returns is sent to the analyst, shares of private tensors included: what is
    to stay on the servers goes into private variables instead.
    """
    import tensorflow as tf

    @tf.function
    def call():
        protocol.reset()
        opened = body()
        return None if opened is None else opened.to_native()

    return call


def _keep(shape: tuple[int, ...]) -> Any:
    """Make a private variable, for now of zeros, whose shares stay on the servers."""
    import tf_encrypted as tfe

    return tfe.define_private_variable(np.zeros(shape))


def fit_linear(paths: dict[str, str], size: int, precision: str = "high", steps: int = NEWTON_STEPS) -> Fit:
    """Program: solve the pooled normal equations on shares, so that nothing but the coefficients is ever opened.

    Parameters
    ----------
    paths : dict of owner to str
        Where each owner's process keeps what `prepare_rows` made.
    size : int
        d + 1.
    precision : {"high", "low"}
        Shares of 128 or of 64 bits. A rounding error is magnified by up to the condition number.
    steps : int
        Of V <- V (2 I - G V), which doubles the right digits of the inverse of G once it is near.

    Raises
    ------
    ValueError
        The matrix is singular, or too nearly so. Only its effective rank was opened then.

    References
    ----------
    ABY3: Mohassel and Rindal 2018, DOI 10.1145/3243734.3243760.
    """
    import tf_encrypted as tfe

    protocol = tfe.protocol.ABY3(fixedpoint_config=precision)
    tfe.set_protocol(protocol)
    coefficients = _keep((size, 1))

    def solve():
        brought = [_bring(owner, path, (size, size + 1)) for owner, path in paths.items()]
        total = sum(brought[1:], brought[0])
        gram, right = total[:, :size], total[:, size:]
        twice, inverse = tfe.define_constant(2 * np.eye(size)), tfe.define_constant(START * np.eye(size))
        for _ in range(steps):
            inverse = tfe.matmul(inverse, twice - tfe.matmul(gram, inverse))
        tfe.assign(coefficients, tfe.matmul(inverse, right))
        # The trace of G times its inverse counts the directions that were solved.
        return tfe.reduce_sum(tfe.mul(gram, tfe.transpose(inverse))).reveal()

    began = time.perf_counter()
    rank = float(_compile(protocol, solve)())
    if not abs(rank - size) < 0.01:
        raise ValueError(
            f"X'X is singular or nearly so ({rank:.2f} of {size} directions solved): drop a collinear column"
        )
    opened = _compile(protocol, lambda: coefficients.read_value().reveal())()
    return Fit(opened.numpy().ravel(), [time.perf_counter() - began])


def fit_logistic(
    paths: dict[str, str], shapes: dict[str, tuple], labels: str, rate: float, steps: int
) -> Fit:
    """Program: logistic regression by gradient descent on shared columns.

    Parameters
    ----------
    paths, shapes : dict of owner to str, to (n, d_k)
        Where each owner's process keeps what `prepare_columns` made, and its public shape.
    labels : str
        The owner of the labels.
    rate : float
        Learning rate over n; a power of two is exact in fixed point.
    steps : int
        Of the whole data.

    Returns
    -------
    Fit
        The intercept first. The sigmoid is TF Encrypted's, of five straight pieces.
    """
    import tf_encrypted as tfe

    protocol = tfe.protocol.ABY3()
    tfe.set_protocol(protocol)
    rows, width = shapes[labels][0], sum(shape[1] for owner, shape in shapes.items() if owner != labels)
    X, y, weights = _keep((rows, width)), _keep((rows, 1)), _keep((width, 1))

    def share():
        columns = [_bring(owner, paths[owner], shapes[owner]) for owner in paths if owner != labels]
        tfe.assign(X, tfe.concat(columns, axis=1))
        tfe.assign(y, _bring(labels, paths[labels], shapes[labels]))

    def step():
        data, old = X.read_value(), weights.read_value()
        error = tfe.sigmoid(tfe.matmul(data, old)) - y.read_value()
        tfe.assign(weights, old - tfe.matmul(tfe.transpose(data), error) * rate)

    _compile(protocol, share)()
    descend, seconds = _compile(protocol, step), []
    for _ in range(steps):
        began = time.perf_counter()
        descend()
        seconds.append(time.perf_counter() - began)
    opened = _compile(protocol, lambda: weights.read_value().reveal())()
    return Fit(opened.numpy().ravel(), seconds)


def fit_logistic_clear(X: np.ndarray, y: np.ndarray, rate: float, steps: int, pieces: bool) -> np.ndarray:
    """Run the same descent in the clear; with the sigmoid of five straight `pieces` or the exact one. Returns (d,) weights."""
    weights = np.zeros(X.shape[1])
    for _ in range(steps):
        score = X @ weights
        if pieces:
            inner = np.select(
                [score <= -4, score <= -1.5, score <= 1.5, score <= 4],
                [1e-4, 0.281 + 0.066 * score, 0.5 + 0.212 * score, 0.719 + 0.066 * score],
                1 - 1e-4,
            )
        else:
            inner = 1 / (1 + np.exp(-score))
        weights = weights - rate * X.T @ (inner - y)
    return weights
