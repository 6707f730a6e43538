"""Chapter 01: whom a few facts single out in a country, what hides a phone number, and Safe Harbor; broken twins are rejected."""

import hashlib
import hmac
import secrets

import numpy as np
import pandas as pd
import pytest

from pprml import identifiers

KEY = secrets.token_bytes(32)


# Uniqueness


SIZES, SHARES, CELLS = [40, 150, 600, 2000], np.array([0.5, 0.3, 0.15, 0.05]), 200


def simulate_share(at_most, runs=300):
    """Deal people to cells, count those in small groups; return the mean share and its standard error."""
    generator = np.random.default_rng(5)
    shares = []
    for _ in range(runs):
        hits = 0
        for size in SIZES:
            kinds = generator.choice(len(SHARES), size=size, p=SHARES)
            cells = kinds * CELLS + generator.integers(CELLS, size=size)
            counts = np.bincount(cells)
            hits += counts[counts <= at_most].sum()
        shares.append(hits / sum(SIZES))
    return np.mean(shares), np.std(shares, ddof=1) / np.sqrt(runs)


@pytest.mark.parametrize("at_most", [1, 5])
def test_closed_form_agrees_with_a_simulation(at_most):
    mean, error = simulate_share(at_most)
    # Four standard errors: a correct formula fails for 6 in 100,000 seeds.
    assert abs(identifiers.share_in_small_groups(SIZES, SHARES, CELLS, at_most) - mean) < 4 * error


def test_the_mean_zip_size_fails_the_same_simulation():
    mean, error = simulate_share(1)
    mean_size = [round(np.mean(SIZES))]
    assert abs(identifiers.share_in_small_groups(mean_size, SHARES, CELLS) - mean) > 20 * error


def test_uniqueness_by_hand():
    # Two people, one cell of probability 1/4 each: the other one is elsewhere with probability 3/4.
    assert identifiers.share_in_small_groups([2], [0.25] * 4) == pytest.approx(0.75)
    assert identifiers.share_in_small_groups([1], [1.0]) == 1
    assert identifiers.share_in_small_groups([3], [1.0]) == 0
    assert identifiers.share_in_small_groups([3], [1.0], at_most=3) == 1
    # People count, not ZIPs: one alone and two who share everything.
    assert identifiers.share_in_small_groups([1, 2], [1.0]) == pytest.approx(1 / 3)


def test_us_shares_order_as_they_must():
    shares = identifiers.us_age_sex_shares()
    assert shares.shape == (202,) and shares.sum() == pytest.approx(1)
    year, month, day = (identifiers.us_unique_share(name) for name in ("year", "month", "day"))
    assert year < month < day < identifiers.us_unique_share(mean_zip=True)


# Phone numbers


def test_numbers_are_distinct_seeded_and_ten_digits():
    numbers = identifiers.make_phone_numbers(500, seed=1)
    assert len(set(numbers)) == 500
    assert all(len(n) == 10 and n.startswith("555") and n[3] in "23456789" for n in numbers)
    assert (
        numbers == identifiers.make_phone_numbers(500, seed=1) != identifiers.make_phone_numbers(500, seed=2)
    )


def check_token_resists_enumeration(token_of):
    """Enumerate one exchange as an attacker without the key, who tries no key and the empty key."""
    numbers = [f"555234{line:04d}" for line in range(0, 10_000, 1000)]
    tokens = {token_of(number): number for number in numbers}
    assert not identifiers.attack_hash(tokens, "555", exchanges=range(234, 235))
    tried = {hmac.digest(b"", b"555234%04d" % line, "sha256").hex() for line in range(10_000)}
    assert not tried & set(tokens)


def test_keyed_tokens_resist_enumeration():
    check_token_resists_enumeration(lambda number: identifiers.pseudonymize(number, KEY))


@pytest.mark.parametrize(
    "broken",
    [
        identifiers.naive_hash,
        lambda number: hmac.digest(b"", number.encode(), "sha256").hex(),
        lambda number: hashlib.sha256(b"" + number.encode()).hexdigest(),
    ],
    ids=["no key", "empty hmac key", "empty prefix"],
)
def test_tokens_without_a_real_key_are_rejected(broken):
    with pytest.raises(AssertionError):
        check_token_resists_enumeration(broken)


def test_hash_attack_returns_the_right_numbers_and_nothing_else():
    numbers = ["5552000000", "5552009999", "5552010000", "5559999999"]
    hashed = [identifiers.naive_hash(number) for number in numbers]
    found = identifiers.attack_hash(hashed, "555", exchanges=range(200, 202))
    assert found == dict(zip(hashed[:3], numbers[:3], strict=True))
    # Another area code: nothing to find.
    assert identifiers.attack_hash(hashed, "556", exchanges=range(200, 201)) == {}


def test_same_key_links_and_other_key_does_not():
    number, other = "5552345678", secrets.token_bytes(32)
    assert identifiers.pseudonymize(number, KEY) == identifiers.pseudonymize(number, KEY)
    assert identifiers.pseudonymize(number, KEY) != identifiers.pseudonymize(number, other)
    assert identifiers.pseudonymize(number, KEY) == hmac.new(KEY, number.encode(), "sha256").hexdigest()


