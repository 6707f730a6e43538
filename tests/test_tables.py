"""How a pandas frame is opened: text of Python objects is read by address, and means what it meant by value."""

import numpy as np
import pandas as pd
import pytest

from pprml import _tables


def make_text(repeats: int) -> np.ndarray:
    """Return text whose equal values are several objects, with missing values of three kinds."""
    values = np.array(["a", "b", None, np.nan, pd.NA, "é" * 3, ""], dtype=object)
    values[0], again = "".join(["x", "y"]), "".join(["x", "y"])
    assert values[0] is not again
    return np.random.default_rng(0).permutation(np.tile([*values, again], repeats))


def test_codes_mean_the_same_text_and_the_same_missing_values():
    text = pd.Series(make_text(100))
    coded = _tables._code_text(text)
    assert set(coded.categories) == {"xy", "b", "é" * 3, ""}
    assert (coded.isna() == text.isna()).all() and coded.isna().sum() == 300
    assert (pd.Series(coded).astype(object)[~text.isna()] == text[~text.isna()]).all()


def test_a_strided_column_is_read_right():
    text = make_text(100)
    coded = _tables._code_text(pd.Series(text[::2]))
    assert (pd.isna(coded) == pd.isna(text[::2])).all()


def test_taking_equal_objects_for_different_values_is_rejected():
    text = make_text(100)
    by_object = len({id(value) for value in text if not pd.isna(value)})
    assert by_object == 5 > len(_tables._code_text(pd.Series(text)).categories)


@pytest.mark.parametrize(
    "values",
    [
        [str(number) for number in range(20_000)],
        [1, "1"] * 100,
        [True, False] * 100,
        [None] * 200,
        [b"a", b"b"] * 100,
    ],
    ids=["few repeats", "mixed", "booleans", "nothing but missing", "bytes"],
)
def test_what_is_not_repeated_text_is_left_to_the_engine(values):
    assert _tables._code_text(pd.Series(values, dtype=object)) is None
