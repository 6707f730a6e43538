"""What a table without names still gives away: group sizes, k, l, t, uniqueness and linkage, and tables made k-anonymous.

Each measure is stated once, as a query. A pandas frame or a Parquet file is measured by DuckDB, in this process; a table of a
connected engine (a DuckDB relation, a Spark frame, or another that narwhals speaks to) is measured where it is, and a handful of
numbers comes back. A missing value is a value of its own in every measure, and matches nothing in a linkage.

For teaching: `anonymize_k` chooses its steps greedily.
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import NamedTuple

import narwhals as nw
import numpy as np
import pandas as pd

from pprml._tables import Table, check_columns, open_table, refuse_mixed

Level = Callable[[pd.Series], pd.Series]

#: The most different numbers that the sensitive column of `t_of` may hold: each costs one sum over all groups.
MAX_NUMBERS = 1000

#: Columns that the queries add; no column of a table may have such a name.
_SIZE, _COUNT, _VALUES, _ROW = "_pprml_size", "_pprml_count", "_pprml_values", "_pprml_row"


class LinkageScore(NamedTuple):
    """Share of the claimed pairs that are right, and share of the true pairs that were found."""

    precision: float
    recall: float


class Release(NamedTuple):
    """The rows that may be published (reset their index first), how often each column was coarsened, who is left out."""

    frame: pd.DataFrame
    levels: dict[str, int]
    suppressed: pd.Index


def count_groups(table: Table, quasi_identifiers: Sequence[str]) -> nw.LazyFrame:
    """Return the groups of rows that share their quasi-identifiers: their values, and their size in ``_pprml_size``."""
    columns = list(quasi_identifiers)
    return open_table(table, columns).group_by(columns).agg(nw.len().alias(_SIZE))


def count_values(table: Table, quasi_identifiers: Sequence[str], sensitive: str) -> nw.LazyFrame:
    """Return for each group each value of `sensitive` in it, and the number of rows that have it in ``_pprml_count``."""
    columns = list(quasi_identifiers)
    if not columns or sensitive in columns:
        raise ValueError(
            f"name at least one quasi-identifier, and not {sensitive!r}: it is what the attacker wants to learn"
        )
    columns = [*columns, sensitive]
    return open_table(table, columns).group_by(columns).agg(nw.len().alias(_COUNT))


def _ask(frame: nw.LazyFrame, **expressions: nw.Expr) -> dict[str, float]:
    """Return one row of numbers; a table without rows is refused."""
    answer = frame.select(nw.len().alias(_COUNT), **expressions).collect("pandas").rows(named=True)[0]
    if answer[_COUNT] == 0:
        raise ValueError("the table is empty: pass at least one row")
    return answer


def k_of(table: Table, quasi_identifiers: Sequence[str]) -> int:
    """Return k, the size of the smallest group."""
    return int(_ask(count_groups(table, quasi_identifiers), k=nw.col(_SIZE).min())["k"])


def uniqueness(table: Table, quasi_identifiers: Sequence[str]) -> float:
    """Return the share of rows that are alone in their group."""
    alone = (nw.col(_SIZE) == 1).cast(nw.Int64)
    answer = _ask(count_groups(table, quasi_identifiers), alone=alone.sum(), rows=nw.col(_SIZE).sum())
    return float(answer["alone"] / answer["rows"])


def reidentification_rate(table: Table, quasi_identifiers: Sequence[str]) -> float:
    """Return how often an attacker is right who knows a person's quasi-identifiers and guesses within the group.

    The mean of 1 / group size, which is groups / rows. The attacker knows that the person is in the table.
    """
    answer = _ask(count_groups(table, quasi_identifiers), rows=nw.col(_SIZE).sum())
    return float(answer[_COUNT] / answer["rows"])


def homogeneous_share(table: Table, quasi_identifiers: Sequence[str], sensitive: str) -> float:
    """Return the share of rows whose whole group has one value of `sensitive`: no guess within the group is needed."""
    columns = list(quasi_identifiers)
    values = count_values(table, columns, sensitive).group_by(columns)
    groups = values.agg(nw.col(_COUNT).sum().alias(_SIZE), nw.len().alias(_VALUES))
    told = nw.when(nw.col(_VALUES) == 1).then(nw.col(_SIZE)).otherwise(0)
    answer = _ask(groups, told=told.sum(), rows=nw.col(_SIZE).sum())
    return float(answer["told"] / answer["rows"])


def l_of(table: Table, quasi_identifiers: Sequence[str], sensitive: str) -> int:
    """Return l, the least number of different values of `sensitive` in a group (distinct l-diversity).

    References
    ----------
    Machanavajjhala et al. 2007, DOI 10.1145/1217299.1217302.
    """
    groups = (
        count_values(table, quasi_identifiers, sensitive)
        .group_by(list(quasi_identifiers))
        .agg(nw.len().alias(_SIZE))
    )
    return int(_ask(groups, l=nw.col(_SIZE).min())["l"])


def t_of(table: Table, quasi_identifiers: Sequence[str], sensitive: str) -> float:
    """Return t, the largest distance between a group's distribution of `sensitive` and the whole table's.

    Text: half the sum of the differences in share (the total variation distance). Numbers: the earth mover's distance over their
    order, where moving from the least to the greatest costs 1.

    Raises
    ------
    ValueError
        Numbers with missing values, or more than `MAX_NUMBERS` different ones: round them, or pass them as text.

    References
    ----------
    Li, Li and Venkatasubramanian 2007, DOI 10.1109/ICDE.2007.367856.
    """
    groups = count_values(table, quasi_identifiers, sensitive)
    if groups.collect_schema()[sensitive].is_numeric():
        return _t_of_numbers(groups, list(quasi_identifiers), sensitive)
    count, columns = nw.col(_COUNT), list(quasi_identifiers)
    shares = {"p": count / count.sum().over(*columns), "q": count.sum().over(sensitive) / count.sum()}
    groups = groups.with_columns(**shares)
    # A value that the group lacks adds its share of the table: together they are 1 less those that the group has.
    gap = ((nw.col("p") - nw.col("q")).abs() - nw.col("q")).sum()
    per_group = groups.group_by(columns).agg(gap.alias("gap"))
    return float((_ask(per_group, gap=nw.col("gap").max())["gap"] + 1) / 2)


def _t_of_numbers(groups: nw.LazyFrame, columns: list[str], sensitive: str) -> float:
    counts = (
        groups.group_by(sensitive).agg(nw.col(_COUNT).sum()).sort(sensitive).collect("pandas").to_native()
    )
    if counts[sensitive].isna().any() or len(counts) > MAX_NUMBERS:
        raise ValueError(
            f"{sensitive!r} has missing values or more than {MAX_NUMBERS} different numbers: fill or round it, or pass it as text"
        )
    if len(counts) < 2:
        return 0.0 * _ask(groups)[_COUNT]
    below = (counts[_COUNT].cumsum() / counts[_COUNT].sum()).to_list()
    up_to = [
        nw.when(nw.col(sensitive) <= value).then(nw.col(_COUNT)).otherwise(0).sum().alias(f"_pprml_{i}")
        for i, value in enumerate(counts[sensitive].to_list()[:-1])
    ]
    groups = groups.group_by(columns).agg(nw.col(_COUNT).sum().alias(_SIZE), *up_to)
    gaps = [(nw.col(f"_pprml_{i}") / nw.col(_SIZE) - below[i]).abs() for i in range(len(up_to))]
    moved = groups.select(nw.sum_horizontal(*gaps).alias("moved"))
    return float(_ask(moved, t=nw.col("moved").max())["t"] / len(up_to))


def link_tables(left: Table, right: Table, on: Sequence[str], identifier: str) -> nw.LazyFrame:
    """Join two tables on shared columns, keeping the matches that are unambiguous in both.

    Parameters
    ----------
    left, right : Table
        Of one engine. A row with a missing value in `on` matches nothing; tables that do not overlap give no pair.
    on : sequence of str
        Columns that both tables hold.
    identifier : str
        Column that numbers the rows of each table.

    Returns
    -------
    LazyFrame
        Pairs of identifiers in the columns ``left`` and ``right``.

    Raises
    ------
    ValueError
        A column is missing, an identifier is missing or used twice, a column is text in one table and not in the other, or the
        tables are of two engines.
    """
    on, sides = list(on), []
    if identifier in on:
        raise ValueError(f"{identifier!r} numbers the rows: it cannot be what they are joined on")
    for table, name in ((left, "left"), (right, "right")):
        frame = open_table(table, on and [*on, identifier])
        rows = _ask(
            frame,
            ids=nw.col(identifier).n_unique(),
            missing=nw.col(identifier).is_null().cast(nw.Int64).sum(),
        )
        if rows["missing"] or rows["ids"] != rows[_COUNT]:
            raise ValueError(
                f"{identifier!r} of the {name} table is missing or used twice: number the rows afresh"
            )
        # SQL never joins a missing value with a missing value; engines of the pandas kind do.
        keys = (
            frame.drop_nulls(on).group_by(on).agg(nw.len().alias(_SIZE), nw.col(identifier).min().alias(name))
        )
        sides.append(keys.filter(nw.col(_SIZE) == 1).select(*on, name))
    if sides[0].implementation is not sides[1].implementation:
        raise ValueError("the two tables are of two engines: bring them into one")
    left_types, right_types = (side.collect_schema() for side in sides)
    for name in on:
        # An engine would guess what 2138 and "02138" have in common, each engine in its own way.
        if left_types[name].is_numeric() != right_types[name].is_numeric():
            raise ValueError(
                f"{name!r} is {left_types[name]} in one table and {right_types[name]} in the other: make both one type"
            )
    return sides[0].join(sides[1], on=on).select("left", "right")


def attack_linkage(left: pd.DataFrame, right: pd.DataFrame, on: Sequence[str]) -> pd.MultiIndex:
    """Apply `link_tables` to two pandas frames, whose index names the row; return pairs (index of left, index of right)."""
    for frame, name in ((left, "left"), (right, "right")):
        check_columns(frame, on)
        if frame.index.has_duplicates:
            raise ValueError(
                f"the index of the {name} frame names a row twice: use frame.reset_index(drop=True)"
            )
    numbered = [frame[list(on)].assign(**{_ROW: np.arange(len(frame))}) for frame in (left, right)]
    pairs = link_tables(*numbered, on, _ROW).sort("left").collect("pandas").to_native()
    return pd.MultiIndex.from_arrays(
        [left.index[pairs["left"]], right.index[pairs["right"]]], names=["left", "right"]
    )


def score_linkage(pairs: pd.MultiIndex, truth: pd.MultiIndex) -> LinkageScore:
    """Compare claimed pairs with the true ones; no claim at all has precision 0."""
    if len(truth) == 0:
        raise ValueError("truth is empty: pass the true pairs")
    correct = pairs.isin(truth).sum()
    return LinkageScore(correct / max(len(pairs), 1), correct / len(truth))


def group_sizes(frame: pd.DataFrame, quasi_identifiers: Sequence[str]) -> pd.Series:
    """Return for each row of a pandas frame how many rows share its quasi-identifiers, in the frame's order."""
    columns = list(quasi_identifiers)
    check_columns(frame, columns)
    refuse_mixed(frame, columns)
    # Left to itself, groupby drops rows with a missing value, and the smallest group with them.
    return frame.groupby(columns, dropna=False, observed=True, sort=False)[columns[0]].transform("size")