# Bad input: each error names the fix


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: identifiers.share_in_small_groups([10, np.nan], [1.0]), "drop missing and empty"),
        (lambda: identifiers.share_in_small_groups([10, 0], [1.0]), "drop missing and empty"),
        (lambda: identifiers.share_in_small_groups([], [1.0]), "drop missing and empty"),
        (lambda: identifiers.share_in_small_groups([10], [2.0, 3.0]), "divide the counts"),
        (lambda: identifiers.share_in_small_groups([10], [1.0], at_most=0), "at_most"),
        (lambda: identifiers.us_unique_share("days"), "did you mean 'day'"),
        (lambda: identifiers.naive_hash("555-234-5678"), "ten digits"),
        (lambda: identifiers.naive_hash("15552345678"), "ten digits"),
        (lambda: identifiers.naive_hash("٥٥٥٢٣٤٥٦٧٨"), "ten digits"),
        (lambda: identifiers.pseudonymize("555234567", KEY), "ten digits"),
        (lambda: identifiers.pseudonymize("5552345678", b""), "secrets.token_bytes"),
        (lambda: identifiers.pseudonymize("5552345678", b"1234"), "secrets.token_bytes"),
        (lambda: identifiers.pseudonymize("5552345678", "a text that is long enough"), "secrets.token_bytes"),
        (lambda: identifiers.attack_hash([], "55"), "three digits"),
        (lambda: identifiers.make_phone_numbers(0, seed=0), "1 to 8,000,000"),
        (lambda: identifiers.make_phone_numbers(5, seed=0, area_code="5555"), "three digits"),
    ],
)
def test_bad_input_names_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Safe Harbor

KINDS = {"name": "remove", "born": "date", "zip": "postcode", "age": "age", "job": "keep"}


def check_safe_harbor(apply):
    frame = pd.DataFrame(
        {
            "name": ["Ann", "Ben", "Cat"],
            "born": ["19800117", "19010203", None],
            "zip": ["02138", "99999", None],
            "age": [20, 99, 89],
            "job": ["x", "y", "z"],
        }
    )
    before = frame.copy()
    safe = apply(frame, KINDS, 2000, ["021"])
    assert list(safe) == ["born", "zip", "age", "job"] and frame.equals(before)
    assert safe["born"].tolist()[:2] == [1980, 1910] and pd.isna(safe["born"][2])
    assert safe["zip"].tolist()[:2] == ["021", "000"] and pd.isna(safe["zip"][2])
    assert safe["age"].tolist() == [20, 90, 89] and safe["job"].equals(frame["job"])


def test_safe_harbor_leaves_years_areas_and_the_rest():
    check_safe_harbor(identifiers.apply_safe_harbor)


def test_safe_harbors_that_keep_too_much_are_rejected():
    def keeps_the_day(frame, kinds, year, areas):
        return identifiers.apply_safe_harbor(frame, kinds, year, areas).assign(born=frame["born"])

    def keeps_small_areas(frame, kinds, year, areas):
        return identifiers.apply_safe_harbor(frame, kinds, year, frame["zip"].str[:3].dropna())

    def keeps_the_oldest(frame, kinds, year, areas):
        return identifiers.apply_safe_harbor(frame, kinds | {"age": "keep"}, year, areas)

    for broken in (keeps_the_day, keeps_small_areas, keeps_the_oldest):
        with pytest.raises(AssertionError):
            check_safe_harbor(broken)


@pytest.mark.parametrize("kinds", [{}, {**KINDS, "job": "drop"}])
def test_safe_harbor_asks_about_every_column(kinds):
    frame = pd.DataFrame({"job": ["x"]})
    with pytest.raises(ValueError, match="say what 'job' is"):
        identifiers.apply_safe_harbor(frame, kinds, 2000)


@pytest.mark.parametrize(
    ("column", "values", "fault"),
    [
        ("zip", [2138, 99999], "must be text"),
        ("zip", [2138.0, None], "must be text"),
        ("born", [19800117, 19010203], "must be text"),
        ("born", [pd.Timestamp("1980-01-17"), pd.Timestamp("1901-02-03")], "must be text"),
        ("born", ["17/01/1980", None], "YYYYMMDD"),
        ("age", ["20", "99"], "as numbers"),
    ],
)
def test_safe_harbor_refuses_what_it_would_misread(column, values, fault):
    with pytest.raises(ValueError, match=fault):
        identifiers.apply_safe_harbor(pd.DataFrame({column: values}), {column: KINDS[column]}, 2000)


def test_safe_harbor_leaves_a_column_of_missing_values_missing():
    empty = pd.DataFrame({"born": [None, np.nan], "zip": [np.nan, np.nan]})
    assert identifiers.apply_safe_harbor(empty, KINDS, 2000).isna().all(axis=None)
