"""A table of any kind as a query of the engine that will answer it."""

import ctypes
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa

from pprml._files import name_nearest

#: A pandas frame, the path of a Parquet file (or a pattern of several), or a table of an engine that narwhals speaks to.
Table = Any

#: So many values of a text column are looked at to tell whether few objects repeat.
_SAMPLE = 10_000


@cache
def _engine() -> duckdb.DuckDBPyConnection:
    # DuckDB 1.5 cannot copy the scan of a pandas frame, and this optimizer copies it.
    return duckdb.connect(config={"disabled_optimizers": "window_self_join"})


def open_table(table: Table, columns: Iterable[str]) -> nw.LazyFrame:
    """Return the named columns of a table as a lazy frame of the engine that will measure it.

    Parameters
    ----------
    table : DataFrame, str, Path, or a table that narwhals can read lazily
        A string or path names a Parquet file, or several with ``*``; they are streamed, never loaded whole.
    columns : iterable of str
        Columns to keep.

    Returns
    -------
    LazyFrame
        Missing values of every kind (None, NaN, NA) are null.

    Raises
    ------
    ValueError
        No column is named, one is not in the table (the nearest is named), a column mixes types, or a pandas frame is empty.
    FileNotFoundError
        No Parquet file can be read at the path.
    """
    columns = list(dict.fromkeys(columns))
    if not columns:
        raise ValueError("no column is named: pass at least one quasi-identifier")
    if isinstance(table, pd.DataFrame):
        return _open_pandas(table, columns)
    if isinstance(table, (str, Path)):
        try:
            table = _engine().read_parquet(str(table))
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise FileNotFoundError(f"no Parquet file can be read at {table}: {error}") from None
    frame = nw.from_native(table).lazy()
    schema = frame.collect_schema()
    demand_columns(columns, schema.names())
    floats = [name for name in columns if schema[name].is_float()]
    return frame.select(columns).with_columns(
        nw.when(~nw.col(name).is_nan()).then(nw.col(name)) for name in floats
    )


def _open_pandas(frame: pd.DataFrame, columns: list[str]) -> nw.LazyFrame:
    check_columns(frame, columns)
    text = [name for name in columns if frame[name].dtype == object]
    with ThreadPoolExecutor() as threads:
        coded = dict(zip(text, threads.map(_code_text, (frame[name] for name in text)), strict=True))
    refuse_mixed(frame, [name for name in text if coded[name] is None])
    if len({name.lower() for name in columns}) < len(columns):
        raise ValueError("two columns differ only in capitals, which SQL does not tell apart: rename one")
    if any(isinstance(frame[name].dtype, (pd.StringDtype, pd.ArrowDtype)) for name in columns):
        # DuckDB reads Arrow's text as Arrow far faster than through pandas.
        return nw.from_native(
            _engine().from_arrow(pa.Table.from_pandas(frame[columns], preserve_index=False))
        ).lazy()
    read = {name: frame[name] if coded.get(name) is None else coded[name] for name in columns}
    return nw.from_native(_engine().from_df(pd.DataFrame(read, copy=False))).lazy()


def _code_text(column: pd.Series) -> pd.Categorical | None:
    """Return a column of Python strings as codes; None where it holds something else, or few values repeat as one object."""
    values = np.ascontiguousarray(column.to_numpy())
    # A value that was read from a file is one object wherever it repeats: numbering the addresses is several times faster than
    # hashing the text, and needs no look at every value's type. `values` keeps the objects alive.
    addresses = np.ctypeslib.as_array((ctypes.c_ssize_t * len(values)).from_address(values.ctypes.data))
    if len(pd.unique(addresses[:_SAMPLE])) > _SAMPLE // 10:
        return None
    codes, distinct = pd.factorize(addresses)
    objects = np.empty(len(distinct), dtype=object)
    objects[:] = [ctypes.cast(int(address), ctypes.py_object).value for address in distinct]
    if pd.api.types.infer_dtype(objects, skipna=True) != "string":
        return None
    same, texts = pd.factorize(objects)  # equal strings may be several objects; a missing value is -1
    # Every code was numbered just above: checking them again would cost as much as all the rest.
    return pd.Categorical.from_codes(
        same.astype(np.min_scalar_type(-len(texts) - 1))[codes], texts, validate=False
    )


def check_columns(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse a pandas frame without rows, no columns, and a column that the frame does not have."""
    if len(frame) == 0:
        raise ValueError("the frame is empty: pass at least one row")
    if not list(columns):
        raise ValueError("no column is named: pass at least one quasi-identifier")
    demand_columns(columns, frame.columns)


def refuse_mixed(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse a column of a pandas frame that mixes types: DuckDB would take 1 and "1" for one value, pandas for two."""
    for name in columns:
        if frame[name].dtype == object and pd.api.types.infer_dtype(frame[name], skipna=True).startswith(
            "mixed"
        ):
            raise ValueError(f"column {name!r} mixes types: make it one with frame[{name!r}].astype(...)")


def demand_columns(wanted: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a wanted column that is not known, naming the nearest that is."""
    known = list(known)
    for name in wanted:
        if name not in known:
            raise ValueError(name_nearest("column", str(name), map(str, known)))