def generalize(
    frame: pd.DataFrame, levels: Mapping[str, int], hierarchies: Mapping[str, Sequence[Level]]
) -> pd.DataFrame:
    """Return a copy of `frame` with each column of `levels` taken to that level of its hierarchy (0: as it is)."""
    check_columns(frame, levels)
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
        One row a person, each with its own index. Columns that are not quasi-identifiers are published as they are.
    quasi_identifiers : sequence of str
        What an attacker may know.
    k : int
        Smallest group allowed.
    hierarchies : mapping of str to sequence of callable
        For each quasi-identifier its coarser versions, finest first; each takes the original column and maps its values one
        by one.
    max_suppressed : float
        Largest share of rows that may be left out.

    Returns
    -------
    Release

    Raises
    ------
    ValueError
        A column or hierarchy is missing, a column mixes types, the index names a row twice, `k` is not a whole number in range, or
        the hierarchies end too early.

    References
    ----------
    Sweeney 2002, "Achieving k-anonymity privacy protection using generalization and suppression" (the Datafly
    procedure), DOI 10.1142/S021848850200165X.
    """
    columns = list(quasi_identifiers)
    check_columns(frame, columns)
    if missing := [name for name in columns if name not in hierarchies]:
        raise ValueError(f"hierarchies has no entry for {missing[0]!r}: an empty list keeps it as it is")
    if frame.index.has_duplicates:
        raise ValueError("the index names a row twice: use frame.reset_index(drop=True)")
    if not isinstance(k, Integral) or not 1 <= k <= len(frame):
        raise ValueError(f"k must be 1 to {len(frame)}, a whole number of rows; it is {k}")
    if not 0 <= max_suppressed < 1:
        raise ValueError("max_suppressed must be 0 or more and below 1")
    # Rows that agree in every quasi-identifier stay together: one of each, with its number of rows, is enough to search with.
    number = frame.groupby(columns, dropna=False, observed=True, sort=False).ngroup().to_numpy()
    _, first, rows = np.unique(number, return_index=True, return_counts=True)
    distinct = frame[columns].iloc[first].reset_index(drop=True)
    refuse_mixed(distinct, columns)
    levels = dict.fromkeys(columns, 0)
    while True:
        coarse = generalize(distinct, levels, hierarchies)
        merged = coarse.groupby(columns, dropna=False, observed=True, sort=False).ngroup().to_numpy()
        small = np.bincount(merged, rows)[merged] < k
        if rows[small].sum() <= max_suppressed * len(frame):
            break
        left = [name for name in columns if levels[name] < len(hierarchies[name])]
        if not left:
            raise ValueError(f"hierarchies end before groups of {k}: add a level or raise max_suppressed")
        levels[max(left, key=lambda name: coarse[name].nunique(dropna=False))] += 1
    published = ~small[number]
    changed = coarse[[name for name in columns if levels[name]]].iloc[number[published]]
    release = frame[published]
    release = release.assign(**{name: changed[name].set_axis(release.index) for name in changed})
    return Release(release, levels, frame.index[~published])
